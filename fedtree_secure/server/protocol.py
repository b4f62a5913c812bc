"""Protocol steps on the server's side: what a step refuses is dropped, with who sent it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedtree_secagg import Plan, ProtocolError, SecAggError, sketch
from fedtree_secagg import server as masking
from fedtree_secagg.server import NodeSum
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.stages import Exchange, in_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.errors import RunStopped
from fedtree_secure.server.channel import Channel, payloads

log = logging.getLogger("fedtree_secure.server")
S = TypeVar("S")


def accepted(what: str, step: Callable[[dict[str, bytes]], S], incoming: dict[str, bytes]) -> S:
    """Do a protocol step with what it accepts of the messages."""
    while True:
        try:
            return step(incoming)
        except ProtocolError as error:
            refused = error.sender
            if refused not in incoming:
                raise
            log.warning("%s: message of %s refused: %s", what, refused, error)
            incoming = {name: data for name, data in incoming.items() if name != refused}


def run_sketch(
    channel: Channel,
    terms: Terms,
    context: bytes,
    hello: Mapping[str, wire.Message],
    named: Callable[[Exchange], str] = str,
) -> tuple[tuple[str, ...], Any]:
    """Let clients make their blinded sketches.

    Args:
        context: What the projection is bound to.
        hello: The opening request of each member.
        named: Name of an exchange of this sketch.

    Returns:
        Whose sketches arrived, sorted, and their squared distances (layers, clients, clients).

    Raises:
        RunStopped: Too few took part, or their messages contradict each other.
    """
    members = tuple(sorted(hello))
    sketching: dict[str, Any] = {"roster": terms.roster, "members": members, "context": context}
    asked: Mapping[str, wire.Message]
    try:
        hellos = payloads(channel.exchange(named(Exchange.SKETCH_HELLO), hello))
        broadcast = accepted(
            Exchange.SKETCH_HELLO, lambda given: sketch.collect(hellos=given, **sketching), hellos
        )
        everyone = next(iter(broadcast.values()))
        asked = dict.fromkeys(broadcast, wire.SketchSeal(everyone))
        sealed = payloads(channel.exchange(named(Exchange.SKETCH_SEAL), asked))
        routed = sketch.route(hellos=everyone, sealed=sealed, **sketching)
        send = wire.SketchSend(next(iter(routed.values())))
        asked = {name: send for name in routed if name in sealed}
        sketches = payloads(channel.exchange(named(Exchange.SKETCH), asked))
        return accepted(
            Exchange.SKETCH,
            lambda given: sketch.distances(given, hellos=everyone, **sketching),
            sketches,
        )
    except SecAggError as error:
        raise RunStopped(f"no distances, and so no tree: {error}") from error


class MaskedRound:
    """One attempt of a masked round.

    Args:
        channel: To the clients.
        terms: What everybody pinned.
        plan: Of the round.
        number: The round.
        attempt: See `fedtree_secagg.Session`.
    """

    def __init__(
        self, channel: Channel, terms: Terms, plan: Plan, number: int, attempt: int
    ) -> None:
        self._channel, self._number = channel, number
        self._begun = masking.begin(terms.roster, plan, round=number, attempt=attempt)

    def run(self, begins: Mapping[str, wire.Message]) -> tuple[dict[str, NodeSum], frozenset[str]]:
        """Run the protocol once.

        Args:
            begins: The opening request of each client of the cohort.

        Returns:
            The sums of the opened nodes by name, and who answered the opening request.

        Raises:
            fedtree_secagg.SecAggError: Nothing can be opened.
        """
        replies = self._ask(Exchange.ADVERTISE, begins)
        began = frozenset(payloads(replies))
        gathered, out = self._step(
            Exchange.ADVERTISE, replies, masking.collect_adverts, self._begun
        )
        replies = self._ask(Exchange.SHARE, _wrap(wire.Share, out))
        routed, out = self._step(Exchange.SHARE, replies, masking.route_shares, gathered)
        replies = self._ask(Exchange.MASK, _wrap(wire.Mask, out))
        summed, out = self._step(Exchange.MASK, replies, masking.collect_masked, routed)
        replies = self._ask(Exchange.CONFIRM, _wrap(wire.Confirm, out))
        agreed, out = self._step(Exchange.CONFIRM, replies, masking.collect_votes, summed)
        replies = self._ask(Exchange.REVEAL, _wrap(wire.Reveal, out))
        return self._step(Exchange.REVEAL, replies, masking.open_sums, agreed), began

    def _ask(
        self, exchange: Exchange, requests: Mapping[str, wire.Message]
    ) -> dict[str, wire.Reply]:
        return self._channel.exchange(in_round(self._number, exchange), requests)

    def _step(
        self,
        exchange: Exchange,
        replies: Mapping[str, wire.Reply],
        step: Callable[[Any, Any], S],
        state: Any,
    ) -> S:
        what = in_round(self._number, exchange)
        return accepted(what, lambda incoming: step(state, incoming), payloads(replies))


def _wrap(
    kind: Callable[[bytes], wire.Message], messages: Mapping[str, bytes]
) -> dict[str, wire.Message]:
    """Wrap protocol messages; equal ones become one object, so that they are encoded once."""
    made: dict[int, wire.Message] = {}
    for data in messages.values():
        made.setdefault(id(data), kind(data))
    return {name: made[id(data)] for name, data in messages.items()}
