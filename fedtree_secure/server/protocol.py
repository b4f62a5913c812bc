"""Protocol steps on the server's side: what a step refuses is dropped, with who sent it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedtree_secagg import ProtocolError, SecAggError, sketch
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.stages import Exchange
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
