"""Requests as they travel: signed by the server, for one client, in one run, with a counter.

A client looks at nothing that the pinned key did not sign. The counter only grows, so a request is
answered at most once, whatever a network repeats, delays or reorders. `answered` is the number of
the last request that the server saw this client answer: a client that finds it ahead of its own
counter was set back to an older copy of its store, and says so instead of answering twice. What
several clients are told alike in requests that differ (`messages.apart`) lies beside the body, so
that a network may carry it once; the signature covers both.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_secagg import Identity
from fedtree_secure.agreed.messages import (
    Message,
    Request,
    WireError,
    apart,
    decode_request,
    encode,
    encode_experts,
    together,
)

_TAG = b"fedtree-secure/request/v2\n"
LARGEST_COUNTER = 2**53 - 1


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    run: str
    to: str
    counter: int
    answered: int
    body: bytes
    alike: bytes | None
    signature: bytes


@dataclass(frozen=True)
class Opened:
    """A request whose signature holds.

    Attributes:
        counter: Its number, from 1.
        answered: Number of the last request that the server saw answered; 0 if none.
        message: What it asks for.
    """

    counter: int
    answered: int
    message: Request


def seal(server: Identity, run: str, to: str, counter: int, answered: int, body: bytes) -> bytes:
    """Sign a request.

    Args:
        server: The server's key pair.
        run: Name of the run, see `Terms`.
        to: The client that may answer.
        counter: Above that of every request to this client before.
        answered: Number of the last request that the client answered, 0 if none.
        body: The encoded message.
    """
    place = (run, to, counter, answered)
    signature = server.sign(_signed(*place, _digest(body), _digest(b"")))
    return msgspec.msgpack.encode(_Envelope(*place, body, None, signature))


class Requests(Mapping[str, bytes]):
    """The sealed requests of an exchange, each made when it is looked up and not kept.

    A proposed tree of 1,000 clients has megabytes, and all its envelopes together would fill the
    memory of a server, or of a process that plays all parties.

    Args:
        server: The server's key pair.
        run: Name of the run.
        counter: Of the exchange.
        answered: Number of the last request that each client answered.
        messages: By client; equal ones are one object, which is encoded once, and so are the
            experts in them.
    """

    def __init__(
        self,
        server: Identity,
        run: str,
        counter: int,
        answered: Mapping[str, int],
        messages: Mapping[str, Message],
    ) -> None:
        self._server, self._run, self._counter = server, run, counter
        self._answered, self._messages = dict(answered), messages
        self._bodies: dict[int, tuple[bytes, bytes]] = {}
        self._alike: dict[int, tuple[bytes, bytes]] = {}
        self._sizes: dict[str, int] = {}

    def __getitem__(self, client: str) -> bytes:
        """Return a client's request; the same bytes every time."""
        message = self._messages[client]
        own, experts = apart(message)
        if id(message) not in self._bodies:
            body = encode(own)
            self._bodies[id(message)] = body, _digest(body)
        if experts is not None and id(experts) not in self._alike:
            told = encode_experts(experts)
            self._alike[id(experts)] = told, _digest(told)
        body, digest = self._bodies[id(message)]
        alike: bytes | None
        alike, other = self._alike.get(id(experts), (None, _digest(b"")))
        answered = self._answered.get(client, 0)
        place = (self._run, client, self._counter, answered)
        signature = self._server.sign(_signed(*place, digest, other))
        found = msgspec.msgpack.encode(_Envelope(*place, body, alike, signature))
        self._sizes[client] = len(found)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def bytes_sent(self) -> int:
        """Bytes of the requests that were looked up."""
        return sum(self._sizes.values())


def bytes_of(requests: Mapping[str, bytes]) -> int:
    """Bytes of an exchange's requests, none of which is made again for it."""
    if isinstance(requests, Requests):
        return requests.bytes_sent()
    return sum(map(len, requests.values()))


def open_request(data: bytes, server_key: bytes, run: str, me: str) -> Opened:
    """Check who signed a request, for whom and in which run; then decode it.

    Raises:
        WireError: Not signed by the pinned key, for another client or run, an impossible counter,
            or a body that is no request.
    """
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
        raise WireError(f"{len(data)} bytes are no signed request") from None
    try:
        Ed25519PublicKey.from_public_bytes(server_key).verify(
            found.signature,
            _signed(
                found.run,
                found.to,
                found.counter,
                found.answered,
                _digest(found.body),
                _digest(found.alike or b""),
            ),
        )
    except (InvalidSignature, OverflowError, UnicodeEncodeError):
        raise WireError("a request that the pinned server key did not sign") from None
    if (found.run, found.to) != (run, me):
        raise WireError("a request of another run, or for another client")
    if not 0 <= found.answered < found.counter <= LARGEST_COUNTER:
        raise WireError("a request with an impossible counter")
    message = together(decode_request(found.body), found.alike or b"")
    return Opened(found.counter, found.answered, message)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Take out of a sealed request what may be alike for several clients, so that a network may
    carry that once: what lies beside the body, or else the body.

    Returns:
        What is one client's alone, and the rest, which the signature in the first covers.
    """
    found = _decoder.decode(data)
    if found.alike:
        return msgspec.msgpack.encode(msgspec.structs.replace(found, alike=b"")), found.alike
    return msgspec.msgpack.encode(msgspec.structs.replace(found, body=b"")), found.body


def joined(head: bytes, body: bytes) -> bytes:
    """Put a request together again; byte for byte what `seal` made.

    Raises:
        WireError: The head is no request that lacks something.
    """
    try:
        found = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
        raise WireError(f"{len(head)} bytes are no request") from None
    lacks = [part for part in ("body", "alike") if getattr(found, part) == b""]
    if len(lacks) != 1:
        raise WireError("a request with two bodies")
    return msgspec.msgpack.encode(msgspec.structs.replace(found, **{lacks[0]: body}))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _signed(run: str, to: str, counter: int, answered: int, body: bytes, alike: bytes) -> bytes:
    place = msgspec.msgpack.encode([run, to, counter, answered])
    return _TAG + len(place).to_bytes(4, "big") + place + body + alike


_decoder: "msgspec.msgpack.Decoder[_Envelope]" = msgspec.msgpack.Decoder(_Envelope)
