"""What a client checks before it takes a step of a round.

Each function looks at one request and returns the `Step` that it leads to; none changes anything.
Everything that a server sent is checked before the charge: after it nothing can be refused.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
from fedtree_secure.agreed.round_plan import enough_votes, finish_bytes
from fedtree_secure.agreed.stages import FIRST, MERGE, purpose_of
from fedtree_secure.client import ahead_requests
from fedtree_secure.client.cohort_requests import check_turn
from fedtree_secure.client.gradient_requests import use_first_gradient
from fedtree_secure.client.party import Party
from fedtree_secure.client.received import checked_experts, receive, take_over
from fedtree_secure.client.round_checks import (
    LAST,
    check_open,
    check_round,
    kind_of,
    round_plan,
)
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

KEPT = "kept"  # the last experts are at home


def begin(party: Party, _session: Session, message: Begin) -> Step:
    """Counters, kind, clip, budget and experts must be what the public computations allow."""
    check_round(party, message)
    if message.experts is None:
        raise OutOfOrder(f"{party.id}: a round by itself begins with its experts")
    if message.merge and party.store.state.pending is None:
        raise Refusal("merge")
    charged = message.merge or _first_is_made(party, message.round)
    if not charged and not party.store.affords(party.round_event()):
        raise Refusal("budget", f"round {message.round} would exceed the budget")
    received = checked_experts(party, message.experts, message.round)
    state, advert = masking.advertise(
        party.member.identity,
        party.id,
        party.terms.roster,
        round_plan(party, message, received.digests),
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
        _took(noted, message.round, received)
        noted.clips = {**noted.clips, kind_of(message): message.clip}

    return Step(answer, write, keeps=True)


def _took(noted: Record, number: int, received: Received) -> None:
    """Note the experts that a round begins with."""
    noted.round, noted.known_round = number, received.known_round
    noted.head_merged = received.head_merged


def _first_is_made(party: Party, number: int) -> bool:
    """Whether this round's gradient was made, and charged, before there was a tree."""
    return number == FIRST and party.store.state.first is not None


def share(party: Party, session: Session, message: Share) -> Step:
    """The adverts must be signed by roster members for this very plan."""
    if not isinstance(session, RoundAdvertised):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    state, shares = masking.share(session.state, message.adverts, randomness=party.fresh())
    following = RoundShared(session.number, session.merge, state)

    def write(_: Record) -> None:
        party.store.journal.record("shared")

    return Step(lambda _: (following, Protocol(shares)), write)


def _place(state: masking.Opened | masking.Uploaded | masking.Confirmed) -> tuple[int, int]:
    """Round and attempt of a session, by which the journal knows it beside another."""
    return state.session.round, state.session.attempt


@dataclass(frozen=True)
class _Upload:
    """A masked update that is due: all that the server sent for it was checked.

    Attributes:
        party: This client.
        number: The round.
        opened: Its session; every box in it has opened.
        given: What the round begins with, where that came with the inbox.
        ahead: The next round's session and advert, where it is dealt ahead.
    """

    party: Party
    number: int
    opened: masking.Opened
    given: ahead_requests.Given
    ahead: tuple[RoundAdvertised, bytes] | None

    def of(self, change: Floats) -> tuple[Session, Reply]:
        """Mask a change."""
        # Noise makes every value finite; what is not was so before it and carries no record.
        return self._sent(np.nan_to_num(change.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0))

    def trained(self, seed: bytes) -> tuple[Session, Reply]:
        """Train and mask, after the charge."""
        party = self.party
        if self.ahead is not None and not party.store.affords(party.round_event()):
            return replace(self, ahead=None).trained(seed)  # it has no part in the next round
        if party.job.noise == "shared":
            return self._sent(party.round_release(seed, self.opened.session.plan), on_grid=True)
        return self.of(party.round_change(seed))

    def take(self) -> None:
        """Take over the experts that came with the inbox."""
        if self.given.received is not None:
            take_over(self.party, self.party.store.state, self.given.received)

    def burning(self, update: bytes) -> Callable[[Record], None]:
        """Note that the update of this attempt is burnt, before it is computed: it may leave."""

        def write(noted: Record) -> None:
            at = _place(self.opened)
            self.party.store.journal.record("masked", update=update, of=at)
            if self.given.received is not None:
                _took(noted, self.number, self.given.received)
            if self.ahead is not None:
                ahead_requests.note(self.party, self.ahead[0])

        return write

    def _sent(
        self, update: "np.ndarray[Any, Any]", *, on_grid: bool = False
    ) -> tuple[Session, Reply]:
        fresh = self.party.fresh()
        state, masked = masking.upload(self.opened, update, randomness=fresh, on_grid=on_grid)
        if self.ahead is None:
            return RoundUploaded(state), Protocol(masked)
        following, advert = self.ahead
        return RoundUploaded(state, following), Protocol(masked, advert)


