"""What a client checks while the sparse graph of its rounds is drawn, and before it masks over it.

The client computes from its own terms and tree what is drawn for; the server says only when. It
masks over no sparse graph but the one whose draw it took part in, opened and verified
(`fedtree_secagg.beacon`). The complete graph needs no draw and withstands more; a job that demands
a sparse one refuses it all the same.
"""

from fedtree_secagg import Plan, beacon
from fedtree_secure.agreed.messages import (
    Begin,
    Done,
    DrawCommit,
    DrawKeep,
    DrawOpen,
    Protocol,
    Reply,
)
from fedtree_secure.agreed.round_plan import draft_of_round
from fedtree_secure.client.party import Party
from fedtree_secure.client.sessions import DrawCommitted, DrawOpened, Idle, Session
from fedtree_secure.client.step import OutOfOrder, Refusal, Step
from fedtree_secure.client.store import Record


def draw_commit(party: Party, _session: Session, message: DrawCommit) -> Step:
    """The client's own terms and tree must lead to a sparse graph; a number serves once."""
    draft = _draft(party, merge=message.merge)
    if draft is None or party.id not in draft.place:
        raise Refusal("graph", "no sparse graph is to be drawn that this client is in")
    state, commitment = beacon.commit(
        party.member.identity,
        party.id,
        party.terms.roster,
        draft,
        number=message.number,
        randomness=party.fresh(),
    )

    def answer(_: bytes) -> tuple[Session, Reply]:
        return DrawCommitted(state), Protocol(commitment)

    def write(_: Record) -> None:
        party.store.journal.ceremony(draft.tree, message.number)

    return Step(answer, write)


def draw_open(party: Party, session: Session, message: DrawOpen) -> Step:
    """The client's own commitment must be among those of all."""
    if not isinstance(session, DrawCommitted):
        raise OutOfOrder(f"{party.id}: no graph is being drawn")
    state, opening = beacon.open_own(session.state, message.commitments)
    return Step(lambda _: (DrawOpened(state), Protocol(opening)))


def draw_keep(party: Party, session: Session, message: DrawKeep) -> Step:
    """Every part must be the one that its client committed to."""
    if not isinstance(session, DrawOpened):
        raise OutOfOrder(f"{party.id}: no graph is being drawn")
    drawn = beacon.verify(session.state, message.openings)

    def write(noted: Record) -> None:
        noted.beacons = {**noted.beacons, drawn.tree.hex(): drawn.value.hex()}

    return Step(lambda _: (Idle(), Done()), write)


def checked_beacon(party: Party, message: Begin) -> bytes:
    """Return what draws the graph of a round; empty for the complete graph.

    Raises:
        Refusal: The server names another draw than the client verified, or none where the job
            demands one.
    """
    draft = _draft(party, merge=message.merge)
    if not message.beacon:
        if draft is not None and party.job.masking.graph == "sparse":
            raise Refusal("graph", "the job demands a sparse graph, and the server names none")
        return b""
    known = party.store.record.beacons
    if draft is None or known.get(draft.tree.hex()) != message.beacon.hex():
        raise Refusal("graph", "a sparse graph that this client did not draw")
    return message.beacon


def _draft(party: Party, *, merge: bool) -> Plan | None:
    """What the graph of such rounds is drawn for; None before there is a tree for them."""
    if not (merge or party.has_tree):
        return None
    return draft_of_round(party.terms, party.facts, party.tree(), merge=merge)
