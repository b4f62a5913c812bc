"""Draw a beacon: 32 public bytes from the randomness of all clients, which nobody could steer.

    plan -> commit -> open -> verify -> Beacon

Each client commits to 32 bytes, sees the commitments of all, opens its own, and sees all openings;
the beacon is a hash over them. To a client whose own bytes are fresh the result is uniform, whoever
else lies: the others' bytes were fixed by commitments before its own were known, and a commitment
names its client, so that none can be copied. No signature of another client is needed for that, and
whether all clients have the same beacon shows in the first round: it is part of the plan, and with
another plan nothing fits.

What remains to the server is to break a ceremony off once it knows the result, and to call for
another. So ceremonies of a tree are numbered, 0 to 15: that gives it at most 16 draws, four bits of
the 40 that the graph is sized for. A client that has not opened its own bytes in a ceremony refuses
its beacon. Nobody may be missing: hold the ceremony with the clients that are there, and make the
plan of these.
"""

import hmac
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from fedtree_secagg.agreed.graph import Beacon
from fedtree_secagg.agreed.identity import Identity, Roster
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import (
    ConfigurationError,
    ProtocolError,
    ThresholdError,
    message_of,
    shown,
)
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.secret import OneShot, Secret, check_randomness
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Hash, Message, Name

CEREMONIES = 16


class Commitment(Message, frozen=True, tag="beacon-commitment"):
    """A client's commitment to its 32 bytes."""

    instance: Hash
    sender: Name
    commitment: Hash


class Opening(Message, frozen=True, tag="beacon-opening"):
    """A client's 32 bytes."""

    instance: Hash
    sender: Name
    value: Hash


class Listed(Message, frozen=True, tag="beacon-list"):
    """Server to all: one value of each client of the plan, by name: commitments, then openings."""

    instance: Hash
    values: Annotated[bytes, Meta(min_length=32)]


class Committed(OneShot):
    """After `commit`."""

    __slots__ = ("identity", "instance", "name", "plan", "value")

    identity: Identity
    name: str
    plan: Plan
    instance: bytes
    value: Secret


class Opened(Committed):
    """After `open_own`: the commitments of all are known and this client's bytes are out."""

    __slots__ = ("commitments",)

    commitments: list[bytes]


def instance_of(roster: Roster, plan: Plan, number: int) -> bytes:
    """Return the hash that binds a ceremony: roster, tree and number.

    Raises:
        ConfigurationError: the plan takes no beacon or has one, or the number is not 0 to 15.
    """
    if plan.sparse is None or plan.sparse.beacon is not None:
        raise ConfigurationError("beacon: give the draft of a sparse plan, without a beacon")
    if not isinstance(number, int) or not 0 <= number < CEREMONIES:
        raise ConfigurationError(
            f"beacon: number is {shown(number)}; "
            f"a tree has at most {CEREMONIES} ceremonies, 0 to {CEREMONIES - 1}: "
            "each one that is broken off gives the server another draw. Change the tree."
        )
    return keys.digest(b"beacon-instance", roster.hash, plan.tree, number.to_bytes(8, "big"))


def commit(
    identity: Identity, name: str, roster: Roster, plan: Plan, *, number: int, randomness: bytes
) -> tuple[Committed, bytes]:
    """Draw this client's bytes and commit to them.

    Args:
        identity: this client's identity.
        name: this client; must be in the plan.
        roster: pinned keys.
        plan: the draft whose tree the beacon is for.
        number: of the ceremony for this tree, never used twice by a client: persist it before the
            commitment leaves.
        randomness: 32 fresh bytes.
    """
    if name not in plan.place:
        raise ConfigurationError(
            f"{name!r} is in no node of this plan and takes no part in its beacon"
        )
    state = Committed()
    state.identity, state.name, state.plan = identity, name, plan
    state.instance = instance_of(roster, plan, number)
    state.value = Secret(keys.Stream(check_randomness(randomness), b"beacon")(32))
    commitment = _commitment(state.instance, name, state.value.reveal())
    message = Commitment(state.instance, name, commitment)
    return state, messages.sign(identity, state.instance, message, name)


