"""The server's side: it routes messages, keeps running sums, and opens the sums of the nodes.

Each step takes the state of the one before and the clients' messages by sender; who is missing has
dropped out. A step that refuses a message raises a ProtocolError whose `sender` says whose it was,
and leaves the state as it was: drop that message and call the step again. The server's one secret
is a fresh key per attempt, with which it sees that what is meant for it alone was not changed on
its way; it is trusted with nothing but delivering messages. It learns the sums of the opened nodes,
who took part, and the plan.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.identity import Roster
from fedtree_secagg.agreed.node import Node
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import ProtocolError, message_of
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.quantise import Quantiser
from fedtree_secagg.primitives.ring import Words
from fedtree_secagg.primitives.secret import OneShot, Secret, check_randomness
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Adverts,
    Inbox,
    Masked,
    Message,
    Shares,
    Survivors,
    Vote,
    Votes,
)
from fedtree_secagg.rounds.opening import Opener
from fedtree_secagg.rounds.session import (
    Cohort,
    Session,
    check_late,
    of_session,
    require,
    sharers_hash,
    view_hash,
)

M = TypeVar("M", bound=Message)

Incoming = Mapping[str, bytes] | Iterable[tuple[str, bytes]]


@dataclass(frozen=True)
class NodeSum:
    """The opened sum of a node.

    Attributes:
        node: the node.
        members_summed: the survivors whose updates are in the sum, sorted.
        ring: shape (node.width,), int32, the exact sum of their quantised integers.
        quantiser: the grid.
    """

    node: Node
    members_summed: tuple[str, ...]
    ring: npt.NDArray[np.int32]
    quantiser: Quantiser

    def values(self) -> npt.NDArray[np.float64]:
        """Return the sum in the units of the update."""
        return self.quantiser.decode(self.ring)

    def mean(self) -> npt.NDArray[np.float64]:
        """Return the mean over the members summed."""
        return self.values() / len(self.members_summed)


class Begun(OneShot):
    """After `begin`: this server's fresh key of the attempt."""

    __slots__ = ("key", "session")

    session: Session
    key: keys.Pair


class Gathered(Begun):
    """After `collect_adverts`: the cohort and the session id are fixed."""

    __slots__ = ("cohort",)

    cohort: Cohort


class Routed(OneShot):
    """After `route_shares`: the sharers, their digests by dealer and holder, the clients' keys."""

    __slots__ = ("cohort", "digests", "links", "session", "sharers")

    session: Session
    cohort: Cohort
    digests: dict[str, dict[str, bytes]]
    links: dict[str, Secret]
    sharers: Group

    def inherit(self, other: "Routed") -> None:
        """Take over what the state before knows."""
        self.session, self.cohort = other.session, other.cohort
        self.digests, self.links, self.sharers = other.digests, other.links, other.sharers


class Summed(Routed):
    """After `collect_masked`: the running sums and the survivors."""

    __slots__ = ("heads", "late", "survivors", "totals")

    survivors: Group
    late: bytes
    heads: dict[str, bytes]
    totals: dict[str, Words]


class Agreed(Summed):
    """After `collect_votes`."""

    __slots__ = ()


def begin(
    roster: Roster,
    plan: Plan,
    *,
    round: int,  # noqa: A002
    attempt: int,
    randomness: bytes | None = None,
) -> Begun:
    """Start an attempt.

    Args:
        roster: pinned keys.
        plan: what is summed.
        round: see `Session`.
        attempt: see `Session`.
        randomness: 32 fresh bytes for the server's key; None draws them, since nothing of a client
            depends on it.
    """
    state = Begun()
    state.session = Session(roster, plan, round, attempt)
    fresh = check_randomness(secrets.token_bytes(32) if randomness is None else randomness)
    state.key = keys.Pair(keys.Stream(fresh, b"server")(32))
    return state


def collect_adverts(state: Begun, incoming: Incoming) -> tuple[Gathered, dict[str, bytes]]:
    """Fix the cohort; return for each of its members the adverts of its contacts.

    Raises:
        ProtocolError: an advert is wrong.
        ThresholdError: too few.
    """
    with state:
        signed = dict(sorted(_pairs(incoming)))
        following = Gathered()
        following.session, following.key = state.session, state.key
        following.cohort = cohort = Cohort(state.session, state.key.public_bytes, signed)
        return following, _to_each(
            {name: tuple(signed[c] for c in _present(cohort, name)) for name in signed},
            lambda adverts: Adverts(state.key.public_bytes, cohort.root, adverts),
        )


def route_shares(state: Gathered, incoming: Incoming) -> tuple[Routed, dict[str, bytes]]:
    """Sort the encrypted bundles by holder; return each sharer's inbox."""
    with state:
        cohort = state.cohort
        uploads: dict[str, Shares] = {}
        following = Routed()
        following.session, following.cohort, following.links = state.session, cohort, {}
        for name, data in sorted(_pairs(incoming)):
            with message_of(name):
                if name not in cohort.adverts:
                    raise ProtocolError(f"shares: {name!r} did not advertise")
                following.links[name] = state.key.agree(
                    cohort.id, name, cohort.adverts[name].channel_key
                )
                uploads[name] = _verified_shares(following, name, data)
        _require_committee(cohort, "shares", uploads)
        following.sharers = Group.of(state.session.plan.cohort, uploads)
        following.digests = {
            name: dict(zip(cohort.holders(name), upload.digests, strict=True))
            for name, upload in uploads.items()
        }
        return following, _inboxes(following, uploads)


