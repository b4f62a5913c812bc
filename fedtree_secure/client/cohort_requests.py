"""What a client checks before it signs a change of the cohort, and before it follows one.

A client signs one change of each tree. It follows a line of changes only where a quorum of the
roster signed each, so no two lines exist while at most `colluders` clients lie, and it computes
every tree itself: the disclosure rule is its own (`agreed.cohort`). Nothing here costs budget.
"""

from fedtree_secure.agreed.cohort import (
    Roll,
    change_digest,
    change_vote_bytes,
    first_roll,
    follow,
    leave_bytes,
    line_of,
)
from fedtree_secure.agreed.messages import (
    Change,
    Learn,
    Learnt,
    Left,
    ProposeChange,
    ProposeTree,
    Reply,
    Voted,
    WireError,
    digest,
)
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.agreed.round_plan import (
    check_members,
    compute_tree,
    fixed_tree,
    vote_bytes,
)
from fedtree_secure.agreed.schedule import opens, turn_of
from fedtree_secure.client.party import Party
from fedtree_secure.client.sessions import Idle, Session
from fedtree_secure.client.step import Refusal, Step
from fedtree_secure.client.store import Earlier, Record
from fedtree_secure.client.tree_requests import check_quorum


def propose_change(party: Party, _session: Session, message: ProposeChange) -> Step:
    """The change must follow from the tree in force, and be the one change of it that this client
    signs. Distances must be of a sketch that it took part in, where they are about it.
    """
    record, change = party.store.record, message.change
    if not party.has_tree:
        raise Refusal("tree", "a change of a tree that this client does not know")
    proposed = change_digest(change)
    if record.voted_change not in ("", proposed):
        raise Refusal("tree", "another change of this tree was signed")
    distances = change.distances
    about_it = distances is not None and party.id in distances.members
    if distances is not None and about_it and distances.attempt != record.sketched_attempt:
        raise Refusal("tree", "the distances are not of a sketch that this client took part in")
    _followed(party, party.roll(), change)
    if party.id in {name for name, _ in change.gone}:
        raise Refusal("gone", "it is declared gone, and is here")

    def answer(_: bytes) -> tuple[Session, Reply]:
        return Idle(), Voted(party.member.identity.sign(change_vote_bytes(party.terms, change)))

    def write(noted: Record) -> None:
        noted.voted_change = proposed

    return Step(answer, write)


def learn(party: Party, _session: Session, message: Learn) -> Step:
    """A quorum of the roster must have signed the first tree and every change after it, each must
    follow from the one before, and no tree that this client knows may be another one.
    """
    roll = _known(party, message)
    changes = message.changes
    while changes and changes[0][0].number < len(roll.eras):  # told again
        change, _ = changes[0]
        if change_digest(change) != roll.eras[change.number].evidence:
            raise Refusal("tree", "another change of a tree than the one that was followed")
        changes = changes[1:]
    for change, votes in changes:
        check_quorum(party, votes, change_vote_bytes(party.terms, change))
        roll = _followed(party, roll, change)
    values, whole = _values_under(party, roll)
    known = party.store.record.known_round if whole else -1

    def answer(_: bytes) -> tuple[Session, Reply]:
        state = party.store.state
        if not party.job.cohort.late:
            state.sketched = None
        state.nodes = values
        return Idle(), Learnt(known, len(roll.eras))

    def write(noted: Record) -> None:
        *before, now = roll.eras
        moved = len(roll.eras) != len(noted.earlier) + 1
        noted.earlier = [Earlier(era.tree.labels, era.evidence) for era in before]
        noted.tree, noted.evidence = now.tree.labels, now.evidence
        noted.seated, noted.gone = sorted(roll.seated), sorted(roll.gone)
        noted.known_round = known
        if message.tree is not None:
            noted.voted = digest(message.tree)
        if moved:
            noted.voted_change = ""

    return Step(answer, write, keeps=True)


def leave(party: Party) -> Step:
    """What a client that left answers to everything: that it left, signed, and nothing else."""
    signature = party.member.identity.sign(leave_bytes(party.terms, party.id))
    return Step(lambda _: (Idle(), Left(signature)))


def check_here(party: Party) -> None:
    """Refuse rounds to a client that was declared gone: the others count it as away for good."""
    if party.id in party.store.record.gone:
        raise Refusal("gone", "a quorum followed the server's word that this client is gone")


def check_turn(party: Party, number: int) -> None:
    """Refuse a round that is not this client's turn, or in which no sum of its could open."""
    turn, nodes = turn_of(party.terms, number), party.nodes()
    if party.id not in turn:
        raise Refusal("turn", f"round {number} does not ask this client")
    if nodes and not any(opens(party.terms, turn, node.members) for node in nodes):
        raise Refusal("turn", f"round {number} asks too few of each of its groups")


def _known(party: Party, message: Learn) -> Roll:
    """The roll that this client holds, or that of a first tree which it has missed."""
    record, terms, proposal = party.store.record, party.terms, message.tree
    if proposal is None:
        if not party.has_tree:
            raise Refusal("tree", "changes of a tree that this client does not know")
        return party.roll()
    if fixed_tree(terms, party.facts) is not None:
        raise Refusal("tree", "this job's tree needs no distances")
    if party.has_tree:
        first = record.earlier[0].evidence if record.earlier else record.evidence
        if first != digest(proposal):
            raise Refusal("tree", "another tree was adopted")
        return party.roll()
    _check_first(party, proposal)
    check_quorum(party, message.votes, vote_bytes(terms, proposal))
    return first_roll(terms, compute_tree(terms, party.facts, proposal), proposal)


def _check_first(party: Party, proposal: ProposeTree) -> None:
    record = party.store.record
    if record.voted not in ("", digest(proposal)):
        raise Refusal("tree", "another tree was signed")
    check_members(proposal.members, party.terms)
    if party.id not in proposal.members:
        return  # it came late: this tree keeps its layers at home
    gradients = proposal.gradients
    if proposal.attempt != record.sketched_attempt or (
        gradients is not None and gradients.attempt != record.gradient_sketched
    ):
        raise Refusal("tree", "the distances are not of a sketch that this client took part in")


def _followed(party: Party, roll: Roll, change: Change) -> Roll:
    try:
        return follow(party.terms, party.facts, roll, change)
    except WireError as error:
        raise Refusal("tree", str(error)) from None


def _values_under(party: Party, roll: Roll) -> tuple[dict[str, NodeValues], bool]:
    """Return the values of this client's nodes under the last tree, and whether all are known.

    Who comes into a node knows none of its sums: it forgets those of its other nodes too, which are
    public among their members, and gets all again.
    """
    state, trees = party.store.state, [era.tree for era in roll.eras]
    known_trees = len(party.store.record.earlier) + 1 if party.has_tree else 0
    values: dict[str, NodeValues] = {}
    for node in party.nodes_under(roll.tree):
        line = dict(line_of(trees, party.facts.layout, node))
        was = line.get(known_trees - 1)
        if was is None or party.id not in was.members:
            return {}, False
        if was.name in state.nodes:
            values[node.name] = state.nodes[was.name]
    return values, True
