"""What a client checks before it takes a step of a round.

Each function looks at one request and returns the `Step` that it leads to; none changes anything.
Everything that a server sent is checked before the charge: after it nothing can be refused.
"""

import hashlib
from typing import Any

import numpy as np

from fedtree_dp import ConfigurationError, SharedPoissonGaussian
from fedtree_secagg import Plan
from fedtree_secagg import client as masking
from fedtree_secure.agreed.messages import (
    Alone,
    Begin,
    Confirm,
    Deliver,
    Done,
    Finish,
    Mask,
    Protocol,
    Reply,
    Reveal,
    Share,
    Voted,
)
from fedtree_secure.agreed.round_plan import enough_votes, finish_bytes, plan_of_round
from fedtree_secure.agreed.shared_noise import honest_in, release_of
from fedtree_secure.agreed.stages import FIRST, MERGE, MOST_ATTEMPTS, purpose_of
from fedtree_secure.client.cohort_requests import check_here, check_turn
from fedtree_secure.client.gradient_requests import use_first_gradient
from fedtree_secure.client.graph_requests import checked_beacon
from fedtree_secure.client.party import Party
from fedtree_secure.client.received import checked_experts, receive, take_over
from fedtree_secure.client.sessions import (
    FinishVoted,
    Idle,
    Received,
    RoundAdvertised,
    RoundConfirmed,
    RoundShared,
    RoundUploaded,
    Session,
)
from fedtree_secure.client.state import Floats
from fedtree_secure.client.step import Charge, OutOfOrder, Refusal, Step
from fedtree_secure.client.store import Record

LAST = "all"  # the stage after which no round follows
KEPT = "kept"  # the last experts are at home


def begin(party: Party, _session: Session, message: Begin) -> Step:
    """Counters, kind, clip, budget and experts must be what the public computations allow."""
    _check_open(party)
    _check_counters(party, message)
    if not party.sums(merge=message.merge):
        raise OutOfOrder(f"{party.id}: this client belongs to no group")
    check_turn(party, message.round)
    _check_clip(party, message)
    if message.merge and party.store.state.pending is None:
        raise Refusal("merge")
    charged = message.merge or _first_is_made(party, message.round)
    if not charged and not party.store.affords(party.round_event()):
        raise Refusal("budget", f"round {message.round} would exceed the budget")
    received = checked_experts(party, message.experts, message.round)
    plan = plan_of_round(
        party.terms,
        party.facts,
        party.tree(),
        party.store.record.evidence,
        message.clip,
        received.digests,
        merge=message.merge,
        beacon=checked_beacon(party, message),
    )
    _check_honest(party, plan, message)
    state, advert = masking.advertise(
        party.member.identity,
        party.id,
        party.terms.roster,
        plan,
        round=message.round,
        attempt=message.attempt,
        randomness=party.fresh(),
    )

    def answer(_: bytes) -> tuple[Session, Reply]:
        take_over(party, party.store.state, received)
        return RoundAdvertised(message.round, message.merge, state), Protocol(advert)

    def write(noted: Record) -> None:
        party.store.journal.begin(message.round, message.attempt)
        party.store.journal.record("advertised")
        noted.round, noted.known_round = message.round, received.known_round
        noted.head_merged = received.head_merged
        noted.clips = {**noted.clips, _kind(message): message.clip}

    return Step(answer, write, keeps=True)


def _check_open(party: Party) -> None:
    """After the last experts no round follows: their reach is that of all rounds."""
    check_here(party)
    if LAST in party.store.record.finished:
        raise OutOfOrder(f"{party.id}: the run is over for this client")


def _check_counters(party: Party, message: Begin) -> None:
    last = party.store.journal.last or (-1, 0)
    if not 0 < message.attempt <= MOST_ATTEMPTS or message.round > party.job.rounds:
        raise OutOfOrder(f"{party.id}: a round or an attempt beyond the job's")
    if (message.round, message.attempt) <= last:
        raise OutOfOrder(
            f"{party.id}: round {message.round} attempt {message.attempt} is not after {last}, "
            "which this client has answered"
        )
    merges = party.terms.merges
    if message.merge != (message.round == MERGE) or (message.merge and not merges):
        raise OutOfOrder(
            f"{party.id}: round {MERGE} merges what was trained alone, and no other; this one is "
            f"{message.round}"
        )