def collect_masked(
    state: Routed, incoming: Incoming, *, late: bytes = b""
) -> tuple[Summed, dict[str, bytes]]:
    """Add up the masked vectors; return the survivor set for each survivor.

    Pairs may come from a generator, one upload at a time: the server then needs memory for its sums
    and one upload only. What arrives after this step is never added: an update whose sender was
    counted as dropped out stays masked.

    Args:
        state: from `route_shares`.
        incoming: the uploads.
        late: the late context under which they are masked, where the plan says `late`; an upload
            under another one is refused.
    """
    check_late(state.session.plan, late)
    with state:
        plan = state.session.plan
        totals: dict[str, Words] = {}
        heads: dict[str, bytes] = {}
        for name, data in _pairs(incoming):
            if name in heads:
                raise ProtocolError(f"masked: two uploads for {name!r}")
            with message_of(name):
                heads[name] = _add_upload(state, name, data, totals, late)
        _require_committee(state.cohort, "masked", heads)
        following = Summed()
        following.inherit(state)
        following.survivors = Group.of(plan.cohort, heads)
        following.totals, following.heads, following.late = totals, heads, late
        broadcast = messages.encode(Survivors(state.cohort.id, following.survivors.bits))
        return following, dict.fromkeys(sorted(heads), broadcast)


def collect_votes(state: Summed, incoming: Incoming) -> tuple[Agreed, dict[str, bytes]]:
    """Pass on a threshold of the committee's votes, and heads of dealers that are not among them.

    A head is the signed part of an upload; each client gets those of its surviving dealers.

    In a full graph the committee is everyone. A vote of a client that is not in the committee only
    says that it is still there; it is not read.
    """
    with state:
        cohort, plan = state.cohort, state.session.plan
        agreed = view_hash(cohort.id, state.sharers, state.survivors, state.late)
        received = dict(sorted(_pairs(incoming)))
        _refuse_strangers(received, state.heads, "votes")
        voters = sorted(set(received).intersection(cohort.graph.committee))
        require(plan, "votes", len(voters))
        votes = {name: received[name] for name in voters[: plan.threshold]}
        for name, data in votes.items():
            with message_of(name):
                if _verified(state, Vote, name, data).view != agreed:
                    raise ProtocolError(
                        f"vote of {name!r}: for other sets than it should have been shown"
                    )
        following = Agreed()
        following.inherit(state)
        following.survivors = state.survivors
        following.totals, following.heads, following.late = state.totals, state.heads, state.late
        silent = {
            name: tuple(
                state.heads[d] for d in cohort.dealers(name, state.survivors) if d not in votes
            )
            for name in received
        }
        return following, _to_each(
            silent, lambda heads: Votes(cohort.id, tuple(votes.values()), heads)
        )


def open_sums(state: Agreed, incoming: Incoming) -> dict[str, NodeSum]:
    """Rebuild the secrets and return the sum of every node with enough survivors, by node name.

    Of each client's holders the first t that answered are read; the others are spares for when one
    is refused.

    Raises:
        ProtocolError: an answer is malformed, or a share contradicts what its dealer signed (blames
            the holder), or a dealer's shares rebuild another secret than it committed to (blames
            the dealer; the attempt is lost).
        ThresholdError: too few answers; nothing is opened.
    """
    with state:
        received = dict(sorted(_pairs(incoming)))
        _refuse_strangers(received, state.heads, "reveal")
        _require_committee(state.cohort, "reveal", received)
        opener = Opener(
            state.cohort,
            *(state.digests, state.links, state.sharers, state.survivors),
            received,
            state.late,
        )
        opened = state.cohort.opened_nodes(state.survivors)
        nodes = [node for node in state.session.plan.nodes if node.name in opened]
        # All that can fail, before any sum changes.
        masks = {node.name: opener.masks(node) for node in nodes}
        return _unmasked(state, nodes, masks)


def _unmasked(
    state: Agreed, nodes: Iterable[Node], masks: Mapping[str, list[tuple[bytes, int]]]
) -> dict[str, NodeSum]:
    """Take the masks out of the sums, in place; put them back when a sum is refused."""
    plan, totals = state.session.plan, state.totals
    if not totals:
        raise ProtocolError(
            "opening was broken off in the middle, and the masked sums with it: run another attempt"
        )
    state.totals = {}
    opened: dict[str, NodeSum] = {}
    for node in nodes:
        plan.ring.add_masks(totals[node.name], masks[node.name])
        alive = state.survivors.select(node.members, plan.place)
        opened[node.name] = found = NodeSum(
            node, alive, plan.ring.signed(totals[node.name]), plan.quantiser
        )
        if (
            max(int(found.ring.max()), -int(found.ring.min()))
            > len(alive) * plan.quantiser.max_integer
        ):
            for name in opened:
                plan.ring.add_masks(totals[name], [(key, -sign) for key, sign in masks[name]])
            state.totals = totals
            raise ProtocolError(
                f"node {node.name!r}: the sum is beyond {len(alive)} times the clip; "
                "someone did not clip"
            )
    return opened


