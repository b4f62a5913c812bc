"""What a client checks before it joins, sketches, and adopts a tree.

Each function looks at one request and returns the `Step` that it leads to; none changes anything.
"""

from collections.abc import Sequence

from fedtree_secagg import sketch
from fedtree_secure.agreed.messages import (
    AdoptTree,
    Done,
    Join,
    Joined,
    Prepare,
    ProposeTree,
    Protocol,
    Reply,
    SketchHello,
    SketchSeal,
    SketchSend,
    Voted,
    WireError,
    digest,
)
from fedtree_secure.agreed.round_plan import (
    check_members,
    compute_tree,
    fixed_tree,
    sketch_context,
    vote_bytes,
)
from fedtree_secure.agreed.stages import MOST_ATTEMPTS, MOST_SKETCHES, Purpose
from fedtree_secure.client.gradient_requests import gradient_send
from fedtree_secure.client.party import Party
from fedtree_secure.client.sessions import (
    GradientGreeted,
    GradientSealed,
    Idle,
    Session,
    SketchGreeted,
    SketchSealed,
    TreeVoted,
)
from fedtree_secure.client.step import Charge, OutOfOrder, Refusal, Step
from fedtree_secure.client.store import Record


def join(party: Party, _session: Session, message: Join) -> Step:
    """The terms and the model must be this client's own; its answer holds public numbers."""
    if message.terms != party.terms.digest or message.model != party.facts.digest:
        raise Refusal("mismatch")
    plan = party.member.noise_plan

    def answer(_: bytes) -> tuple[Session, Reply]:
        record = party.store.record
        trees = len(record.earlier) + 1 if party.has_tree else 0
        return Idle(), Joined(
            plan.rounds,
            party.records,
            plan.fingerprint,
            party.outputs,
            record.known_round,
            trees,
        )

    return Step(answer)


def sketch_hello(party: Party, _session: Session, message: SketchHello) -> Step:
    """The job must need distances, for its tree or late clients, and a quorum must take part."""
    record = party.store.record
    settled = record.voted and not party.job.cohort.late
    if fixed_tree(party.terms, party.facts) is not None or settled:
        raise Refusal("sketch", "no distances are needed, or a tree was signed")
    if record.sketches >= MOST_SKETCHES:
        raise Refusal("sketch", f"{MOST_SKETCHES} sketches were made, and no more ever are")
    check_members(message.members, party.terms)
    if party.id not in message.members:
        raise WireError("a sketch of a group that this client is not in")
    if not record.sketch_attempt < message.attempt <= MOST_ATTEMPTS:
        raise OutOfOrder(f"{party.id}: sketch attempt {message.attempt} was used, or is absurd")
    context = sketch_context(party.terms, party.facts.digest, message.attempt)

    def answer(_: bytes) -> tuple[Session, Reply]:
        state, hello = party.sketch_advert(message.members, context)
        return SketchGreeted(message.attempt, state), Protocol(hello)

    def write(noted: Record) -> None:
        noted.sketch_attempt = message.attempt

    return Step(answer, write)


def sketch_seal(party: Party, session: Session, message: SketchSeal) -> Step:
    """The adverts must be signed by a quorum of the roster, this client's among them."""
    if not isinstance(session, SketchGreeted | GradientGreeted):
        raise OutOfOrder(f"{party.id}: no sketch is at this stage")
    state, sealed = sketch.seal(session.state, message.hellos, randomness=party.fresh())
    if len(state.group.names) < party.terms.quorum:
        raise Refusal("sketch", "fewer clients than a quorum would be in this sketch")
    following = SketchSealed if isinstance(session, SketchGreeted) else GradientSealed
    return Step(lambda _: (following(session.attempt, state), Protocol(sealed)))


