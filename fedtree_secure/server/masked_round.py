"""A masked round on the server's side: five exchanges by itself, three where it was dealt ahead.

    advertise   the clients' keys               \\  by themselves, or with the two exchanges
    share       their shares                    /   of the round before that are like them
    mask        inbox out, masked update back       + the next round's adverts
    confirm     survivors out, votes back           + the next round's shares
    reveal      votes out, shares back

The cohort of a round that is dealt ahead is fixed before the one before it is opened. So it is used
only where everybody who is to be asked is in it; whoever missed a message is asked again in a round
by itself (secagg/SPEC.md, "Rounds dealt ahead").
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fedtree_secagg import Plan, SecAggError
from fedtree_secagg import server as masking
from fedtree_secagg.server import NodeSum
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.stages import Exchange, in_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.server.channel import Channel, payloads
from fedtree_secure.server.protocol import accepted

log = logging.getLogger("fedtree_secure.server")
S = TypeVar("S")


@dataclass(frozen=True)
class Following:
    """The next round, to be dealt with the exchanges of this one.

    Attributes:
        round: It.
        begin: What its clients are asked, without experts.
        names: Who is asked; all of them are asked in this round too.
    """

    round: "MaskedRound"
    begin: wire.Begin
    names: frozenset[str]


@dataclass(frozen=True)
class Given:
    """What the clients of a round that was dealt ahead begin with.

    Attributes:
        experts: By client; clients that are told alike have one object.
        late: What binds all of it, see `agreed.round_plan.late_context`.
    """

    experts: Mapping[str, wire.Experts]
    late: bytes


class MaskedRound:
    """One attempt of a masked round.

    Args:
        channel: To the clients.
        terms: What everybody pinned.
        plan: Of the round.
        number: The round.
        attempt: See `fedtree_secagg.Session`.

    Attributes:
        dealt: Whose shares are there, once they are.
    """

    def __init__(
        self, channel: Channel, terms: Terms, plan: Plan, number: int, attempt: int
    ) -> None:
        self._channel, self.plan, self.number = channel, plan, number
        self._state: Any = masking.begin(terms.roster, plan, round=number, attempt=attempt)
        self._inboxes: Mapping[str, bytes] = {}
        self.dealt: frozenset[str] = frozenset()

    def run(
        self, begins: Mapping[str, wire.Message], following: Following | None = None
    ) -> tuple[dict[str, NodeSum], frozenset[str]]:
        """Run the protocol once, all five exchanges.

        Args:
            begins: The opening request of each client of the cohort.
            following: The next round, which deals itself where everything comes; see
                `Following.round`'s `dealt`.

        Returns:
            The sums of the opened nodes by name, and who answered the opening request.

        Raises:
            fedtree_secagg.SecAggError: Nothing can be opened.
        """
        replies = self._ask(Exchange.ADVERTISE, begins)
        began = frozenset(payloads(replies))
        adverts = self.gather(payloads(replies))
        asked = _wrap(adverts, wire.Share)
        self.deal(payloads(self._ask(Exchange.SHARE, asked)))
        sums, _ = self.open(following=following)
        return sums, began

    def gather(self, adverts: Mapping[str, bytes]) -> dict[str, bytes]:
        """Fix the cohort; return what each of its clients is told of the others."""
        self._state, out = self._step(
            Exchange.ADVERTISE, masking.collect_adverts, self._state, adverts
        )
        return out

    def deal(self, shares: Mapping[str, bytes]) -> None:
        """Sort the shares by who holds them."""
        self._state, self._inboxes = self._step(
            Exchange.SHARE, masking.route_shares, self._state, shares
        )
        self.dealt = frozenset(self._inboxes)

    def open(
        self, given: Given | None = None, following: Following | None = None
    ) -> tuple[dict[str, NodeSum], frozenset[str]]:
        """Run the last three exchanges.

        Args:
            given: Where this round was dealt ahead.
            following: See `run`.

        Returns:
            The sums of the opened nodes by name, and whose uploads came.

        Raises:
            fedtree_secagg.SecAggError: Nothing can be opened.
        """
        late = b"" if given is None else given.late
        ahead = _Ahead(following)
        replies = self._ask(Exchange.MASK, self._masks(given, following))
        came = frozenset(payloads(replies))
        state, survivors = self._step(
            Exchange.MASK,
            lambda held, data: masking.collect_masked(held, data, late=late),
            self._state,
            payloads(replies),
        )
        adverts = ahead.gather(replies)
        asked: dict[str, wire.Message] = _wrap(survivors, wire.Confirm, adverts)
        replies = self._ask(Exchange.CONFIRM, asked)
        state, votes = self._step(Exchange.CONFIRM, masking.collect_votes, state, payloads(replies))
        ahead.deal(replies)
        replies = self._ask(Exchange.REVEAL, _wrap(votes, wire.Reveal))
        return self._step(Exchange.REVEAL, masking.open_sums, state, payloads(replies)), came

    def _masks(self, given: Given | None, following: Following | None) -> dict[str, wire.Message]:
        return {
            name: wire.Mask(
                inbox,
                None if given is None else given.experts[name],
                following.begin if following is not None and name in following.names else None,
            )
            for name, inbox in self._inboxes.items()
        }

    def _ask(
        self, exchange: Exchange, requests: Mapping[str, wire.Message]
    ) -> dict[str, wire.Reply]:
        return self._channel.exchange(in_round(self.number, exchange), requests)

    def _step(
        self,
        exchange: Exchange,
        step: Callable[[Any, Any], S],
        state: Any,
        incoming: Mapping[str, bytes],
    ) -> S:
        what = in_round(self.number, exchange)
        return accepted(what, lambda data: step(state, data), dict(incoming))


class _Ahead:
    """Deals the next round, if there is one, and leaves it as soon as anything of it is missing."""

    def __init__(self, following: Following | None) -> None:
        self._following = following

    def gather(self, replies: Mapping[str, wire.Reply]) -> Mapping[str, bytes]:
        """Return what each client is told of the others' adverts; nothing where one is missing."""
        following = self._following
        told = self._whole(replies, lambda made, adverts: made.round.gather(adverts))
        if following is None or told is None or told.keys() != following.names:
            self._following = None
            return {}
        return told

    def deal(self, replies: Mapping[str, wire.Reply]) -> None:
        """Take the shares."""
        self._whole(replies, lambda made, shares: made.round.deal(shares))

    def _whole(
        self,
        replies: Mapping[str, wire.Reply],
        step: Callable[[Following, Mapping[str, bytes]], S],
    ) -> S | None:
        following = self._following
        if following is None:
            return None
        sent = {
            name: reply.ahead
            for name, reply in replies.items()
            if isinstance(reply, wire.Protocol) and reply.ahead
        }
        try:
            if sent.keys() == following.names:
                return step(following, sent)
        except SecAggError as error:
            log.warning("round %d is not dealt ahead: %s", following.round.number, error)
        self._following = None
        return None


def _wrap(
    messages: Mapping[str, bytes],
    kind: Callable[..., wire.Message],
    more: Mapping[str, bytes] | None = None,
) -> dict[str, wire.Message]:
    """Wrap protocol messages; equal ones become one object, so that they are encoded once.

    Args:
        messages: By client.
        kind: Of the message.
        more: By client, a second field of the message; None where it has none.
    """
    made: dict[tuple[int, ...], wire.Message] = {}
    keys: dict[str, tuple[int, ...]] = {}
    for name, data in messages.items():
        parts: Iterable[bytes] = (data,) if more is None else (data, more.get(name, b""))
        keys[name] = tuple(map(id, parts))
        made.setdefault(keys[name], kind(*parts))
    return {name: made[key] for name, key in keys.items()}