def _check_clip(party: Party, message: Begin) -> None:
    """The clip is fixed for the run; see `Party.takes_clip` for what it may be."""
    fixed = party.store.record.clips.get(_kind(message))
    usable = party.takes_clip(message.clip, merge=message.merge)
    if not usable or (fixed is not None and message.clip != fixed):
        raise Refusal("clip", f"the run's clip of {message.clip:g} would cut this client's updates")


def _check_honest(party: Party, plan: Plan, message: Begin) -> None:
    """The plan that this client computed must open no sum with fewer honest members than its charge
    counts on, and its grid must be fine enough for the noise.
    """
    event = party.round_event()
    if message.merge or not isinstance(event, SharedPoissonGaussian):
        return
    if honest_in(plan) < event.honest:
        raise Refusal("tree", "a sum could open with fewer honest members than are counted on")
    try:
        release_of(party.terms, plan)
    except ConfigurationError as error:
        raise Refusal("clip", str(error)) from None


def _first_is_made(party: Party, number: int) -> bool:
    """Whether this round's gradient was made, and charged, before there was a tree."""
    return number == FIRST and party.store.state.first is not None


def _kind(message: Begin) -> str:
    return "merge" if message.merge else "round"


def share(party: Party, session: Session, message: Share) -> Step:
    """The adverts must be signed by roster members for this very plan."""
    if not isinstance(session, RoundAdvertised):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    state, shares = masking.share(session.state, message.adverts, randomness=party.fresh())
    following = RoundShared(session.number, session.merge, state)

    def write(_: Record) -> None:
        party.store.journal.record("shared")

    return Step(lambda _: (following, Protocol(shares)), write)


