"""One attempt of one round, and the view of it that its adverts fix.

`Session` is what the application decides: roster, plan, round, attempt. `Cohort` is what came of
it: the verified adverts of those who take part, and the session id, a hash over all of them. Client
and server build it from the same bytes with the same checks; a client that was shown other adverts
has another id, and none of its messages fit.
"""

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.identity import Roster
from fedtree_secagg.agreed.node import Node
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import (
    ConfigurationError,
    ProtocolError,
    ThresholdError,
    message_of,
    shown,
)
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.shamir import SHARE_BYTES
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Advert, Message

HASH_BYTES = 32
M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Session:
    """Roster, plan and the two counters that make every attempt a new one.

    Args:
        roster: pinned keys; must name every client of the plan.
        plan: what is summed.
        round: number of the round, 0 to 2^63 - 1, never decreasing in the life of a client.
        attempt: number of the attempt within the round, likewise.
    """

    roster: Roster
    plan: Plan
    round: int
    attempt: int

    def __post_init__(self) -> None:
        for label, value in (("round", self.round), ("attempt", self.attempt)):
            if not isinstance(value, int) or not 0 <= value < 2**63:
                raise ConfigurationError(
                    f"session: {label} is {shown(value)}; give an integer from 0 to 2^63 - 1"
                )
        if self.plan.sparse is not None and self.plan.sparse.beacon is None:
            raise ConfigurationError(
                "session: a sparse plan needs a beacon first, see Plan.with_beacon"
            )
        if not self.plan.place.keys() <= self.roster.keys.keys():
            missing = sorted(self.plan.place.keys() - self.roster.keys.keys())
            raise ConfigurationError(
                f"session: the roster does not name {', '.join(missing[:5])}, which the plan does"
            )

    @cached_property
    def instance(self) -> bytes:
        """Hash of roster, plan, round and attempt: binds adverts, which precede the session id."""
        counters = self.round.to_bytes(8, "big") + self.attempt.to_bytes(8, "big")
        return keys.digest(b"instance", self.roster.hash, self.plan.hash, counters)


class Cohort:
    """The verified adverts of one attempt, as far as a party was shown them.

    Attributes:
        adverts: by name, in the order of names: of all that take part (server), of one's contacts
            (client).
        root: the hash over all adverts.
        id: the session id, 32 bytes.
    """

    def __init__(
        self,
        session: Session,
        server_key: bytes,
        signed: Mapping[str, bytes] | Sequence[bytes],
        *,
        reader: str | None = None,
        root: bytes | None = None,
        own: Container[bytes] = (),
    ) -> None:
        """Verify adverts.

        Args:
            session: the attempt.
            server_key: the server's X25519 key of the attempt: with it, it authenticates uploads.
            signed: the signed adverts, by sender (server) or in the order of the senders' names
                (client).
            reader: the client that reads; None for the server.
            root: what the server told this client to be the hash over all adverts.
            own: what the reader signed itself, see `messages.verify`.

        Raises:
            ProtocolError: one is malformed, foreign, duplicated or out of order.
            ThresholdError: too few.
        """
        self.session, self.graph = session, session.plan.graph
        # Of the survivor set asked for last.
        self._opened: tuple[Group, frozenset[str]] | None = None
        expected = list(signed) if isinstance(signed, Mapping) else [None] * len(signed)
        raw = list(signed.values()) if isinstance(signed, Mapping) else list(signed)
        self.adverts: dict[str, Advert] = {}
        for sender, data in zip(expected, raw, strict=True):
            with message_of(sender):
                advert = verify_advert(session, data, sender, own=own)
            if advert.sender in self.adverts:
                raise ProtocolError(f"adverts: {advert.sender!r} occurs twice")
            self.adverts[advert.sender] = advert
        if list(self.adverts) != sorted(self.adverts):
            raise ProtocolError("adverts: not in the order of their senders' names")
        self.server_key = server_key
        _refuse_shared_keys(server_key, self.adverts.values(), expected)
        computed = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in raw)).digest()
        self.root = computed if root is None else root
        if reader is not None:
            self._check_contacts(reader, computed)
        required = self.graph.committee if reader is None else self.graph.holders(reader)
        require(session.plan, "adverts", sum(name in self.adverts for name in required))
        self.id = keys.digest(b"session", session.instance, server_key, self.root)

    def _check_contacts(self, reader: str, computed: bytes) -> None:
        contacts = self.graph.contacts(reader)
        strangers = self.adverts.keys() - contacts
        if strangers:
            raise ProtocolError(f"adverts: {min(strangers)!r} is no contact of this client")
        if len(contacts) == len(self.session.plan.cohort) and computed != self.root:
            raise ProtocolError("adverts: not those that their root stands for")

    def points(self, dealer: str, holders: Iterable[str]) -> tuple[int, ...]:
        """Return the holders' Shamir points: places among the dealer's possible holders, from 1."""
        possible = self.graph.holders(dealer)
        if possible is self.session.plan.cohort:
            return tuple(self.session.plan.place[holder] + 1 for holder in holders)
        table = {name: place for place, name in enumerate(possible, start=1)}
        return tuple(table[holder] for holder in holders)

    def group(self, bits: bytes, stage: str) -> Group:
        """Return the set of clients in these bytes."""
        return Group(self.session.plan.cohort, bits, stage)

    def nodes_of(self, name: str) -> tuple[Node, ...]:
        """Return the nodes of a client, in upload order."""
        return self.session.plan.nodes_of(name)

    def holders(self, dealer: str) -> tuple[str, ...]:
        """Return who holds the dealer's shares: possible holders that advertised, by point."""
        return tuple(name for name in self.graph.holders(dealer) if name in self.adverts)

    def dealers(self, holder: str, sharers: Group) -> tuple[str, ...]:
        """Return whose shares a client holds, sorted."""
        return sharers.select(self.graph.dealers(holder), self.session.plan.place)

    def peers(self, name: str, node: Node, among: Group) -> tuple[str, ...]:
        """Return with whom a client shares a mask in a node, of those in the group."""
        return among.select(self.graph.peers(name, node), self.session.plan.place)

    def slots(self, dealer: str) -> int:
        """Return the shares in a bundle of this dealer: of its mask key, then of each seed."""
        return 1 + len(self.nodes_of(dealer))

    def bundle_bytes(self, dealer: str) -> int:
        """Return the bytes of a bundle in the clear."""
        return SHARE_BYTES * self.slots(dealer)

    def opened_slots(self, dealer: str, survivors: Group) -> tuple[bool, ...]:
        """Return which slots of the dealer's bundle a holder opens: seeds or the key, never both
        kinds.

        For a survivor the seeds of the nodes that will be opened; for one that dropped out the key,
        and only when one of its nodes will be opened. This function alone decides it, for client
        and server alike.
        """
        opened = self.opened_nodes(survivors)
        opens = tuple(node.name in opened for node in self.nodes_of(dealer))
        if survivors.flags[self.session.plan.place[dealer]]:
            return (False, *opens)
        return (any(opens), *(False for _ in opens))

    def opened_nodes(self, survivors: Group) -> frozenset[str]:
        """Return the names of the nodes that open: enough survivors, held together by masks."""
        if self._opened is None or self._opened[0] != survivors:
            plan = self.session.plan
            enough = (
                node.name
                for node in plan.nodes
                if np.count_nonzero(survivors.flags[plan.places_of(node)]) >= plan.min_group
                and self.graph.holds_together(node, survivors)
            )
            self._opened = survivors, frozenset(enough)
        return self._opened[1]


