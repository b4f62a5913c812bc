"""The server's side of drawing a sparse graph: it collects, and knows no more than all clients do.

Every client of the tree must take part. What the server can do is to break a draw off and begin
another, `fedtree_secagg.beacon.CEREMONIES` times in all; the bound that the statement names counts
on that.
"""

import logging
from collections.abc import Callable, Mapping

from fedtree_secagg import Plan, SecAggError, beacon
from fedtree_secagg.beacon import CEREMONIES
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.stages import MERGE, Exchange, in_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.server.channel import Channel, payloads
from fedtree_secure.server.state import ServerState

log = logging.getLogger("fedtree_secure.server")
TRIES = 2  # before a round; clients that lost a message are there again at the second


def draw_graph(
    channel: Channel,
    terms: Terms,
    draft: Plan,
    state: ServerState,
    save: Callable[[ServerState], None],
    number: int,
) -> bytes | None:
    """Return what draws the graph of a round; drawn now unless it was before.

    Args:
        channel: To the clients.
        terms: What everybody pinned.
        draft: The plan that it is drawn for.
        state: Which draws there were; changed.
        save: Makes the state durable.
        number: The round.

    Returns:
        32 bytes that all clients of the draft have verified; None where not all took part.
    """
    tree = draft.tree.hex()
    if tree in state.beacons:
        return bytes.fromhex(state.beacons[tree])
    for _ in range(TRIES):
        ceremony = state.ceremonies.get(tree, 0)
        if ceremony >= CEREMONIES:
            log.warning("round %d: its graph was drawn %d times in vain", number, CEREMONIES)
            return None
        state.ceremonies[tree] = ceremony + 1
        save(state)  # no number is offered twice
        drawn = _drawn(channel, terms, draft, ceremony, number)
        if drawn is not None:
            state.beacons[tree] = drawn.hex()
            save(state)
            return drawn
    return None


def _drawn(channel: Channel, terms: Terms, draft: Plan, ceremony: int, number: int) -> bytes | None:
    """Hold one ceremony; None where somebody is missing or sends what does not fit."""

    def ask(exchange: Exchange, message: wire.Message) -> Mapping[str, wire.Reply]:
        requests = dict.fromkeys(draft.cohort, message)
        return channel.exchange(in_round(number, exchange), requests, needed=False)

    try:
        sent = payloads(ask(Exchange.DRAW_COMMIT, wire.DrawCommit(ceremony, number == MERGE)))
        commitments = beacon.collect(terms.roster, draft, ceremony, sent)
        opened = payloads(ask(Exchange.DRAW_OPEN, wire.DrawOpen(commitments)))
        openings = beacon.conclude(terms.roster, draft, ceremony, commitments, opened)
        kept = ask(Exchange.DRAW_KEEP, wire.DrawKeep(openings))
    except SecAggError as error:
        log.warning("round %d: its graph was not drawn: %s", number, error)
        return None
    missing = [name for name in draft.cohort if not isinstance(kept.get(name), wire.Done)]
    if missing:
        log.warning("round %d: %s did not keep its graph", number, ", ".join(missing[:5]))
        return None
    return beacon.value_of(terms.roster, draft, ceremony, openings)