def open_own(state: Committed, commitments: bytes) -> tuple[Opened, bytes]:
    """Open this client's bytes, now that all commitments are fixed.

    Raises:
        ProtocolError: the list is of another ceremony, or lacks this client's commitment.
    """
    with state:
        listed = _values(state.plan, state.instance, commitments)
        mine = _commitment(state.instance, state.name, state.value.reveal())
        if not hmac.compare_digest(listed[state.plan.place[state.name]], mine):
            raise ProtocolError("beacon: this client's own commitment is missing or changed")
        following = Opened()
        following.identity, following.name, following.plan = state.identity, state.name, state.plan
        following.instance, following.value, following.commitments = (
            state.instance,
            state.value,
            listed,
        )
        message = Opening(state.instance, state.name, state.value.reveal())
        return following, messages.sign(state.identity, state.instance, message, state.name)


def verify(state: Opened, openings: bytes) -> Beacon:
    """Return the beacon.

    Raises:
        ProtocolError: an opening is not what its client committed to.
    """
    with state:
        listed = _values(state.plan, state.instance, openings)
        for name, value, promised in zip(state.plan.cohort, listed, state.commitments, strict=True):
            if not hmac.compare_digest(_commitment(state.instance, name, value), promised):
                raise ProtocolError(
                    f"beacon: the opening shown for {name!r} is not what was committed to"
                )
        return Beacon(_value(state.instance, listed), state.plan.tree)


def collect(roster: Roster, plan: Plan, number: int, incoming: Mapping[str, bytes]) -> bytes:
    """Server: return the list of all commitments.

    Raises:
        ProtocolError: one is malformed or forged (`sender` says whose).
        ThresholdError: a client of the plan is missing.
    """
    instance = instance_of(roster, plan, number)
    return _list_of(Commitment, roster, plan, instance, incoming)


def conclude(
    roster: Roster, plan: Plan, number: int, commitments: bytes, incoming: Mapping[str, bytes]
) -> bytes:
    """Server: return the list of all openings, each checked against its commitment.

    Raises:
        ProtocolError: one is malformed or forged (`sender`), or is not what the client committed to
            (`blames`).
        ThresholdError: a client of the plan is missing.
    """
    instance = instance_of(roster, plan, number)
    message = _list_of(Opening, roster, plan, instance, incoming)
    promised = _values(plan, instance, commitments)
    opened = _values(plan, instance, message)
    for name, value, expected in zip(plan.cohort, opened, promised, strict=True):
        if not hmac.compare_digest(_commitment(instance, name, value), expected):
            raise ProtocolError(
                f"beacon: {name!r} opens another value than it committed to",
                blames=name,
                sender=name,
            )
    return message


def value_of(roster: Roster, plan: Plan, number: int, openings: bytes) -> bytes:
    """Server: return the beacon's value from the openings that `conclude` returned."""
    instance = instance_of(roster, plan, number)
    return _value(instance, _values(plan, instance, openings))


def _list_of(
    kind: type[Commitment | Opening],
    roster: Roster,
    plan: Plan,
    instance: bytes,
    incoming: Mapping[str, bytes],
) -> bytes:
    missing = [name for name in plan.cohort if name not in incoming]
    if missing:
        raise ThresholdError(
            "beacon", present=len(plan.cohort) - len(missing), threshold=len(plan.cohort)
        )
    values = []
    for name in plan.cohort:
        with message_of(name):
            message = messages.verify(kind, incoming[name], roster, instance, name)
        values.append(message.commitment if isinstance(message, Commitment) else message.value)
    return messages.encode(Listed(instance, b"".join(values)))


def _values(plan: Plan, instance: bytes, data: bytes) -> list[bytes]:
    """Return the values of a list, in the order of the plan's names."""
    message = messages.decode(Listed, data)
    if message.instance != instance or len(message.values) != 32 * len(plan.cohort):
        raise ProtocolError(
            "beacon: the list is of another ceremony, or does not have one value per client"
        )
    return [message.values[at : at + 32] for at in range(0, len(message.values), 32)]


def _commitment(instance: bytes, name: str, value: bytes) -> bytes:
    return keys.digest(b"beacon-commitment", instance, name, value)


def _value(instance: bytes, values: list[bytes]) -> bytes:
    return keys.digest(b"beacon", instance, *values)
