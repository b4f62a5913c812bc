"""What a request asks and what a reply says: tagged structs in MessagePack, decoded strictly.

Messages of `fedtree_secagg` travel inside as opaque bytes; they carry their own signatures and
session ids. What is public by design (configuration, tree, opened sums) travels in the open.
Nothing else about a client's rows is ever put into a message: no counts, losses, norms or free
text. Requests are signed as a whole (`envelope`). Every decoder raises `WireError` alone.
"""

import hashlib
import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from fedtree_secure.errors import FedTreeError


class WireError(FedTreeError):
    """A message does not decode, or is not one that this stage allows. Nothing was changed."""


Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of all messages."""


class OpenedSum(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The opened sum of a node in a round.

    Attributes:
        round: Its round.
        node: Name of the node.
        survivors: How many clients' updates are in it.
        clip: The clip of its round, which gives the grid.
        total: (node.width,) int32, little endian: the sum of their quantised integers.
        era: Which tree of the run it was opened under, from 0 (`agreed.cohort`).
    """

    round: Count
    node: Name
    survivors: Positive
    clip: float
    total: bytes
    era: Count = 0


class NodeDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What all members of a node must hold alike.

    Attributes:
        node: Name of the node.
        values: SHA-256 of its values.
        external: SHA-256 of the external expert in its coordinates.
    """

    node: Name
    values: Hash
    external: Hash


# --- server to client ---------------------------------------------------------------------------


class Join(Message, frozen=True, tag="join"):
    """Opens or reopens a run.

    Attributes:
        terms: `Terms.digest`; a client with another job, roster or server key refuses.
        model: Digest of the model.
    """

    terms: Hash
    model: Hash


class SketchHello(Message, frozen=True, tag="sketch-hello"):
    """Asks for a key advert of the group that agrees on the secret projection.

    Attributes:
        members: The clients that joined, sorted.
        attempt: Counter of the server's starts; no sketch of an attempt is made twice.
    """

    members: tuple[Name, ...]
    attempt: Positive


class GradientHello(Message, frozen=True, tag="gradient-hello"):
    """Asks for the same before a sketch of the first round's gradients.

    Attributes:
        members, attempt: As in `SketchHello`; attempts are counted by themselves.
        experts: What the gradients are taken at, heads merged.
    """

    members: tuple[Name, ...]
    attempt: Positive
    experts: "Experts"


class SketchSeal(Message, frozen=True, tag="sketch-seal"):
    """Carries all adverts; the first member answers with the sealed seed for each other member."""

    hellos: bytes


class SketchSend(Message, frozen=True, tag="sketch-send"):
    """Carries the sealed seed; the client answers with its blinded sketch, charged before."""

    sealed: bytes


class Gradients(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a sketch of the first round's gradients told.

    Attributes:
        attempt: Of that sketch.
        noise: Variance of the noise in one value of each member's gradient, in their order.
        squared: float64 little-endian bytes of shape (layers, members, members).
    """

    attempt: Positive
    noise: tuple[float, ...]
    squared: bytes


class ProposeTree(Message, frozen=True, tag="propose-tree"):
    """What the server learnt, and the tree that follows from it.

    Attributes:
        attempt: Of the sketch that the distances come from.
        members: Clients whose sketches are in it, sorted.
        noise: Expected squared norm of the noise in a layer of each member's vector.
        squared: float64 little-endian bytes of shape (layers, members, members).
        labels: One row of cluster numbers per part.
        gradients: Where the tree is cut by bias and variance; else None.
    """

    attempt: Positive
    members: tuple[Name, ...]
    noise: tuple[float, ...]
    squared: bytes
    labels: tuple[tuple[Count, ...], ...]
    gradients: Gradients | None = None


class AdoptTree(Message, frozen=True, tag="adopt-tree"):
    """Proof that a quorum signed the same proposal.

    Attributes:
        votes: Client id and Ed25519 signature of each; see `agreed.round_plan.vote_bytes`.
    """

    votes: tuple[tuple[Name, bytes], ...]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What changes in the cohort between rounds, see `agreed.cohort`.

    Attributes:
        number: Which change of the run, from 1.
        before: What the tree before it comes from; empty for one that needed no proposal.
        gone: All who left so far, sorted: name and the client's own signature over
            `agreed.cohort.leave_bytes`, which is empty where the server declares it gone.
        late: Clients that come late in this batch, sorted.
        distances: Of fingerprints, theirs among them, without labels; None where nobody comes.
        labels: One row of cluster numbers per part.
    """

    number: Positive
    before: Annotated[str, Meta(max_length=64)]
    gone: tuple[tuple[Name, Annotated[bytes, Meta(max_length=64)]], ...]
    late: tuple[Name, ...]
    distances: ProposeTree | None
    labels: tuple[tuple[Count, ...], ...]


class ProposeChange(Message, frozen=True, tag="propose-change"):
    """Asks for a client's signature over a change that it computes itself."""

    change: Change


