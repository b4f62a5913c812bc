"""Pairwise distances for the server, from blinded random projections whose seed it never sees.

The members agree end to end on a secret seed: the first member by name draws it and encrypts it to
each of the others. From it come, per layer, a Gaussian projection P and one uniform real vector u
on [0, 2^32). A member sends floor(scale * P x + u) modulo 2^32. Since u is uniform, the joint
distribution of all messages depends on the differences of the x alone, exactly, rounding included
(u's fractional part is a common dither); since the rows of P are Gaussian, on their pairwise
distances alone: neither norms nor directions.

Accuracy: a squared distance d^2 has relative standard error sqrt(2 / size), a distance 1 / sqrt(2 *
size); the grid adds `grid_bias(scale)` at most. What it does not protect: one member that colludes
with the server gives it P and u, and so `size` linear functions of everyone's x; x must be
differentially private before it gets here.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedtree_secagg.agreed.identity import Identity, Roster
from fedtree_secagg.agreed.plan import SMALLEST_GROUP
from fedtree_secagg.errors import ConfigurationError, ProtocolError, ThresholdError, message_of
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.gaussian import Projection
from fedtree_secagg.primitives.secret import OneShot, Secret, check_randomness
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Hello, Hellos, Seal, Sketch

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-64, 2.0**64  # finite distances, whoever chose the scale
LIMIT = 2.0**30  # |scale * P x| below this: differences stay below 2^31 and cannot wrap
DEFAULT_SCALE = 2.0**16


class Group:
    """The verified hellos of one sketch: who takes part, their keys, and the session id."""

    def __init__(
        self,
        roster: Roster,
        members: Sequence[str],
        context: bytes,
        signed: Sequence[bytes],
        senders: Sequence[str] | None = None,
    ) -> None:
        self.roster = roster
        self.instance = instance_hash(roster, members, context)
        self.hellos: dict[str, Hello] = {}
        taken: set[bytes] = set()
        known: Sequence[str | None] = senders or [None] * len(signed)
        for data, sender in zip(signed, known, strict=True):
            with message_of(sender):
                hello = messages.verify(Hello, data, roster, self.instance, sender)
                if hello.sender not in members or hello.instance != self.instance:
                    raise ProtocolError(
                        f"hello of {hello.sender!r}: not for this sketch", blames=hello.sender
                    )
                keys.check_public(hello.channel_key, hello.sender)
                if hello.channel_key in taken:
                    raise ProtocolError(
                        f"hellos: {hello.sender!r} shows the same key as another member"
                    )
            taken.add(hello.channel_key)
            self.hellos[hello.sender] = hello
        self.names = tuple(self.hellos)
        if list(self.names) != sorted(self.names) or len(self.names) != len(signed):
            raise ProtocolError(
                "hellos: not in the order of their senders' names, or one occurs twice"
            )
        if len(self.names) < SMALLEST_GROUP:
            raise ThresholdError("sketch", present=len(self.names), threshold=SMALLEST_GROUP)
        hashes = b"".join(hashlib.sha256(data).digest() for data in signed)
        self.id = keys.digest(b"sketch-session", self.instance, hashlib.sha256(hashes).digest())

    @property
    def leader(self) -> str:
        """The member that draws the seed: the first by name of those who said hello."""
        return self.names[0]

    def binding(self, member: str, commitment: bytes) -> tuple[str | bytes, ...]:
        """Return what the box for a member is bound to."""
        return (self.id, self.leader, member, commitment)


class _Member(OneShot):
    __slots__ = ("context", "identity", "members", "name", "roster")

    identity: Identity
    name: str
    roster: Roster
    members: tuple[str, ...]
    context: bytes


class Greeted(_Member):
    """After `hello`."""

    __slots__ = ("channel", "signed")

    channel: keys.Pair
    signed: bytes


class Sealed(OneShot):
    """After `seal`: the group is fixed; the leader holds the seed."""

    __slots__ = ("channel", "group", "identity", "name", "seed")

    identity: Identity
    name: str
    group: Group
    channel: keys.Pair
    seed: Secret | None


class Ready(OneShot):
    """After `unseal`: the shared seed is known; serves one `encode`."""

    __slots__ = ("commitment", "group", "identity", "name", "seed")

    identity: Identity
    name: str
    group: Group
    seed: Secret
    commitment: bytes


def hello(
    identity: Identity,
    name: str,
    roster: Roster,
    members: Sequence[str],
    context: bytes,
    *,
    randomness: bytes,
) -> tuple[Greeted, bytes]:
    """Make and sign a fresh channel key.

    Args:
        identity: this member's identity.
        name: this member.
        roster: pinned keys.
        members: everyone who may take part, at least 3.
        context: SHA-256 of what the sketch serves: job, rebuild number, model, layers. Never the
            same twice.
        randomness: 32 fresh bytes.
    """
    instance = instance_hash(roster, members, context)
    if name not in members or roster.keys[name] != identity.public_bytes:
        raise ConfigurationError(
            f"{name!r} is no member, or the roster pins another key for it than this identity's"
        )
    state = Greeted()
    state.identity, state.name, state.roster = identity, name, roster
    state.members, state.context = tuple(sorted(members)), context
    state.channel = keys.Pair(keys.Stream(check_randomness(randomness), b"sketch-hello")(32))
    message = Hello(instance, name, state.channel.public_bytes)
    state.signed = messages.sign(identity, instance, message, name)
    return state, state.signed


def seal(state: Greeted, hellos: bytes, *, randomness: bytes) -> tuple[Sealed, bytes]:
    """Check the hellos; the leader draws the seed and encrypts it to all others, who send b""."""
    stream = keys.Stream(check_randomness(randomness), b"sketch-seal")
    with state:
        group = Group(
            state.roster, state.members, state.context, messages.decode(Hellos, hellos).hellos
        )
        if group.hellos.get(state.name) != messages.decode(
            Hello, state.signed[messages.SIGNATURE_BYTES :]
        ):
            raise ProtocolError("hellos: this member's own hello is missing or changed")
        following = Sealed()
        following.identity, following.name, following.group = state.identity, state.name, group
        following.channel, following.seed = state.channel, None
        if state.name != group.leader:
            return following, b""
        following.seed = Secret(stream(32))
        return following, _seal_for_all(following, following.seed, stream)


def unseal(state: Sealed, sealed: bytes) -> Ready:
    """Read the seed from the leader's message; the leader passes its own message and checks it."""
    with state:
        group = state.group
        message = _verified_seal(group, sealed)
        seed = state.seed if state.name == group.leader else _open_seal(state, message)
        if seed is None or _commitment(group, seed) != message.commitment:
            raise ProtocolError("seal: the seed is not the one committed to", blames=group.leader)
        ready = Ready()
        ready.identity, ready.name, ready.group = state.identity, state.name, group
        ready.seed, ready.commitment = seed, message.commitment
        return ready


