"""One attempt of one round, and the view of it that its adverts fix.

`Session` is what the application decides: roster, plan, round, attempt. `Cohort` is what came of it: the verified
adverts of those who take part, and the session id, a hash over all of them. Client and server build it from the same
bytes with the same checks; a client that was shown other adverts has another id, and none of its messages fit.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedtree_secagg import keys, messages
from fedtree_secagg.errors import ConfigurationError, ProtocolError, ThresholdError, message_of
from fedtree_secagg.identity import Roster
from fedtree_secagg.messages import Advert
from fedtree_secagg.plan import Node, Plan
from fedtree_secagg.shamir import SHARE_BYTES

HASH_BYTES = 32


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
                raise ConfigurationError(f"session: {label} is {value!r}; give an integer from 0 to 2^63 - 1")
        missing = [name for name in self.plan.cohort if name not in self.roster]
        if missing:
            raise ConfigurationError(f"session: the roster does not name {', '.join(missing[:5])}, which the plan does")

    @cached_property
    def instance(self) -> bytes:
        """Hash of roster, plan, round and attempt: binds adverts, which come before there is a session id."""
        counters = self.round.to_bytes(8, "big") + self.attempt.to_bytes(8, "big")
        return keys.digest(b"instance", self.roster.hash, self.plan.hash, counters)


class Cohort:
    """The verified adverts of one attempt.

    Attributes:
        names: those who take part (U1), sorted.
        adverts: their adverts, by name.
        id: the session id, 32 bytes.
    """

    def __init__(self, session: Session, server_key: bytes, signed: Mapping[str, bytes] | Sequence[bytes]) -> None:
        """Verify adverts.

        Args:
            session: the attempt.
            server_key: the server's X25519 key of the attempt: with it, it authenticates uploads.
            signed: the signed adverts, by sender (server) or in the order of the senders' names (client).

        Raises:
            ProtocolError: one is malformed, foreign, duplicated or out of order.
            ThresholdError: too few.
        """
        self.session = session
        self._opened: tuple[frozenset[str], frozenset[str]] | None = None  # of the survivor set asked for last
        expected = list(signed) if isinstance(signed, Mapping) else [None] * len(signed)
        raw = list(signed.values()) if isinstance(signed, Mapping) else list(signed)
        self.adverts: dict[str, Advert] = {}
        for sender, data in zip(expected, raw, strict=True):
            with message_of(sender):
                advert = verify_advert(session, data, sender)
            if advert.sender in self.adverts:
                raise ProtocolError(f"adverts: {advert.sender!r} occurs twice")
            self.adverts[advert.sender] = advert
        self.names = tuple(self.adverts)
        if list(self.names) != sorted(self.names):
            raise ProtocolError("adverts: not in the order of their senders' names")
        self.server_key = server_key
        _refuse_shared_keys(server_key, self.adverts.values())
        require(session.plan, "adverts", len(self.names))
        hashes = b"".join(hashlib.sha256(data).digest() for data in raw)
        self.id = keys.digest(b"session", session.instance, server_key, hashlib.sha256(hashes).digest())

    def point(self, holder: str) -> int:
        """Return the holder's Shamir point: its place in the cohort, from 1."""
        return self._points[holder]

    @cached_property
    def _points(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names, start=1)}

    def nodes_of(self, name: str) -> tuple[Node, ...]:
        """Return the nodes of a client, in upload order."""
        return self.session.plan.nodes_of(name)

    def holders(self, dealer: str) -> tuple[str, ...]:  # noqa: ARG002 - depends on the dealer in a sparse graph
        """Return who holds the dealer's shares, in order, the dealer included."""
        return self.names

    def peers(self, name: str, node: Node, alive: Iterable[str]) -> tuple[str, ...]:
        """Return with whom a client shares a mask in a node, of those alive."""
        members = set(node.members)
        return tuple(peer for peer in alive if peer != name and peer in members)

    def slots(self, dealer: str) -> int:
        """Return the shares in a bundle of this dealer: its mask key's, then its seeds' in node order."""
        return 1 + len(self.nodes_of(dealer))

    def bundle_bytes(self, dealer: str) -> int:
        """Return the bytes of a bundle in the clear."""
        return SHARE_BYTES * self.slots(dealer)

    def opened_slots(self, dealer: str, survivors: frozenset[str]) -> tuple[bool, ...]:
        """Return which slots of the dealer's bundle a holder opens: seeds or the key, never both kinds.

        For a survivor the seeds of the nodes that will be opened; for one that dropped out the key, and only when
        one of its nodes will be opened. This function alone decides it, for client and server alike.
        """
        opened = self.opened_nodes(survivors)
        opens = tuple(node.name in opened for node in self.nodes_of(dealer))
        return (False, *opens) if dealer in survivors else (any(opens), *(False for _ in opens))

    def opened_nodes(self, survivors: frozenset[str]) -> frozenset[str]:
        """Return the names of the nodes that have enough survivors to be opened."""
        if self._opened is None or self._opened[0] != survivors:
            plan = self.session.plan
            enough = (n.name for n in plan.nodes if len(survivors.intersection(n.members)) >= plan.min_group)
            self._opened = survivors, frozenset(enough)
        return self._opened[1]


def verify_advert(session: Session, data: bytes, sender: str | None) -> Advert:
    """Return a signed advert after checking that it belongs to this attempt and has the right commitments."""
    advert = messages.verify(Advert, data, session.roster, session.instance, sender)
    if advert.instance != session.instance:
        raise ProtocolError(
            f"advert of {advert.sender!r}: made for another round, attempt or plan", blames=advert.sender
        )
    if advert.sender not in session.plan.cohort:
        raise ProtocolError(f"advert of {advert.sender!r}: not in this plan", blames=advert.sender)
    if len(advert.commitments) != len(session.plan.nodes_of(advert.sender)):
        raise ProtocolError(f"advert of {advert.sender!r}: one commitment per node expected", blames=advert.sender)
    return advert


def check_names(names: Sequence[str], within: Iterable[str], stage: str) -> frozenset[str]:
    """Return the names as a set; refuse repeated, unsorted and unknown ones."""
    if list(names) != sorted(set(names)):
        raise ProtocolError(f"{stage}: names must be sorted and occur once")
    unknown = set(names).difference(within)
    if unknown:
        raise ProtocolError(f"{stage}: names {min(unknown)!r}, who did not take part in the stage before")
    return frozenset(names)


def sharers_hash(session: bytes, sharers: Iterable[str]) -> bytes:
    """Return the hash of the set of sharers that an upload is masked with."""
    return keys.digest(b"sharers", session, *sharers)


def view_hash(session: bytes, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """Return the hash that a vote signs: of both sets a client was shown."""
    return keys.digest(b"view", session, sharers_hash(session, sharers), *survivors)


def require(plan: Plan, stage: str, present: int) -> None:
    """Refuse to go on below the threshold."""
    if present < plan.threshold:
        raise ThresholdError(stage, present=present, threshold=plan.threshold)


def _refuse_shared_keys(server_key: bytes, adverts: Iterable[Advert]) -> None:
    keys.check_public(server_key, "the server", blame=False)
    seen = {server_key: "the server"}
    for advert in adverts:
        for key in (advert.mask_key, advert.channel_key):
            keys.check_public(key, advert.sender)
            if key in seen:
                alone = advert.sender if seen[key] == advert.sender else None  # of two, either may be the copy
                raise ProtocolError(f"adverts: {advert.sender!r} and {seen[key]!r} show the same key", blames=alone)
            seen[key] = advert.sender