def verify_advert(
    session: Session, data: bytes, sender: str | None, *, own: Container[bytes] = ()
) -> Advert:
    """Return a signed advert, checked to be of this attempt, with a commitment per node."""
    advert = messages.verify(Advert, data, session.roster, session.instance, sender, own=own)
    if advert.instance != session.instance:
        raise ProtocolError(
            f"advert of {advert.sender!r}: made for another round, attempt or plan",
            blames=advert.sender,
        )
    if advert.sender not in session.plan.place:
        raise ProtocolError(f"advert of {advert.sender!r}: not in this plan", blames=advert.sender)
    if len(advert.commitments) != len(session.plan.nodes_of(advert.sender)):
        raise ProtocolError(
            f"advert of {advert.sender!r}: one commitment per node expected", blames=advert.sender
        )
    return advert


def of_session(session: bytes, message: M, name: str) -> M:
    """Return a client's message, whose sender is proven, if it speaks of this session."""
    if message.session != session:  # type: ignore[attr-defined]
        raise ProtocolError(
            f"{type(message).__name__.lower()} of {name!r}: made for another session", blames=name
        )
    return message


def sharers_hash(session: bytes, sharers: Group, late: bytes = b"") -> bytes:
    """Return the hash of what an upload is masked with: the set of sharers, and the late context if
    the plan has one.
    """
    return keys.digest(b"sharers", session, sharers.bits, *((late,) if late else ()))


def view_hash(session: bytes, sharers: Group, survivors: Group, late: bytes = b"") -> bytes:
    """Return the hash that a vote signs: of both sets a client was shown, and of what it masked
    with.
    """
    return keys.digest(b"view", session, sharers_hash(session, sharers, late), survivors.bits)


def check_late(plan: Plan, late: bytes) -> None:
    """Refuse a late context that the plan does not have, and a plan's that is missing.

    Raises:
        ConfigurationError: it is not 32 bytes where the plan says that it comes, or not empty.
    """
    if not isinstance(late, bytes) or len(late) != (32 if plan.late else 0):
        raise ConfigurationError(
            "late context: give 32 bytes for a plan that says late, and none for any other"
        )


def require(plan: Plan, stage: str, present: int) -> None:
    """Refuse to go on below the threshold."""
    if present < plan.threshold:
        raise ThresholdError(stage, present=present, threshold=plan.threshold)


def _refuse_shared_keys(
    server_key: bytes, adverts: Iterable[Advert], senders: Iterable[str | None]
) -> None:
    """Refuse weak and equal keys; of two equal ones, the later advert is the one to drop."""
    keys.check_public(server_key, "the server", blame=False)
    seen = {server_key: "the server"}
    for advert, sender in zip(adverts, senders, strict=True):
        with message_of(sender):
            for key in (advert.mask_key, advert.channel_key):
                keys.check_public(key, advert.sender)
                if key in seen:
                    # Of two, either may be the copy.
                    alone = advert.sender if seen[key] == advert.sender else None
                    raise ProtocolError(
                        f"adverts: {advert.sender!r} and {seen[key]!r} show the same key",
                        blames=alone,
                    )
                seen[key] = advert.sender
