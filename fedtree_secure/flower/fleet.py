"""A node's connection to a SuperLink: Flower's Fleet API, spoken through flwr's own client.

What is used of flwr here is not its public API, so flwr is pinned exactly and
``tests/flower/test_contract.py`` holds these names and their arguments. Registration, TLS and node
authentication are Flower's. No app is ever fetched or run.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedtree_secure.errors import ConfigurationError, FedTreeError

log = logging.getLogger("fedtree_secure.flower")
RUN_IS_OVER = 403  # a message's run ended while it was answered
WHOLE_S = 8.0  # after which the rest of a message is not waited for: its sender may be dead
BEATS = 3  # in an interval after which the SuperLink takes a node for gone


class Unreachable(FedTreeError):  # noqa: N818 - what happened; it is tried again
    """The SuperLink does not answer, or not now."""


class KeyRefused(FedTreeError):  # noqa: N818 - what happened; it is tried again for a while
    """The SuperLink does not let this node's key in, now or ever."""


class _RunIsOver(Exception):  # noqa: N818 - what happened
    """The run of a message ended; nobody waits for its reply."""


@dataclass(frozen=True)
class FleetLink:
    """How a node reaches its SuperLink.

    Attributes:
        address: ``HOST:PORT``.
        certificates: PEM file of the authority that signed its certificate; None without TLS, for
            tests on one machine alone.
        key: The node's ECDSA key in OpenSSH's format, registered at the SuperLink; None where the
            SuperLink asks for none.
    """

    address: str
    certificates: Path | None = None
    key: Path | None = None

    def keys(self) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
        """Return the node's key pair; a new one without a file."""
        if self.key is None:
            made: tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey] = (
                generate_key_pairs()
            )
            return made
        try:
            found = load_ssh_private_key(self.key.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"the node's key {self.key} cannot be used ({error}); make one with `ssh-keygen -t "
                'ecdsa -b 384 -N "" -f FILE`'
            ) from None
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"the node's key {self.key} is no ECDSA key, as Flower wants")
        return found, found.public_key()


