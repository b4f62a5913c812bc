"""The server's part in changes of the cohort: who waits, who is away for good, what is proposed.

It proposes, the members compute and sign, and it hands out what a quorum signed. A proposal is kept
before anybody hears of it, for a client signs one change of each tree in a run.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.cohort import (
    Roll,
    change_vote_bytes,
    first_roll,
    follow,
    next_tree,
)
from fedtree_secure.agreed.round_plan import fixed_tree, sketch_context
from fedtree_secure.agreed.stages import FIRST, MOST_SKETCHES, Exchange, in_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.errors import RunStopped
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.server.channel import Channel
from fedtree_secure.server.protocol import run_sketch
from fedtree_secure.server.state import Adopted, ServerState

log = logging.getLogger("fedtree_secure.server")
Votes = dict[str, bytes]


class Signed(Protocol):
    """Picks the signatures over a message that hold."""

    def __call__(self, replies: Mapping[str, wire.Reply], message: bytes) -> Votes:
        """Return them by name, sorted."""
        ...


class CohortKeeper:
    """Keeps the roll of a run.

    Args:
        terms, facts: Public settings, and the model's facts.
        channel: To the clients.
        state: Progress of the run; its parts about the cohort are changed here.
        save: Writes the state down.
        signed: See `Signed`.

    Attributes:
        joined: Clients that are here, by name; those who leave are taken out.
        trees: How many trees of the run each of them knows.
        known: Last round whose sums each of them holds.
    """

    def __init__(
        self,
        terms: Terms,
        facts: ModelFacts,
        channel: Channel,
        state: ServerState,
        save: Callable[[], None],
        signed: Signed,
    ) -> None:
        self._terms, self._facts, self._channel, self._state = terms, facts, channel, state
        self._save, self._signed = save, signed
        self.joined: dict[str, wire.Joined] = {}
        self.trees: dict[str, int] = {}
        self.known: dict[str, int] = {}
        self.roll: Roll | None = None

    def took(self, name: str, reply: wire.Joined) -> None:
        """Note a client that joined."""
        self.joined[name] = reply
        self.known[name], self.trees[name] = reply.known_round, reply.trees

    def begin(self, first: Tree) -> Roll:
        """Follow all changes that were adopted, from the first tree."""
        proposal = self._state.proposal
        if fixed_tree(self._terms, self._facts) is not None:
            proposal = None
        roll = first_roll(self._terms, first, proposal)
        for adopted in self._state.changes:
            roll = follow(self._terms, self._facts, roll, adopted.change)
        self.roll = roll
        return roll

    @property
    def waiting(self) -> tuple[str, ...]:
        """Clients that came late and have no place yet: nothing is asked of them, or charged."""
        if self.roll is None or not self._terms.job.cohort.late:
            return ()
        return tuple(sorted(name for name in self.joined if name not in self.roll.seated))

    # --- between rounds -------------------------------------------------------------------------

    def missed(self, asked: frozenset[str], began: frozenset[str]) -> None:
        """Count the rounds that members missed; declare those gone who missed too many. Who was not
        asked, because it never came or it is not its turn, missed nothing.
        """
        most = self._terms.job.cohort.gone_after
        for name in sorted(asked - frozenset(self._state.gone)):
            count = 0 if name in began else self._state.missed.get(name, 0) + 1
            self._state.missed[name] = count
            if most is not None and count >= most:
                log.warning("client %s is declared gone: it missed %d rounds", name, count)
                self._state.gone[name] = ""

    def between(self, number: int) -> bool:
        """Teach those who missed a tree, and make the change that is due before a round.

        Returns:
            Whether another tree is in force now: write it down, then teach it.
        """
        assert self.roll is not None
        self._note_gone()
        self.teach(number)
        change = self._state.change or self._next_change(number)
        return change is not None and self._agree(number, change)

    def _note_gone(self) -> None:
        for name, signature in self._channel.left.items():
            if not self._state.gone.get(name):
                log.warning("client %s left the run for good", name)
                self._state.gone[name] = signature.hex()
        for name in self._state.gone:
            self.joined.pop(name, None)

    def teach(self, number: int) -> None:
        """Tell those who do not know it which tree is in force."""
        assert self.roll is not None
        current, members = len(self.roll.eras), self.roll.tree.sharers
        asked: dict[str, wire.Message] = {}
        for name in self.joined:
            has = self.trees[name]
            concerned = name in members or self._terms.job.cohort.late or self._state.changes
            if has < current and concerned:
                asked[name] = self._lesson(has)
        replies = self._channel.exchange(in_round(number, Exchange.LEARN), asked, needed=False)
        for name, reply in replies.items():
            if isinstance(reply, wire.Learnt):
                self.trees[name], self.known[name] = reply.trees, reply.known_round

    def _lesson(self, has: int) -> wire.Learn:
        adopted = self._state.changes[max(has - 1, 0) :]
        changes = tuple((a.change, tuple(a.votes.items())) for a in adopted)
        if has:
            return wire.Learn(None, (), changes)
        return wire.Learn(self._state.proposal, tuple(self._state.votes.items()), changes)

    # --- a change -------------------------------------------------------------------------------

    def _next_change(self, number: int) -> wire.Change | None:
        assert self.roll is not None
        late, distances = self._batch(number)
        gone = tuple(sorted((n, bytes.fromhex(sign)) for n, sign in self._state.gone.items()))
        before = self.roll.eras[-1].evidence
        draft = wire.Change(len(self.roll.eras), before, gone, late, distances, ())
        tree, came = next_tree(self._terms, self._facts, self.roll, draft)
        if late and not came:
            log.warning("%s came late; no group takes so few of them in", ", ".join(late))
            draft = msgspec.structs.replace(draft, late=(), distances=None)
        if tree == self.roll.tree:
            return None
        self._state.change = msgspec.structs.replace(draft, labels=tree.labels)
        self._state.change_votes = {}
        self._save()
        return self._state.change

    def _batch(self, number: int) -> tuple[tuple[str, ...], wire.ProposeTree | None]:
        """The late clients that may come in now, and what places them: all that wait, once at
        least `min_group` do and the first batch's sketch left one for them.
        """
        waiting, least = self.waiting, self._terms.job.masking.min_group
        # A sketch of the first round is one of its gradients; a batch comes in after it.
        if number == FIRST or not waiting or list(waiting) == self._state.tried:
            return (), None
        if len(waiting) < least:
            log.warning(
                "%s came late and must wait: a batch has at least min_group = %d clients; nothing "
                "is charged to them",
                *(", ".join(waiting), least),
            )
            return (), None
        if self._state.late_sketches >= MOST_SKETCHES - 1:
            log.warning("%s came too late: no more sketches are made", ", ".join(waiting))
            return (), None
        self._state.late_sketches += 1
        distances = self._sketch(number)
        self._state.tried = list(waiting) if distances is not None else []
        late = tuple(n for n in waiting if distances is not None and n in distances.members)
        return (late, distances) if len(late) >= least else ((), None)

    def _sketch(self, number: int) -> wire.ProposeTree | None:
        """Distances among all who are here, under a new secret projection."""
        assert self.roll is not None
        state, current = self._state, len(self.roll.eras)
        state.sketch_attempt = attempt = max(state.starts, state.sketch_attempt) + 1
        self._save()
        here = {name: r for name, r in self.joined.items() if self.trees[name] == current}
        try:
            found = fingerprint_distances(
                *(self._channel, self._terms, self._facts, here, attempt),
                lambda exchange: in_round(number, exchange),
            )
        except RunStopped as error:
            log.warning("late clients cannot be placed: %s", error)
            return None
        if len(found.members) < self._terms.quorum:
            log.warning("late clients cannot be placed: %d sketches came", len(found.members))
            return None
        return found

    def _agree(self, number: int, change: wire.Change) -> bool:
        assert self.roll is not None
        state, current = self._state, len(self.roll.eras)
        request = wire.ProposeChange(change)
        asked = {name: request for name in self.joined if self.trees[name] == current}
        replies = self._channel.exchange(in_round(number, Exchange.CHANGE), asked, needed=False)
        state.change_votes |= self._signed(replies, change_vote_bytes(self._terms, change))
        if len(state.change_votes) < self._terms.quorum:
            self._save()
            log.warning(
                "%d clients signed the change of the cohort and %d must; the tree stays, and they "
                "are asked again before the next round",
                *(len(state.change_votes), self._terms.quorum),
            )
            return False
        self.roll = follow(self._terms, self._facts, self.roll, change)
        votes = dict(sorted(state.change_votes.items()))
        state.changes.append(Adopted(change, votes, number))
        state.change, state.change_votes = None, {}
        return True


def fingerprint_distances(
    channel: Channel,
    terms: Terms,
    facts: ModelFacts,
    joined: Mapping[str, wire.Joined],
    attempt: int,
    named: Callable[[Exchange], str] = str,
) -> wire.ProposeTree:
    """Let clients sketch their fingerprints; return the distances, without labels.

    Args:
        channel: To the clients.
        terms, facts: Public settings, and the model's facts.
        joined: Who is asked.
        attempt: Number of the sketch.
        named: See `run_sketch`.

    Raises:
        RunStopped: See `run_sketch`.
    """
    members = tuple(sorted(joined))
    context = sketch_context(terms, facts.digest, attempt)
    hello = dict.fromkeys(members, wire.SketchHello(members, attempt))
    found, squared = run_sketch(channel, terms, context, hello, named)
    noise = tuple(_noise_energy(facts, joined[name]) for name in found)
    return wire.ProposeTree(attempt, found, noise, squared.astype("<f8").tobytes(), ())


def _noise_energy(facts: ModelFacts, reply: wire.Joined) -> float:
    """Expected squared norm of the noise in one layer of a client's fingerprint."""
    return float(facts.hidden_size * (reply.fingerprint_noise / reply.records) ** 2)