def _pairs(incoming: Incoming) -> Iterable[tuple[str, bytes]]:
    return incoming.items() if isinstance(incoming, Mapping) else incoming


def _to_each(
    contents: Mapping[str, tuple[bytes, ...]], make: Callable[[tuple[bytes, ...]], Message]
) -> dict[str, bytes]:
    """Return each client's message; equal contents are encoded once."""
    encoded: dict[tuple[bytes, ...], bytes] = {}
    out = {}
    for name, content in contents.items():
        if content not in encoded:
            encoded[content] = messages.encode(make(content))
        out[name] = encoded[content]
    return out


def _present(cohort: Cohort, name: str) -> Iterable[str]:
    """Return the contacts of a client that advertised, sorted."""
    contacts = cohort.graph.contacts(name)
    return (
        cohort.adverts
        if len(contacts) >= len(cohort.adverts)
        else sorted(contacts & cohort.adverts.keys())
    )


def _refuse_strangers(
    received: Mapping[str, bytes], survivors: Mapping[str, bytes], stage: str
) -> None:
    strangers = received.keys() - survivors.keys()
    if strangers:
        first = min(strangers)
        raise ProtocolError(
            f"{stage}: from {first!r}, who did not take part in the stage before", sender=first
        )


def _require_committee(cohort: Cohort, stage: str, present: Mapping[str, object]) -> None:
    require(cohort.session.plan, stage, sum(name in present for name in cohort.graph.committee))


def _verified(state: Routed, kind: type[M], name: str, data: bytes) -> M:
    """Return a client's signed message after checking signature, sender and session."""
    return of_session(
        state.cohort.id,
        messages.verify(kind, data, state.session.roster, state.cohort.id, name),
        name,
    )


def _verified_shares(state: Routed, name: str, data: bytes) -> Shares:
    cohort = state.cohort
    message = of_session(
        cohort.id, messages.verify_for_server(Shares, data, state.links[name], name), name
    )
    holders = cohort.holders(name)
    size = cohort.bundle_bytes(name) + keys.BOX_OVERHEAD
    if len(message.digests) != len(holders) or len(message.boxes) != len(holders) - (
        name in holders
    ):
        raise ProtocolError(
            f"shares of {name!r}: one digest per holder and one box per other expected", blames=name
        )
    if set(map(len, message.boxes)) != {size}:
        raise ProtocolError(f"shares of {name!r}: boxes must have {size} bytes", blames=name)
    return message


def _inboxes(state: Routed, uploads: Mapping[str, Shares]) -> dict[str, bytes]:
    """Return each sharer's inbox: digest and box of each of its dealers, by name."""
    cohort = state.cohort
    digests: dict[str, list[bytes]] = {name: [] for name in uploads}
    boxes: dict[str, list[bytes]] = {name: [] for name in uploads}
    for dealer, upload in uploads.items():
        others = [name for name in cohort.holders(dealer) if name != dealer]
        for holder, box in zip(others, upload.boxes, strict=True):
            if holder in uploads:
                digests[holder].append(state.digests[dealer][holder])
                boxes[holder].append(box)
    return {
        name: messages.encode(
            Inbox(cohort.id, state.sharers.bits, tuple(digests[name]), tuple(boxes[name]))
        )
        for name in uploads
    }


def _add_upload(
    state: Routed, name: str, data: bytes, totals: dict[str, Words], late: bytes
) -> bytes:
    """Add an upload to the running totals; return its signed head."""
    if name not in state.digests:
        raise ProtocolError(f"masked: {name!r} did not share its keys")
    plan = state.session.plan
    signed, body = messages.detach(data)
    head = _verified(state, Masked, name, signed)
    if not keys.upload_verifies(state.links[name], head.nonce, head.tag, body):
        raise ProtocolError(f"masked of {name!r}: the vector does not match its tag")
    if head.sharers != sharers_hash(state.cohort.id, state.sharers, late):
        raise ProtocolError(
            f"masked of {name!r}: masked with other sharers than it should have been shown, or "
            "under another late context"
        )
    expected = plan.width_of(name) * plan.ring.word_bytes
    if len(body) != expected:
        raise ProtocolError(
            f"masked of {name!r}: {len(body)} bytes, the plan asks for {expected}", blames=name
        )
    words, at = np.frombuffer(body, plan.ring.dtype), 0
    for node in plan.nodes_of(name):
        part = words[at : at + node.width]
        if node.name in totals:
            np.add(totals[node.name], part, out=totals[node.name])
        else:
            totals[node.name] = part.copy()
        at += node.width
    return signed