class Learn(Message, frozen=True, tag="learn"):
    """Everything that a client must know to hold the tree in force, with a quorum's signatures.

    Attributes:
        tree: The first proposal; None where the client knows it, or the job's tree needs none.
        votes: Over it, as in `AdoptTree`.
        changes: Those that the client does not know, in order, each with its votes over
            `agreed.cohort.change_vote_bytes`.
    """

    tree: ProposeTree | None
    votes: tuple[tuple[Name, bytes], ...]
    changes: tuple[tuple[Change, tuple[tuple[Name, bytes], ...]], ...]


class Prepare(Message, frozen=True, tag="prepare"):
    """Asks for what a client trains alone before the first round (its head)."""


class DrawCommit(Message, frozen=True, tag="draw-commit"):
    """Asks for a commitment to a client's part of the randomness that draws the sparse graph.

    Attributes:
        number: Of the ceremony for this tree, see `fedtree_secagg.beacon`.
        merge: Whether the graph is that of the merge round, or of all later ones.
    """

    number: Count
    merge: bool


class DrawOpen(Message, frozen=True, tag="draw-open"):
    """Carries the commitments of all; the client answers with its part."""

    commitments: bytes


class DrawKeep(Message, frozen=True, tag="draw-keep"):
    """Carries the parts of all; the client checks them and keeps what they draw."""

    openings: bytes


class Experts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a client needs to hold the experts of this moment.

    Attributes:
        opened: Sums of its nodes since the last round that it knows, by round, then by node.
        digests: Of every node of the tree, by name.
        external: float32 little-endian bytes of its external expert.
    """

    opened: tuple[OpenedSum, ...]
    digests: tuple[NodeDigest, ...]
    external: bytes


class Begin(Message, frozen=True, tag="begin"):
    """Starts a round for a client that belongs to at least one node: asks for its keys.

    Attributes:
        round, attempt: Counters; neither may ever go back.
        merge: True if what was trained alone before is uploaded, instead of a newly trained change.
        clip: Largest absolute value of an uploaded coordinate, fixed for the run.
        experts: See `Experts`; None in a round that is dealt ahead, whose experts nobody knows yet:
            they come with its `Mask`.
        beacon: What the sparse graph of this round is drawn by; empty for the complete graph.
    """

    round: Count
    attempt: Positive
    merge: bool
    clip: float
    experts: Experts | None
    beacon: Annotated[bytes, Meta(max_length=32)] = b""


class Alone(Message, frozen=True, tag="alone"):
    """Starts a round for a client that shares no layer with anyone."""

    round: Positive
    experts: Experts


class Share(Message, frozen=True, tag="share"):
    """All adverts of the round."""

    adverts: bytes


class Mask(Message, frozen=True, tag="mask"):
    """The encrypted shares for this client; it trains now and answers with its masked update.

    Attributes:
        inbox: The shares.
        experts: What the round begins with, where its keys were dealt ahead; else None.
        ahead: The next round, to deal its keys with this one's last exchanges; or None.
    """

    inbox: bytes
    experts: Experts | None = None
    ahead: Begin | None = None


class Confirm(Message, frozen=True, tag="confirm"):
    """The survivor set, and all adverts of the next round where that is dealt ahead; else empty."""

    survivors: bytes
    adverts: bytes = b""


class Reveal(Message, frozen=True, tag="reveal"):
    """Everybody's signature over the survivor set."""

    votes: bytes


class Finish(Message, frozen=True, tag="finish"):
    """The last experts; the client checks them, and signs what all members must hold alike."""

    experts: Experts


class Deliver(Message, frozen=True, tag="deliver"):
    """Proof that enough members hold the same last experts; the client keeps them now.

    Attributes:
        votes: Client id and Ed25519 signature of each; see `agreed.round_plan.finish_bytes`.
    """

    votes: tuple[tuple[Name, bytes], ...]


# --- client to server ---------------------------------------------------------------------------


class Joined(Message, frozen=True, tag="joined"):
    """Public facts of a client's mechanism: they stand in its privacy statement.

    Attributes:
        noise_multiplier: Of its rounds (the most it will use); 0 if it takes part in none.
        records: Its declared number of records.
        fingerprint_noise: Noise multiplier of its fingerprint; 0 if there is none.
        outputs: Number of outputs of its head; 0 for language modelling.
        known_round: Last round whose opened sums it holds; -1 if none.
        trees: How many trees of the run it knows; 0 before it adopts the first.
    """

    noise_multiplier: Annotated[float, Meta(ge=0, le=1e6)]
    records: Positive
    fingerprint_noise: Annotated[float, Meta(ge=0, le=1e9)]
    outputs: Annotated[int, Meta(ge=0, le=10**6)]
    known_round: Annotated[int, Meta(ge=-1, le=2**31 - 1)]
    trees: Count = 0


class Learnt(Message, frozen=True, tag="learnt"):
    """What a client holds after `Learn`; fields as in `Joined`."""

    known_round: Annotated[int, Meta(ge=-1, le=2**31 - 1)]
    trees: Count


