"""What the holders opened: rebuilt secrets, the masks they make, and who is to blame."""

import struct
from collections.abc import Iterable, Mapping

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.node import Node
from fedtree_secagg.errors import ProtocolError, message_of
from fedtree_secagg.primitives import keys, shamir
from fedtree_secagg.primitives.secret import Secret
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Reveal
from fedtree_secagg.rounds.session import HASH_BYTES, Cohort, of_session, require


class Layout:
    """Where the slots of each dealer's bundle lie in an answer."""

    def __init__(self, cohort: Cohort, dealers: Iterable[str], survivors: Group) -> None:
        self.slots: dict[str, slice] = {}
        sizes: list[int] = []
        for dealer in dealers:
            opened = cohort.opened_slots(dealer, survivors)
            self.slots[dealer] = slice(len(sizes), len(sizes) + len(opened))
            sizes += [shamir.SHARE_BYTES if shown else HASH_BYTES for shown in opened]
        self.fields = struct.Struct("".join(f"{size}s" for size in sizes))


class Opener:
    """The shares that holders opened, and the secrets and masks rebuilt from them.

    Args:
        cohort: the attempt.
        digests: by dealer and holder, what the dealer sent.
        links: by client, the key agreed with it.
        sharers: who dealt shares.
        survivors: who is in the sums.
        received: the holders' answers by name, sorted.
        late: the late context, empty where the plan has none.
    """

    def __init__(
        self,
        cohort: Cohort,
        digests: Mapping[str, Mapping[str, bytes]],
        links: Mapping[str, Secret],
        sharers: Group,
        survivors: Group,
        received: Mapping[str, bytes],
        late: bytes = b"",
    ) -> None:
        self._cohort, self._digests, self._survivors = cohort, digests, survivors
        self._late = late
        self._weights: dict[tuple[int, ...], list[int]] = {}
        self._pairs: dict[str, keys.Pair] = {}
        plan = cohort.session.plan
        self._holders: dict[str, tuple[str, ...]] = {}
        # By identity of the holders' order: in a full graph all dealers share it.
        same: dict[int, tuple[str, ...]] = {}
        for dealer in digests:
            order = cohort.graph.holders(dealer)
            if id(order) not in same or order is not plan.cohort:
                same[id(order)] = tuple(name for name in order if name in received)[
                    : plan.threshold
                ]
            self._holders[dealer] = same[id(order)]
        layouts: dict[tuple[str, ...], Layout] = {}
        self._layouts: dict[str, Layout] = {}
        self._answers: dict[str, tuple[bytes, ...]] = {}
        for name in sorted({name for holders in self._holders.values() for name in holders}):
            dealers = cohort.dealers(name, sharers)
            if dealers not in layouts:
                layouts[dealers] = Layout(cohort, dealers, survivors)
            self._layouts[name] = layouts[dealers]
            with message_of(name):
                self._answers[name] = _verified(
                    cohort, links[name], name, received[name], layouts[dealers]
                )

    def masks(self, node: Node) -> list[tuple[bytes, int]]:
        """Return the keys of the masks left in a node's sum, with the signs that take them out."""
        cohort, plan = self._cohort, self._cohort.session.plan
        alive = self._survivors.select(node.members, plan.place)
        masks = [(self._self_mask_key(name, node), -1) for name in alive]
        for gone in set(node.members).intersection(self._digests).difference(alive):
            for peer in cohort.peers(gone, node, self._survivors):
                agreed: Secret = self.pair(gone).agree(
                    cohort.id, peer, cohort.adverts[peer].mask_key
                )
                # The survivor added this mask if its name sorts first; take it out again.
                key = keys.pair_mask_key(agreed, node.name, self._late)
                masks.append((key, -1 if peer < gone else 1))
        return masks

    def seed(self, owner: str, slot: int) -> bytes:
        """Return a survivor's self-mask seed of its node number slot - 1."""
        cohort, node = self._cohort, self._cohort.nodes_of(owner)[slot - 1]
        seed = self._combine(owner, slot)
        promised = cohort.adverts[owner].commitments[slot - 1]
        if (
            seed is None
            or keys.seed_commitment(seed, cohort.session.instance, owner, node.name) != promised
        ):
            raise self._guilty(owner)
        return seed

    def pair(self, owner: str) -> keys.Pair:
        """Return the mask key of one that dropped out."""
        if owner not in self._pairs:
            private = self._combine(owner, 0)
            pair = keys.Pair(private) if private is not None else None
            if pair is None or pair.public_bytes != self._cohort.adverts[owner].mask_key:
                raise self._guilty(owner)
            self._pairs[owner] = pair
        return self._pairs[owner]

    def _self_mask_key(self, name: str, node: Node) -> bytes:
        slot = 1 + self._cohort.nodes_of(name).index(node)
        session = self._cohort.id
        return keys.self_mask_key(self.seed(name, slot), session, name, node.name, self._late)

    def _combine(self, owner: str, slot: int) -> bytes | None:
        holders = self._holders[owner]
        require(self._cohort.session.plan, "reveal", len(holders))
        points = self._cohort.points(owner, holders)
        if points not in self._weights:
            self._weights[points] = shamir.weights_at_zero(points)
        at = [self._layouts[holder].slots[owner].start + slot for holder in holders]
        shares = [self._answers[holder][place] for holder, place in zip(holders, at, strict=True)]
        return shamir.combine(shares, self._weights[points])

    def _guilty(self, owner: str) -> ProtocolError:
        """Return whose fault a wrong secret is: a holder's that answers falsely, or the dealer's.

        Every holder checked its bundle against the dealer's digest before it uploaded, so a holder
        that answers something else lies; when all answers are genuine, the dealer dealt shares of
        another secret.
        """
        cohort = self._cohort
        opened = cohort.opened_slots(owner, self._survivors)
        for holder in self._holders[owner]:
            answer = self._answers[holder][self._layouts[holder].slots[owner]]
            hashes = keys.share_hashes(answer, cohort.id, owner, holder, opened)
            if keys.bundle_digest(hashes) != self._digests[owner][holder]:
                return ProtocolError(
                    f"reveal of {holder!r}: not the shares that {owner!r} dealt",
                    blames=holder,
                    sender=holder,
                )
        return ProtocolError(
            f"the shares of {owner!r} rebuild another secret than it committed to", blames=owner
        )


def _verified(
    cohort: Cohort, link: Secret, name: str, data: bytes, layout: Layout
) -> tuple[bytes, ...]:
    """Return the opened shares and hashes of one answer, slot after slot."""
    body = of_session(cohort.id, messages.verify_for_server(Reveal, data, link, name), name).body
    if len(body) != layout.fields.size:
        raise ProtocolError(
            f"reveal of {name!r}: {len(body)} bytes, {layout.fields.size} expected", blames=name
        )
    return layout.fields.unpack(body)
