"""What a client checks before a sketch of its first round's gradient, and how the round uses it.

The gradient is the very release that the first round uploads: it is charged once, when it is made.
The server sees distances between noisy gradients, which follow from what it will see anyway and
from the noise; the tree is cut by them (`agreed.cuts`).
"""

import numpy as np

from fedtree_secagg import sketch
from fedtree_secure.agreed.messages import GradientHello, Protocol, Reply, SketchSend, WireError
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.agreed.round_plan import check_members, gradient_context
from fedtree_secure.agreed.stages import FIRST, MOST_ATTEMPTS, MOST_SKETCHES, purpose_of
from fedtree_secure.client.party import Party
from fedtree_secure.client.received import checked_experts, take_over
from fedtree_secure.client.sessions import GradientGreeted, GradientSealed, Idle, Session
from fedtree_secure.client.state import Floats
from fedtree_secure.client.step import Charge, OutOfOrder, Refusal, Step
from fedtree_secure.client.store import Record


def gradient_hello(party: Party, _session: Session, message: GradientHello) -> Step:
    """The job must weigh noise, no tree may be signed, a quorum must take part, and the experts
    must be those that follow from the merge.
    """
    record = party.store.record
    if not party.job.weighs_noise or record.voted:
        raise Refusal("sketch", "no gradients are needed, or a tree was signed")
    if record.gradient_sketches >= MOST_SKETCHES:
        raise Refusal("sketch", f"{MOST_SKETCHES} sketches were made, and no more ever are")
    check_members(message.members, party.terms)
    if party.id not in message.members:
        raise WireError("a sketch of a group that this client is not in")
    if not record.gradient_attempt < message.attempt <= MOST_ATTEMPTS:
        raise OutOfOrder(f"{party.id}: gradient attempt {message.attempt} was used, or is absurd")
    made = party.store.state.first is not None
    if not made and not party.store.affords(party.round_event()):
        raise Refusal("budget", "the first round would exceed the budget")
    received = checked_experts(party, message.experts, FIRST)
    context = gradient_context(party.terms, party.facts.digest, message.attempt, received.digests)

    def answer(_: bytes) -> tuple[Session, Reply]:
        take_over(party, party.store.state, received)
        state, hello = party.sketch_advert(message.members, context)
        return GradientGreeted(message.attempt, state), Protocol(hello)

    def write(noted: Record) -> None:
        noted.gradient_attempt = message.attempt
        noted.known_round, noted.head_merged = received.known_round, received.head_merged

    return Step(answer, write, keeps=True)


def gradient_send(party: Party, session: GradientSealed, message: SketchSend) -> Step:
    """The sealed seed must be the one that the group's leader committed to. A gradient is made, and
    charged as the first round, once.
    """
    state = sketch.unseal(session.state, message.sealed)
    charge = None
    if party.store.state.first is None:
        charge = Charge(purpose_of(FIRST), party.round_event(), repeatable=False)

    def answer(seed: bytes) -> tuple[Session, Reply]:
        values = party.store.state
        if values.first is None:
            values.first = party.first_gradient(seed)
        size = party.job.topology.gradient_sketch_size
        return Idle(), Protocol(sketch.encode(state, party.of_layers(values.first), size=size))

    def write(noted: Record) -> None:
        noted.gradient_sketches += 1
        noted.gradient_sketched = session.attempt

    return Step(answer, write, charge, keeps=True, paced=True)


def use_first_gradient(party: Party) -> Floats:
    """Hand out the gradient that was made before the tree, for the first round's upload.

    What the tree leaves at home takes the step there, as the round's own would have.
    """
    state, rate = party.store.state, party.job.training.learning_rate
    assert state.first is not None
    gradient, state.first = state.first, None
    shares = party.shares()
    for (begin, end), shared in zip(party.facts.layout.layers, shares, strict=False):
        if not shared:
            held = NodeValues(state.own[begin:end].copy())
            held.follow_gradient(gradient[begin:end].astype(np.float64), rate)
            state.own[begin:end] = held.values
    return gradient