def sketch_send(party: Party, session: Session, message: SketchSend) -> Step:
    """The sealed seed must be the one that the group's leader committed to."""
    if isinstance(session, GradientSealed):
        return gradient_send(party, session, message)
    if not isinstance(session, SketchSealed):
        raise OutOfOrder(f"{party.id}: no sketch is at this stage")
    state = sketch.unseal(session.state, message.sealed)
    purpose, event = party.sketch_event()

    def answer(seed: bytes) -> tuple[Session, Reply]:
        values = party.store.state
        if values.sketched is None:
            values.sketched = party.sketch_vectors(seed)
        size = party.job.topology.sketch_size
        return Idle(), Protocol(sketch.encode(state, list(values.sketched), size=size))

    def write(noted: Record) -> None:
        noted.sketches += 1
        noted.sketched_attempt = session.attempt

    return Step(answer, write, Charge(purpose, event, repeatable=True), keeps=True, paced=True)


def propose_tree(party: Party, _session: Session, message: ProposeTree) -> Step:
    """The tree must follow from distances to which this client's own sketch went; it signs one."""
    record = party.store.record
    if fixed_tree(party.terms, party.facts) is not None:
        raise Refusal("tree", "this job's tree needs no distances")
    if message.attempt != record.sketched_attempt or party.id not in message.members:
        raise Refusal("tree", "the distances are not of a sketch that this client took part in")
    if message.gradients and message.gradients.attempt != record.gradient_sketched:
        raise Refusal("tree", "the gradients are not of a sketch that this client took part in")
    check_members(message.members, party.terms)
    proposed = digest(message)
    if record.voted not in ("", proposed):
        raise Refusal("tree", "another tree was signed")
    tree = compute_tree(party.terms, party.facts, message)
    if tree.labels != message.labels:
        raise Refusal("tree", "the labels do not follow from the distances")

    def answer(_: bytes) -> tuple[Session, Reply]:
        signature = party.member.identity.sign(vote_bytes(party.terms, message))
        return TreeVoted(message, tree), Voted(signature)

    def write(noted: Record) -> None:
        noted.voted = proposed

    return Step(answer, write)


def adopt_tree(party: Party, session: Session, message: AdoptTree) -> Step:
    """A quorum of the roster must have signed the very proposal that this client signed."""
    if not isinstance(session, TreeVoted):
        raise OutOfOrder(f"{party.id}: no tree was proposed to this client")
    check_quorum(party, message.votes, vote_bytes(party.terms, session.proposal))
    labels, proposed = session.tree.labels, digest(session.proposal)
    new = party.store.record.tree is None

    def answer(_: bytes) -> tuple[Session, Reply]:
        state = party.store.state
        if not party.job.cohort.late:  # else a late batch is placed by a sketch of the same vectors
            state.sketched = None
        if new and state.pending is not None:
            # What is not shared is the client's own at once; the rest waits for the merge.
            for (start, stop), shared in zip(
                party.facts.layout.layers, party.shares(), strict=False
            ):
                if not shared:
                    state.own[start:stop] += state.pending[start:stop]
        return Idle(), Done()

    def write(noted: Record) -> None:
        noted.tree, noted.evidence = labels, proposed
        noted.seated = list(session.proposal.members)

    return Step(answer, write, keeps=True)


def prepare(party: Party, _session: Session, _message: Prepare) -> Step:
    """Nothing is checked but the budget: the head starts at public values and stays at home."""
    finished = Purpose.HEAD in party.store.record.finished
    if not party.job.head_steps or finished or party.member.data.train.labels is None:
        return Step(lambda _: (Idle(), Done()))

    def answer(seed: bytes) -> tuple[Session, Reply]:
        party.train_head(seed)
        return Idle(), Done()

    charge = Charge(Purpose.HEAD, party.head_event(), repeatable=True)
    return Step(answer, charge=charge, keeps=True, paced=True)


def check_quorum(party: Party, votes: Sequence[tuple[str, bytes]], signed: bytes) -> None:
    """Refuse a tree, or a change of one, that no quorum of the roster signed."""
    names = [name for name, _ in votes]
    if len(set(names)) != len(names) or len(names) < party.terms.quorum:
        raise Refusal("tree", "fewer clients than a quorum signed this tree")
    if not all(party.terms.roster.verifies(name, sign, signed) for name, sign in votes):
        raise Refusal("tree", "a signature of the quorum does not hold")