def mask(party: Party, session: Session, message: Mask) -> Step:
    """Every peer's box must open, and experts that come now must fit; then the round is charged,
    trained, masked and burnt. Keys for the next round go with the update.
    """
    mine = ahead_requests.dealt(session)
    if mine is None:
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    given = ahead_requests.given(party, mine, message)
    ahead = ahead_requests.advertise(party, mine, message.ahead)
    opened = masking.receive(mine.state, message.inbox, late=given.late)
    due = _Upload(party, mine.number, opened, given, ahead)
    if mine.merge:
        return _merging(party, due)
    first = party.store.state.first
    if first is not None and mine.number == FIRST:  # charged when it was made
        if not party.store.affords(party.round_event()):
            due = replace(due, ahead=None)
        return Step(
            lambda _: due.of(use_first_gradient(party)),
            due.burning(hashlib.sha256(first.tobytes()).digest()),
            keeps=True,
        )
    return Step(
        due.trained,
        due.burning(party.fresh()),
        Charge(purpose_of(mine.number), party.round_event(), repeatable=False),
        takes=due.take,
        keeps=True,
        paced=True,
    )


def _merging(party: Party, due: _Upload) -> Step:
    pending = party.store.state.pending
    if pending is None:
        raise Refusal("merge")

    def merged(_: bytes) -> tuple[Session, Reply]:
        party.store.state.pending = None
        return due.of(pending)

    return Step(merged, due.burning(hashlib.sha256(pending.tobytes()).digest()), keeps=True)


def confirm(party: Party, session: Session, message: Confirm) -> Step:
    """The survivors must be sharers, this client among them, and enough; the adverts of the next
    round must be signed by roster members for that very plan.
    """
    if not isinstance(session, RoundUploaded):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    at = _place(session.state)
    ahead = ahead_requests.share(party, session, message.adverts)
    state, vote = masking.confirm(session.state, message.survivors)
    following, shares = (None, b"") if ahead is None else ahead

    def write(_: Record) -> None:
        party.store.journal.record("confirmed", of=at)
        if following is not None:
            party.store.journal.record("shared")

    return Step(lambda _: (RoundConfirmed(state, following), Protocol(vote, shares)), write)


def reveal(party: Party, session: Session, message: Reveal) -> Step:
    """A threshold must have signed the same survivors."""
    if not isinstance(session, RoundConfirmed):
        raise OutOfOrder(f"{party.id}: no round is at this stage")
    at = _place(session.state)
    shares = masking.reveal(session.state, message.votes)
    following = session.ahead or Idle()

    def write(_: Record) -> None:
        party.store.journal.record("revealed", of=at)

    return Step(lambda _: (following, Protocol(shares)), write)


def alone(party: Party, _session: Session, message: Alone) -> Step:
    """A round at home: the client must belong to no node.

    A server that crashed asks again; a round that is done is not done or charged once more.
    """
    record = party.store.record
    check_open(party)
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
