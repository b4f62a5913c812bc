"""Messages between coordinator and participants: tagged structs in MessagePack, decoded strictly.

Protocol messages of `fedtree_secagg` travel inside as opaque bytes; they carry their own signatures
and session ids. What is public by design (configuration, tree, opened means) travels in the open.
Nothing else about a client's rows is
ever put into a message: no counts, losses, norms or free text.
"""

import hashlib
from typing import Any

import msgspec
import numpy as np

from fedtree_secure.errors import FedTreeError


class WireError(FedTreeError):
    """A message is not one that this stage allows, or does not decode."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of all messages."""


# --- coordinator to participant -------------------------------------------------------------------


class Join(Message, frozen=True, tag="join"):
    """Opens a job: the participant compares the digests with its own configuration, roster and
    model.
    """

    job: bytes
    roster: bytes


class SketchHello(Message, frozen=True, tag="sketch-hello"):
    """Asks for a key advert of the group that agrees on the secret projection."""

    members: tuple[str, ...]
    attempt: int


class SketchSeal(Message, frozen=True, tag="sketch-seal"):
    """Carries all adverts; the first member answers with the sealed seed for each other member."""

    hellos: bytes


class SketchSend(Message, frozen=True, tag="sketch-send"):
    """Carries the sealed seed; the participant answers with its blinded sketch, charged before it
    leaves.
    """

    sealed: bytes


class Distances(Message, frozen=True, tag="distances"):
    """What the server learnt: the participant repeats the clustering and signs nothing else (attack
    7).

    Attributes:
        squared: float64 little-endian bytes of shape (layers, clients, clients).
        labels: The server's tree, one row of cluster numbers per part.
    """

    members: tuple[str, ...]
    noise: tuple[float, ...]
    squared: bytes
    labels: tuple[tuple[int, ...], ...]


class Prepare(Message, frozen=True, tag="prepare"):
    """Asks for what a participant trains alone before the first round (its head)."""


class Begin(Message, frozen=True, tag="begin"):
    """Starts a round for a participant that belongs to at least one node.

    Attributes:
        round, attempt: Counters; neither may ever go back.
        merge: True if the warm-up's change is uploaded instead of a newly trained one.
        cluster, external: float32 bytes of the participant's experts (see `Layout`).
        clip: Largest absolute value of an uploaded coordinate.
    """

    round: int
    attempt: int
    merge: bool
    clip: float
    cluster: bytes
    external: bytes


class Alone(Message, frozen=True, tag="alone"):
    """Starts a round for a participant that shares no layer with anyone."""

    round: int
    cluster: bytes
    external: bytes


class Share(Message, frozen=True, tag="share"):
    """All adverts of the round."""

    adverts: bytes


class Mask(Message, frozen=True, tag="mask"):
    """The encrypted shares for this participant; it trains now and answers with its masked
    update.
    """

    inbox: bytes


class Confirm(Message, frozen=True, tag="confirm"):
    """The survivor set."""

    survivors: bytes


class Reveal(Message, frozen=True, tag="reveal"):
    """Everybody's signature over the survivor set."""

    votes: bytes


class Finish(Message, frozen=True, tag="finish"):
    """The last experts; the participant keeps them, evaluates and saves at home."""

    cluster: bytes
    external: bytes


# --- participant to coordinator -------------------------------------------------------------------


class Joined(Message, frozen=True, tag="joined"):
    """Public facts of a participant's mechanism: they stand in its privacy statement.

    Attributes:
        noise_multiplier: Of its rounds (the most it will use); 0 if it takes part in none.
        records: Its declared number of records.
        fingerprint_noise: Noise multiplier of its fingerprint; 0 if there is none.
        outputs: Number of outputs of its head; 0 for language modelling.
    """

    noise_multiplier: float
    records: int
    fingerprint_noise: float
    outputs: int


class Protocol(Message, frozen=True, tag="protocol"):
    """A message of the masking or sketch protocol, possibly empty."""

    payload: bytes


class Done(Message, frozen=True, tag="done"):
    """The stage is finished and there is nothing to send."""


class Refused(Message, frozen=True, tag="refused"):
    """The participant does not take part in this stage.

    Attributes:
        reason: One of `REASONS`; never free text, which could carry data.
    """

    reason: str


Request = (
    Join
    | SketchHello
    | SketchSeal
    | SketchSend
    | Distances
    | Prepare
    | Begin
    | Alone
    | Share
    | Mask
    | Confirm
    | Reveal
    | Finish
)
Reply = Joined | Protocol | Done | Refused
REASONS = ("budget", "clip", "merge", "mismatch", "tree")

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """Serialise a message."""
    return _encoder.encode(message)


def digest(message: Message) -> str:
    """SHA-256 of a serialised message, in hexadecimal."""
    return hashlib.sha256(encode(message)).hexdigest()


def decode_request(data: bytes) -> Request:
    """Decode what a participant received; `WireError` if it is no request."""
    return _decode(_requests, data)  # type: ignore[no-any-return]


def decode_reply(data: bytes) -> Reply:
    """Decode what the coordinator received; `WireError` if it is no reply."""
    reply = _decode(_replies, data)
    if isinstance(reply, Refused) and reply.reason not in REASONS:
        raise WireError(
            f"a refusal gives the reason {reply.reason!r}; allowed: {', '.join(REASONS)}"
        )
    return reply  # type: ignore[no-any-return]


def _decode(decoder: Any, data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise WireError(f"a message of {len(data)} bytes does not decode: {error}") from None


def pack(vector: "np.ndarray[Any, Any]") -> bytes:
    """Serialise an expert as little-endian float32."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def unpack(data: bytes, length: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Read an expert of ``length`` values; `WireError` on another length or a value that is not
    finite.
    """
    if len(data) != 4 * length:
        raise WireError(f"an expert has {len(data)} bytes; this model's has {4 * length}")
    vector = np.frombuffer(data, dtype="<f4")
    if not np.isfinite(vector).all():
        raise WireError("an expert has values that are not finite")
    return vector.astype(np.float32)