class Fleet:
    """An active node of a SuperLink, while the context lasts.

    Args:
        link: How to reach it.
        before: Number that this node had when it was last active here; it is let go first, or the
            SuperLink would wait a minute for it.

    Attributes:
        node: Its number in the network.

    Raises:
        ConfigurationError: The certificate is not to be trusted, or the clock is off.
        KeyRefused: The key is not registered, or in use.
        Unreachable: No answer.
    """

    def __init__(self, link: FleetLink, before: int | None = None) -> None:
        self._link, self._before = link, before
        self._keys = link.keys()
        self._beats: threading.Thread | None = None
        self._over, self._lost = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        link, (private, public) = self._link, self._keys
        if link.certificates is not None and not link.certificates.is_file():
            raise ConfigurationError(
                f"there are no certificates at {link.certificates}; take the authority's from the "
                "server's operator"
            )
        self._client = FleetHttpClient.from_server_address(
            link.address,
            link.certificates is None,
            None if link.certificates is None else link.certificates.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, public),
            ],
        )
        try:
            self.node = self._activate(public_key_to_bytes(public))
        except BaseException:
            self._client.close()
            raise
        self._handle = Node(node_id=self.node)
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._beats is not None:
            self._beats.join()
        with contextlib.suppress(httpx.HTTPError, ValueError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))
        self._client.close()

    def _activate(self, public: bytes) -> int:
        with _explained(self._link):
            if self._link.key is None:
                self._client.RegisterNode(RegisterNodeFleetRequest(public_key=public))
            elif self._before is not None:
                with contextlib.suppress(httpx.HTTPStatusError):
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._before))
            asked = ActivateNodeRequest(
                public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
            )
            return int(self._client.ActivateNode(asked).node_id)

    def _beat(self) -> None:
        asked = SendNodeHeartbeatRequest(
            node=self._handle, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        while not self._over.wait(HEARTBEAT_DEFAULT_INTERVAL / BEATS):
            try:
                if not self._client.SendNodeHeartbeat(asked).success:
                    self._lost.set()
            except httpx.HTTPError:  # `receive` finds out as well, and says so
                continue

    def receive(self) -> Message | None:
        """Return the next message for this node; None if there is none now, or its run is over.

        Raises:
            Unreachable: No answer, or the SuperLink does not know this node any more.
        """
        if self._lost.is_set():
            raise Unreachable(
                f"{self._link.address} took this node off its list: it was away for too long, or "
                "another node has the same key"
            )
        with contextlib.suppress(_RunIsOver):
            return self._receive()
        return None

    def _receive(self) -> Message | None:
        with _explained(self._link):
            found = self._client.PullMessages(PullMessagesRequest(node=self._handle))
            if not found.messages_list:
                return None
            head = message_from_proto(found.messages_list[0])
            run, number = head.metadata.run_id, head.metadata.message_id
            try:
                contents = pull_objects(
                    [part.object_id for part in iterate_object_tree(found.message_object_trees[0])],
                    make_pull_object_fn_protobuf(self._client.PullObject, self._handle, run),
                    max_time=WHOLE_S,
                )
                confirm = make_confirm_message_received_fn_protobuf(
                    self._client.ConfirmMessageReceived, self._handle, run
                )
                confirm(number)
                message: Any = inflate_object_from_contents(number, contents)
            except (ObjectPullError, KeyError, ValueError) as error:
                log.warning("a message could not be fetched whole: %s", type(error).__name__)
                return None
            message.metadata.__dict__["_message_id"] = number
            return message if isinstance(message, Message) else None

    def reply(self, to: Message, content: RecordDict, seconds: float) -> None:
        """Send the reply to a message; one that comes too late is dropped.

        Raises:
            Unreachable: No answer.
        """
        with contextlib.suppress(_RunIsOver):
            self._reply(to, content, seconds)

    def _reply(self, to: Message, content: RecordDict, seconds: float) -> None:
        answer = Message(content, reply_to=to)
        with _explained(self._link), no_object_id_recompute():
            answer.metadata.__dict__["_message_id"] = answer.object_id
            objects, tree = get_all_nested_objects(answer), get_object_tree(answer)
            accepted = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._handle,
                    messages_list=[message_to_proto(remove_content_from_message(answer))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._handle, to.metadata.run_id, accepted.session_id
            )
            wanted = set(accepted.objects_to_push)
            try:
                push_object_contents_from_iterable(
                    ((name, objects[name].deflate()) for name in objects if name in wanted), push
                )
            except ObjectPushError:
                log.warning("a reply came too late for its exchange")


@contextlib.contextmanager
def _explained(link: FleetLink) -> Iterator[None]:
    """Turn what httpx raises into one sentence of ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == RUN_IS_OVER:
            raise _RunIsOver from None
        raise _refused(link, status, error.response.text) from None
    except httpx.TransportError as error:
        text = str(error)
        if "certificate" in text.lower():
            raise ConfigurationError(
                f"the certificate of {link.address} is not to be trusted ({text.strip()}); nothing "
                "was sent. Ask the server's operator for the authority that signed it"
            ) from None
        raise Unreachable(f"{link.address} does not answer ({type(error).__name__})") from None


def _refused(link: FleetLink, status: int, body: str) -> FedTreeError:
    if status == httpx.codes.UNAUTHORIZED:
        return KeyRefused(
            f"{link.address} does not accept this node's signature: it is not registered there, or "
            "this machine's clock is off (`fedtree-secure site check` compares them)"
        )
    known = FlowerError.from_json(body)
    code = "" if known is None else f", code {known.code}"
    if status in (httpx.codes.BAD_GATEWAY, 503, httpx.codes.GATEWAY_TIMEOUT):
        return Unreachable(f"{link.address} is not ready (status {status})")
    return KeyRefused(
        f"{link.address} does not let this node in (status {status}{code}): its key is not "
        "registered there (`flwr supernode register KEY.pub`), or a node with the same key is "
        "still connected"
    )
