"""Who may take part in a run: those who join with the model, head and bound that fit the others."""

import logging
from collections.abc import Iterable, Mapping

from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.outliers import outliers
from fedtree_secure.agreed.round_plan import clip_is_usable, largest_change
from fedtree_secure.agreed.shared_noise import shared_clip
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.server.channel import Channel

log = logging.getLogger("fedtree_secure.server")
Joined = dict[str, wire.Joined]


class Admission:
    """Asks clients to join.

    Args:
        terms, facts: What a client must know alike.
        channel: To the clients.

    Attributes:
        left_out: Clients whose bound does not fit the run's clip; they are not asked again.
    """

    def __init__(self, terms: Terms, facts: ModelFacts, channel: Channel) -> None:
        self._terms, self._facts, self._channel = terms, facts, channel
        self.left_out: frozenset[str] = frozenset()

    def first(self, exchange: str) -> Joined:
        """Ask everybody, before the run's clips are fixed."""
        return self._with_known_heads(self._without_outliers(self._asked(exchange, needed=True)))

    def late(self, exchange: str, missing: Iterable[str], clip: float) -> Joined:
        """Ask those who did not answer before: they may be back, or have approved now.

        Args:
            exchange: Its name.
            missing: Who is asked.
            clip: The run's, which must not cut their updates.
        """
        joined = self._with_known_heads(self._asked(exchange, missing))
        cut = {n for n, r in joined.items() if not clip_is_usable(clip, self._bound(r))}
        for name in sorted(cut):
            log.warning("client %s takes no part: the run's clip would cut its updates", name)
        self.left_out |= cut
        return {name: reply for name, reply in joined.items() if name not in cut}

    def clips(self, joined: Mapping[str, wire.Joined]) -> dict[str, float]:
        """Return the clip of each kind of round: the largest bound of those who are here."""
        return {
            kind: max(self._bound(reply, merge=kind == "merge") for reply in joined.values())
            for kind in ("round", "merge")
        }

    def _asked(
        self, exchange: str, names: Iterable[str] | None = None, *, needed: bool = False
    ) -> Joined:
        request = wire.Join(self._terms.digest, self._facts.digest)
        asked = dict.fromkeys(self._terms.names if names is None else names, request)
        replies = self._channel.exchange(exchange, asked, needed=needed)
        return {n: reply for n, reply in replies.items() if isinstance(reply, wire.Joined)}

    def _with_known_heads(self, joined: Joined) -> Joined:
        """Leave out clients whose head is not the one that the terms pin for their group."""
        wanted = {name: group.outputs for group in self._terms.heads for name in group.members}
        other = {n for n, reply in joined.items() if wanted.get(n, reply.outputs) != reply.outputs}
        for name in sorted(other):
            log.warning("client %s takes no part: its head has other outputs than pinned", name)
        return {name: reply for name, reply in joined.items() if name not in other}

    def _without_outliers(self, joined: Joined) -> Joined:
        """Leave out clients whose bound would make the grid useless for all others."""
        bounds = {name: self._bound(reply) for name, reply in joined.items()}
        self.left_out = outliers(bounds)
        for name in sorted(self.left_out):
            log.warning("client %s takes no part: its bound is far above the others'", name)
        return {name: reply for name, reply in joined.items() if name not in self.left_out}

    def _bound(self, reply: wire.Joined, *, merge: bool = False) -> float:
        job = self._terms.job
        if job.noise == "shared" and not merge:
            return shared_clip(self._terms)
        return largest_change(job, reply.noise_multiplier, reply.records, merge=merge)