def encode(
    state: Ready,
    vectors: Sequence[npt.NDArray[Any]],
    *,
    size: int = 256,
    scale: float = DEFAULT_SCALE,
) -> bytes:
    """Project, quantise and blind one vector per layer.

    Args:
        state: from `unseal`.
        vectors: one vector of shape (d_layer,) per layer, float32 or float64, already
            differentially private; the same dimensions at every member.
        size: projections per layer, k.
        scale: grid steps per unit, the same at every member. `|scale * P x|` must stay below 2^30,
            which for a vector of norm r holds with overwhelming probability up to r * scale of
            10^8.

    Raises:
        ConfigurationError: values are not finite, or would wrap: use a smaller scale.
    """
    with state:
        if not vectors or not 1 <= size <= 65535 or not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise ConfigurationError(
                "sketch: give at least one layer, a size of 1 to 65535, "
                "and a scale of 2^-64 to 2^64"
            )
        words = np.stack(
            [_encode_layer(state, layer, x, size, float(scale)) for layer, x in enumerate(vectors)]
        )
        group = state.group
        body = words.astype("<u4").tobytes()
        message = Sketch(
            group.id, state.name, state.commitment, len(vectors), size, float(scale), body
        )
        return messages.sign(state.identity, group.id, message, state.name)