class Left(Message, frozen=True, tag="left"):
    """The client left the run for good, and answers nothing else any more.

    Attributes:
        signature: Over `agreed.cohort.leave_bytes`.
    """

    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Protocol(Message, frozen=True, tag="protocol"):
    """A message of the masking or sketch protocol, possibly empty.

    Attributes:
        payload: The message.
        ahead: That of the next round, which is dealt ahead: an advert, or shares; else empty.
    """

    payload: bytes
    ahead: bytes = b""


class Voted(Message, frozen=True, tag="voted"):
    """A client's Ed25519 signature over a proposed tree, or over the last experts."""

    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Done(Message, frozen=True, tag="done"):
    """The stage is finished and there is nothing to send."""


class Refused(Message, frozen=True, tag="refused"):
    """The client does not take part in this stage, for a reason that is public.

    Attributes:
        reason: One of `REASONS`; never free text, which could carry data.
    """

    reason: str


Request = (
    Join
    | SketchHello
    | GradientHello
    | SketchSeal
    | SketchSend
    | ProposeTree
    | AdoptTree
    | ProposeChange
    | Learn
    | Prepare
    | DrawCommit
    | DrawOpen
    | DrawKeep
    | Begin
    | Alone
    | Share
    | Mask
    | Confirm
    | Reveal
    | Finish
    | Deliver
)
Reply = Joined | Protocol | Voted | Learnt | Left | Done | Refused

# budget: the ledger affords no more. clip, experts, tree: what the server sent is not what follows
# from the public computations. gone: it was declared gone, or
# would be and is here. graph: the graph is not the one that this client helped to draw, or the job
# wants a sparse one. merge: what was trained alone was uploaded once. mismatch: other terms or
# another model. policy: the site's operator did not approve the job, or the site's policy forbids
# it; by which rule, the server is not told. set-back: the client's store is older than what it
# answered. turn: the round is another's turn.
REASONS = (
    *("budget", "clip", "experts", "gone", "graph", "merge", "mismatch", "policy", "set-back"),
    *("sketch", "tree", "turn"),
)

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_experts: msgspec.msgpack.Decoder[Experts] = msgspec.msgpack.Decoder(Experts)


def encode(message: Message) -> bytes:
    """Serialise a message."""
    return _encoder.encode(message)


def digest(message: Message) -> str:
    """SHA-256 of a serialised message, in hexadecimal."""
    return hashlib.sha256(encode(message)).hexdigest()


def decode_request(data: bytes) -> Request:
    """Decode what a client received; `WireError` if it is no request."""
    return _decode(_requests, data)  # type: ignore[no-any-return]


def apart(message: Message) -> tuple[Message, Experts | None]:
    """Take what several clients are told alike out of a message that is one client's alone."""
    if isinstance(message, Mask) and message.experts is not None:
        return msgspec.structs.replace(message, experts=None), message.experts
    return message, None


def encode_experts(experts: Experts) -> bytes:
    """Serialise what was taken out."""
    return _encoder.encode(experts)


def together(message: Request, alike: bytes) -> Request:
    """Undo `apart`; ``alike`` is empty where nothing was taken out.

    Raises:
        WireError: It is not what such a message lacks.
    """
    if not alike:
        return message
    if not isinstance(message, Mask) or message.experts is not None:
        raise WireError("a request with experts that it does not lack")
    return msgspec.structs.replace(message, experts=_decode(_experts, alike))


def decode_reply(data: bytes) -> Reply:
    """Decode what the server received; `WireError` if it is no reply."""
    reply = _decode(_replies, data)
    if isinstance(reply, Refused) and reply.reason not in REASONS:
        raise WireError(f"a refusal for no reason that exists; allowed: {', '.join(REASONS)}")
    if isinstance(reply, Joined) and not _finite(reply.noise_multiplier, reply.fingerprint_noise):
        raise WireError("a client joins with a noise multiplier that is no number")
    return reply  # type: ignore[no-any-return]


def _finite(*numbers: float) -> bool:
    return all(math.isfinite(number) for number in numbers)


def _decode(decoder: Any, data: bytes) -> Any:
    if not isinstance(data, bytes):
        raise WireError(f"a message must be bytes, not {type(data).__name__}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
        # The cause is not shown: decoder errors can quote what they read.
        raise WireError(f"{len(data)} bytes are no message of this protocol") from None


def pack(vector: "np.ndarray[Any, Any]") -> bytes:
    """Serialise an expert as little-endian float32."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def unpack(data: bytes, length: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Read an expert of ``length`` values; `WireError` on another length or if not finite."""
    if len(data) != 4 * length:
        raise WireError(f"an expert has {len(data)} bytes; this model's has {4 * length}")
    vector = np.frombuffer(data, dtype="<f4")
    if not np.isfinite(vector).all():
        raise WireError("an expert has values that are not finite")
    return vector.astype(np.float32)
