"""Wire messages: strict bytes with one encoding each.

A payload is a tagged MessagePack array. MessagePack allows one value in several encodings; a
payload that does not re-encode to itself is refused, so that a message has one name (its hash) and
nothing hides in it. What other clients must believe is signed, `signature (64 bytes) || payload`:
signatures cover a domain tag, the session, the stage, the sender and the payload's SHA-256. What
only the server reads carries a MAC under the key that client and server share, `tag (32 bytes) ||
payload`: it is checked 20 times as fast. Server messages carry neither: what matters in them is
bound by clients' signatures or by the session id.
"""

import hashlib
import hmac
import io
from collections.abc import Callable, Container
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from fedtree_secagg.agreed.identity import NAME_BYTES_MAX, Identity, Roster
from fedtree_secagg.errors import ProtocolError
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.secret import Secret

VERSION = b"fedtree-secagg/v1"
SIGNATURE_BYTES = 64
MAC_BYTES = 32
ALIGNMENT = 16

Name = Annotated[str, Meta(min_length=1, max_length=64)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Hash


class Message(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Base of all payloads and server messages: a tagged, fixed-length MessagePack array."""


class Advert(Message, frozen=True, tag="advert"):
    """A client's fresh keys of one attempt, and commitments to its seeds, in node order."""

    instance: Hash
    sender: Name
    mask_key: Key
    channel_key: Key
    commitments: tuple[Hash, ...]


class Adverts(Message, frozen=True, tag="adverts"):
    """Server to one client: its own key of this attempt, and the signed adverts of the client's
    contacts, by sender.

    `root` is the hash over all adverts that it accepted.
    """

    server_key: Key
    root: Hash
    adverts: tuple[bytes, ...]


class Shares(Message, frozen=True, tag="shares"):
    """A client's encrypted bundles for every other holder, and a digest of each bundle; both in
    holder order. MAC.

    `digests` covers all holders that advertised, the sender included if it is one; `boxes` leaves
    the sender out.
    """

    session: Hash
    sender: Name
    digests: tuple[Hash, ...]
    boxes: tuple[bytes, ...]


class Inbox(Message, frozen=True, tag="inbox"):
    """Server to one client: who shared, and from each other dealer of this client, by name, digest
    and box.

    `sharers` has a bit for each client of the plan (`group.Group`).
    """

    session: Hash
    sharers: bytes
    digests: tuple[Hash, ...]
    boxes: tuple[bytes, ...]


class Masked(Message, frozen=True, tag="masked"):
    """The signed head of an upload: with whom it is masked, nonce and tag of a MAC over the vector
    that follows.

    Its length depends on the sender's name only (`signed_bytes`). See `attach`; `sharers` is
    `session.sharers_hash` of the sharers the client was shown.
    """

    session: Hash
    sender: Name
    sharers: Hash
    nonce: Annotated[bytes, Meta(min_length=12, max_length=12)]
    tag: Annotated[bytes, Meta(min_length=16, max_length=16)]


class Survivors(Message, frozen=True, tag="survivors"):
    """Server to all: whose masked vectors are in the sums."""

    session: Hash
    survivors: bytes


class Vote(Message, frozen=True, tag="vote"):
    """A client's word for the sharers and survivors it was shown: `session.view_hash`."""

    session: Hash
    sender: Name
    view: Hash


class Votes(Message, frozen=True, tag="votes"):
    """Server to one client: a threshold of the committee's signed votes, and signed upload heads.

    The heads are those of the surviving dealers of this client whose vote is not among the votes.
    """

    session: Hash
    votes: tuple[bytes, ...]
    heads: tuple[bytes, ...]


class Reveal(Message, frozen=True, tag="reveal"):
    """A client's answer: of every sharer's bundle, each slot either opened or only hashed. MAC."""

    session: Hash
    sender: Name
    body: bytes


class Hello(Message, frozen=True, tag="sketch-hello"):
    """Sketch: a member's fresh channel key."""

    instance: Hash
    sender: Name
    channel_key: Key


class Hellos(Message, frozen=True, tag="sketch-hellos"):
    """Sketch, server to all: every member's signed hello, by sender."""

    hellos: tuple[bytes, ...]


class Seal(Message, frozen=True, tag="sketch-seal"):
    """Sketch: the leader's encrypted seed for each other member, by name, and its commitment."""

    session: Hash
    sender: Name
    commitment: Hash
    boxes: tuple[bytes, ...]


class Sketch(Message, frozen=True, tag="sketch"):
    """Sketch: a member's blinded projections, `layers * size` words of 32 bits."""

    session: Hash
    sender: Name
    commitment: Hash
    layers: Annotated[int, Meta(ge=1, le=65535)]
    size: Annotated[int, Meta(ge=1, le=65535)]
    scale: float
    body: bytes


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return the one encoding of a message."""
    return msgspec.msgpack.encode(message)


def decode(kind: type[M], data: bytes) -> M:
    """Return the message in these bytes; refuse another type, more bytes, another encoding."""
    if not isinstance(data, bytes):
        raise ProtocolError(f"{kind.__name__.lower()}: expected bytes, got {type(data).__name__}")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The cause is not chained: decoder errors can quote the input.
        raise ProtocolError(f"{kind.__name__.lower()}: these bytes are no such message") from None
    if encode(message) != data:
        raise ProtocolError(f"{kind.__name__.lower()}: not in the one encoding allowed")
    return message


def signed_input(context: bytes, stage: str, sender: str, payload: bytes) -> bytes:
    """Return what is signed: version, stage, session or instance, sender, the payload's hash."""
    name, tag = sender.encode(), stage.encode()
    head = VERSION + b"/signature\0" + bytes([len(tag)]) + tag + context + bytes([len(name)]) + name
    return head + hashlib.sha256(payload).digest()


def sign(identity: Identity, context: bytes, message: Message, sender: str) -> bytes:
    """Return `signature || payload` of a message."""
    payload = encode(message)
    return identity.sign(signed_input(context, _stage(type(message)), sender, payload)) + payload


def signed_bytes(message: Message) -> int:
    """Return the length of this message once it is signed."""
    return SIGNATURE_BYTES + len(encode(message))


def verify(
    kind: type[M],
    data: bytes,
    roster: Roster,
    context: bytes,
    sender: str | None = None,
    *,
    own: Container[bytes] = (),
) -> M:
    """Return a signed message after checking type, encoding, sender, context and signature.

    Args:
        kind: the message type expected.
        data: `signature || payload`.
        roster: the pinned keys.
        context: the session or instance that the message must be bound to, 32 bytes.
        sender: who must have sent it; None takes the name in the message, which the signature then
            has to match.
        own: what the reader signed itself in this context: these very bytes need no look at the
            signature.

    Raises:
        ProtocolError: blames nobody, since anyone on the way may have changed the bytes.
    """
    message, name, payload = _opened(kind, data, SIGNATURE_BYTES, sender)
    if data in own:
        return message
    if not roster.verifies(
        name, data[:SIGNATURE_BYTES], signed_input(context, _stage(kind), name, payload)
    ):
        raise ProtocolError(
            f"{_stage(kind)} of {name!r}: the signature does not match roster, session and content"
        )
    return message


def authenticate(link: Secret, message: Message, sender: str) -> bytes:
    """Return `tag || payload` of a message for the server, under the key agreed with it."""
    payload = encode(message)
    return keys.message_tag(link, _stage(type(message)), sender, payload) + payload


def verify_for_server(kind: type[M], data: bytes, link: Secret, sender: str) -> M:
    """Return a client's message, its type, encoding, sender and tag checked.

    The key stands for the session.

    Raises:
        ProtocolError: blames nobody, since anyone on the way may have changed the bytes.
    """
    message, _, payload = _opened(kind, data, MAC_BYTES, sender)
    if not hmac.compare_digest(
        data[:MAC_BYTES], keys.message_tag(link, _stage(kind), sender, payload)
    ):
        raise ProtocolError(
            f"{_stage(kind)} of {sender!r}: the tag does not match session, sender and content"
        )
    return message


def _opened(kind: type[M], data: bytes, lead: int, sender: str | None) -> tuple[M, str, bytes]:
    if not isinstance(data, bytes) or len(data) <= lead:
        raise ProtocolError(f"{_stage(kind)}: too short for such a message")
    payload = data[lead:]
    message = decode(kind, payload)
    name = str(message.sender)  # type: ignore[attr-defined]
    if len(name.encode()) > NAME_BYTES_MAX:  # the decoder counts characters
        raise ProtocolError(f"{_stage(kind)}: its sender is no name")
    if sender is not None and name != sender:
        raise ProtocolError(
            f"{_stage(kind)}: names {name!r} as its sender where {sender!r} is expected"
        )
    return message, name, payload


def attach(head_bytes: int, body_bytes: int, write: Callable[[memoryview], bytes]) -> bytes:
    """Return `u16(length) || signed head || zeros up to a multiple of 16 || body`: an upload.

    The zeros align the words of the body, which makes adding them up several times faster. The body
    is written where it is sent from: an update of many megabytes is not copied, nor is fresh memory
    asked for twice.

    Args:
        head_bytes: length of the signed head.
        body_bytes: length of the body.
        write: fills the body, which is zero before, keeps no view of it, and returns the signed
            head.
    """
    end = 2 + head_bytes
    start = end + -end % ALIGNMENT
    upload = io.BytesIO(bytes(start + body_bytes))
    whole = upload.getbuffer()
    body = whole[start:]
    # When it fails, its frame still holds the views: nothing is released here then.
    signed = write(body)
    whole[:end] = len(signed).to_bytes(2, "big") + signed
    body.release()
    whole.release()
    return upload.getvalue()


def detach(data: bytes) -> tuple[bytes, memoryview]:
    """Return the signed message and the body of an upload, the body without copying it."""
    if not isinstance(data, bytes) or len(data) < 2:
        raise ProtocolError("masked: these bytes are no upload")
    end = 2 + int.from_bytes(data[:2], "big")
    start = end + -end % ALIGNMENT
    if any(data[end:start]):
        raise ProtocolError("masked: these bytes are no upload")
    return data[2:end], memoryview(data)[start:]


def _stage(kind: type[Message]) -> str:
    return str(kind.__struct_config__.tag)