def collect(
    roster: Roster, members: Sequence[str], context: bytes, hellos: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Server: return the broadcast of all hellos, for each of their senders.

    Raises:
        ProtocolError: a hello is malformed or somebody else's; its `sender` says which one to drop.
        ThresholdError: fewer than three are left.
    """
    names = sorted(hellos)
    signed = tuple(hellos[name] for name in names)
    group = Group(roster, members, context, signed, names)
    return dict.fromkeys(group.names, messages.encode(Hellos(signed)))


def route(
    roster: Roster,
    members: Sequence[str],
    context: bytes,
    hellos: bytes,
    sealed: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Server: return the leader's sealed seed for each member.

    Args:
        roster: pinned keys.
        members: as in `collect`.
        context: as in `collect`.
        hellos: the broadcast that `collect` made.
        sealed: what the members returned from `seal`; only the leader's is read.

    Raises:
        ProtocolError: the leader's seal is malformed, missing or not for this sketch. `sender` is
            the leader: begin again without it.
    """
    group = Group(roster, members, context, messages.decode(Hellos, hellos).hellos)
    data = sealed.get(group.leader, b"")
    with message_of(group.leader):
        _verified_seal(group, data)
    return dict.fromkeys(group.names, data)


def distances(
    sketches: Mapping[str, bytes],
    *,
    roster: Roster,
    members: Sequence[str],
    context: bytes,
    hellos: bytes,
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Server: return the senders' names, sorted, and squared distances of shape (layers, N, N).

    Raises:
        ProtocolError: a sketch is malformed, or not of the seed, shape and scale that most have;
            its `sender` says which one to drop.
    """
    group = Group(roster, members, context, messages.decode(Hellos, hellos).hellos)
    names = tuple(sorted(sketches))
    strangers = sorted(set(names).difference(group.names))
    if not names or strangers:
        raise ProtocolError(
            "sketches: at least one is needed, and only from members that said hello",
            sender=strangers[0] if strangers else None,
        )
    decoded = [_read_sketch(group, name, sketches[name]) for name in names]
    usual, _ = Counter(map(_terms, decoded)).most_common(1)[0]
    for message in decoded:
        if _terms(message) != usual:
            text = "layers, size, scale or seed are not those of most others"
            raise ProtocolError(f"sketch of {message.sender!r}: {text}", sender=message.sender)
    layers, size, scale, _ = usual
    words = np.stack([np.frombuffer(message.body, "<u4") for message in decoded]).reshape(
        len(names), layers, size
    )
    out = np.empty((layers, len(names), len(names)))
    for layer in range(layers):
        out[layer] = _squared(words[:, layer]) / (size * scale * scale)
    return names, out


def _squared(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Return the squared differences of all pairs of rows, modulo 2^32, as one matrix product.

    The product needs rows of plain numbers, so the circle is cut open opposite of their mean
    direction. `encode` keeps rows within half of it; then no cut lies between two of them, whatever
    words a few other senders made up, the first by name included.
    """
    angles = words.astype(np.float64) * (2 * np.pi / 2.0**32)
    mean = np.arctan2(np.sin(angles).sum(axis=0), np.cos(angles).sum(axis=0))
    middle = np.floor(mean * (2.0**32 / (2 * np.pi))).astype(np.int64).astype(np.uint32)
    steps = (words - middle).view(np.int32).astype(np.float64)
    steps -= np.median(steps, axis=0)  # small numbers, also beside made-up ones: exact products
    products = steps @ steps.T
    norms = products.diagonal()
    squared = np.maximum(norms[:, None] + norms[None, :] - 2.0 * products, 0.0)
    np.fill_diagonal(squared, 0.0)
    found: npt.NDArray[np.float64] = np.minimum(squared, squared.T)
    return found


def grid_bias(scale: float) -> float:
    """Return the most that the grid adds to a squared distance, in expectation: 1 / (4 scale^2).

    With a common dither, the difference of two rounded values has the right mean and the variance f
    (1 - f) of a coin, f the fractional part of the true difference in grid steps: at most 1/4, on
    average 1/6 of a step squared.
    """
    return 1.0 / (4.0 * scale * scale)


def instance_hash(roster: Roster, members: Sequence[str], context: bytes) -> bytes:
    """Return the hash of roster, members and context that every hello signs."""
    if not isinstance(context, bytes) or len(context) != 32:
        raise ConfigurationError(
            "sketch: context must be 32 bytes: the SHA-256 of what the sketch serves"
        )
    if len(set(members)) != len(members) or len(members) < SMALLEST_GROUP:
        raise ConfigurationError(f"sketch: give at least {SMALLEST_GROUP} members, each once")
    unknown = [name for name in members if name not in roster]
    if unknown:
        raise ConfigurationError(f"sketch: the roster does not name {', '.join(unknown[:5])}")
    return keys.digest(b"sketch-instance", roster.hash, context, *sorted(members))


def _commitment(group: Group, seed: Secret) -> bytes:
    return keys.digest(b"sketch-seed", group.id, seed.reveal())


def _seal_for_all(state: Sealed, seed: Secret, stream: keys.Stream) -> bytes:
    group = state.group
    commitment = _commitment(group, seed)
    boxes = []
    for peer in group.names[1:]:
        channel = state.channel.agree(group.id, peer, group.hellos[peer].channel_key)
        nonce = stream(keys.NONCE_BYTES)
        boxes.append(keys.seal(channel, nonce, seed.reveal(), *group.binding(peer, commitment)))
    message = Seal(group.id, state.name, commitment, tuple(boxes))
    return messages.sign(state.identity, group.id, message, state.name)


def _verified_seal(group: Group, data: bytes) -> Seal:
    message = messages.verify(Seal, data, group.roster, group.id, group.leader)
    if message.session != group.id or len(message.boxes) != len(group.names) - 1:
        raise ProtocolError("seal: not for this sketch", blames=group.leader)
    return message


def _open_seal(state: Sealed, message: Seal) -> Secret | None:
    """Return the seed; the leader signed this message, so a box that stays shut is its fault."""
    group = state.group
    channel = state.channel.agree(group.id, group.leader, group.hellos[group.leader].channel_key)
    box = message.boxes[group.names.index(state.name) - 1]
    plain = keys.unseal(channel, box, *group.binding(state.name, message.commitment))
    return Secret(plain) if plain is not None and len(plain) == 32 else None


def _encode_layer(
    state: Ready, layer: int, vector: npt.NDArray[Any], size: int, scale: float
) -> npt.NDArray[np.uint32]:
    if (
        not isinstance(vector, np.ndarray)
        or vector.ndim != 1
        or vector.dtype not in (np.float32, np.float64)
    ):
        raise ConfigurationError(f"sketch: layer {layer} must be a vector of float32 or float64")
    if len(vector) == 0 or not bool(np.isfinite(vector).all()):
        raise ConfigurationError(f"sketch: layer {layer} is empty or holds nan or infinite values")
    root = keys.extract(state.group.id, state.seed.reveal())
    binding = (layer.to_bytes(4, "big"), size.to_bytes(4, "big"), len(vector).to_bytes(8, "big"))
    projected = (
        Projection(keys.expand(root, b"sketch-projection", *binding), size).apply(vector) * scale
    )
    if not float(np.abs(projected).max()) < LIMIT:
        raise ConfigurationError(
            f"sketch: layer {layer} would wrap: |scale * P x| must stay below 2^30; lower the scale"
        )
    blind = Cipher(
        algorithms.AES(keys.expand(root, b"sketch-blind", *binding)), modes.CTR(bytes(16))
    ).encryptor()
    offset = np.frombuffer(blind.update(bytes(8 * size)), "<u8")
    dither = (offset & np.uint64(0xFFFFFFFF)).astype(np.float64) * 2.0**-32
    integers = np.floor(projected + dither).astype(np.int64)
    return (integers + (offset >> np.uint64(32)).astype(np.int64)).astype(np.uint32)


def _read_sketch(group: Group, name: str, data: bytes) -> Sketch:
    with message_of(name):
        message = messages.verify(Sketch, data, group.roster, group.id, name)
        if message.session != group.id or len(message.body) != 4 * message.layers * message.size:
            raise ProtocolError(
                f"sketch of {message.sender!r}: wrong session or length", blames=message.sender
            )
        if not SMALLEST_SCALE <= message.scale <= LARGEST_SCALE:
            raise ProtocolError(
                f"sketch of {message.sender!r}: a scale of {message.scale}", blames=message.sender
            )
    return message


def _terms(message: Sketch) -> tuple[int, int, float, bytes]:
    """What the sketches of one session have in common."""
    return message.layers, message.size, message.scale, message.commitment