def mask(party: Party, session: Session, message: Mask) -> Step:
    """Every peer's box must open; then the round is charged, trained, masked and burnt."""
    if not isinstance(session, RoundShared):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    opened = masking.receive(session.state, message.inbox)

    def upload(change: Floats) -> tuple[Session, Reply]:
        # Noise makes every value finite; what is not was so before it and carries no record.
        finite = np.nan_to_num(change.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return sent(finite)

    def sent(update: "np.ndarray[Any, Any]", *, on_grid: bool = False) -> tuple[Session, Reply]:
        fresh = party.fresh()
        state, masked = masking.upload(opened, update, randomness=fresh, on_grid=on_grid)
        return RoundUploaded(state), Protocol(masked)

    def trained(seed: bytes) -> tuple[Session, Reply]:
        if party.job.noise == "shared":
            return sent(party.round_release(seed, opened.session.plan), on_grid=True)
        return upload(party.round_change(seed))

    if session.merge:
        pending = party.store.state.pending
        if pending is None:
            raise Refusal("merge")

        def merged(_: bytes) -> tuple[Session, Reply]:
            party.store.state.pending = None
            return upload(pending)

        return Step(merged, _burning(party, hashlib.sha256(pending.tobytes()).digest()), keeps=True)
    first = party.store.state.first
    if first is not None and session.number == FIRST:  # charged when it was made
        return Step(
            lambda _: upload(use_first_gradient(party)),
            _burning(party, hashlib.sha256(first.tobytes()).digest()),
            keeps=True,
        )
    return Step(
        trained,
        _burning(party, party.fresh()),
        Charge(purpose_of(session.number), party.round_event(), repeatable=False),
        keeps=True,
        paced=True,
    )


def _burning(party: Party, update: bytes):  # type: ignore[no-untyped-def]
    """Note that the update of this attempt is burnt, before it is computed: it may leave."""

    def write(_: Record) -> None:
        party.store.journal.record("masked", update=update)

    return write


def confirm(party: Party, session: Session, message: Confirm) -> Step:
    """The survivors must be sharers, this client among them, and enough."""
    if not isinstance(session, RoundUploaded):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    state, vote = masking.confirm(session.state, message.survivors)

    def write(_: Record) -> None:
        party.store.journal.record("confirmed")

    return Step(lambda _: (RoundConfirmed(state), Protocol(vote)), write)


def reveal(party: Party, session: Session, message: Reveal) -> Step:
    """A threshold must have signed the same survivors."""
    if not isinstance(session, RoundConfirmed):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    shares = masking.reveal(session.state, message.votes)

    def write(_: Record) -> None:
        party.store.journal.record("revealed")

    return Step(lambda _: (Idle(), Protocol(shares)), write)


def alone(party: Party, _session: Session, message: Alone) -> Step:
    """A round at home: the client must belong to no node.

    A server that crashed asks again; a round that is done is not done or charged once more.
    """
    record = party.store.record
    _check_open(party)
    if party.nodes() or not MERGE < message.round <= party.job.rounds:
        raise OutOfOrder(f"{party.id}: this client trains in a group, or the job has no such round")
    if message.round <= record.round:
        return Step(lambda _: (Idle(), Done()))
    check_turn(party, message.round)
    made = _first_is_made(party, message.round)
    if not made and not party.store.affords(party.round_event()):
        raise Refusal("budget", f"round {message.round} would exceed the budget")
    received = checked_experts(party, message.experts, message.round)

    def answer(seed: bytes) -> tuple[Session, Reply]:
        state = party.store.state
        take_over(party, state, received)
        if state.pending is not None:  # a warm-up that no group will ever merge
            state.own += state.pending[: len(state.own)]
            state.pending = None
        if made:
            use_first_gradient(party)
        else:
            party.round_change(seed)
        return Idle(), Done()

    def write(noted: Record) -> None:
        noted.round, noted.known_round = message.round, received.known_round

    charge = Charge(purpose_of(message.round), party.round_event(), repeatable=False)
    return Step(answer, write, None if made else charge, keeps=True, paced=True)


def finish(party: Party, _session: Session, message: Finish) -> Step:
    """The last experts must follow from the opened sums like all before; it signs what it got.

    A client of no node has nobody to agree with and keeps what it got at once.
    """
    received = receive(party, message.experts, party.job.rounds + 1)
    if not party.nodes():
        return _kept(party, received)
    signed = finish_bytes(party.terms, received.digests)

    def answer(_: bytes) -> tuple[Session, Reply]:
        return FinishVoted(received), Voted(party.member.identity.sign(signed))

    def write(noted: Record) -> None:
        noted.finished = sorted({*noted.finished, LAST})  # no round may follow

    return Step(answer, write)


def deliver(party: Party, session: Session, message: Deliver) -> Step:
    """As many members as must survive a round must have signed the very experts that it checked."""
    if not isinstance(session, FinishVoted):
        raise OutOfOrder(f"{party.id}: no last experts were given to this client")
    signed = finish_bytes(party.terms, session.received.digests)
    votes = dict(message.votes)
    known = party.store.record.beacons
    enough = enough_votes(party.terms, party.facts, party.tree(), known, votes)
    if len(votes) != len(message.votes) or not enough:
        raise Refusal("experts", "too few clients signed these last experts")
    if not all(party.terms.roster.verifies(name, votes[name], signed) for name in enough):
        raise Refusal("experts", "a signature over the last experts does not hold")
    return _kept(party, session.received)


def _kept(party: Party, received: Received) -> Step:
    def answer(_: bytes) -> tuple[Session, Reply]:
        take_over(party, party.store.state, received)
        return Idle(), Done()

    def write(noted: Record) -> None:
        noted.known_round, noted.head_merged = received.known_round, received.head_merged
        noted.finished = sorted({*noted.finished, LAST, KEPT})

    return Step(answer, write, keeps=True)
