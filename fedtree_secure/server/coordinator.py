"""The server of a run. It sees public settings, distances, masked vectors and the sums it opens.

It holds no weights and no key of a client: `ModelFacts` are all that it knows of the model. After
each round it moves the nodes' values by the opened sums, as every member does for itself, and
writes down its state, so that an interrupted run continues with the next round.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fedtree_secagg import Identity, Plan, SecAggError
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.round_plan import (
    compute_tree,
    draft_of_round,
    enough_votes,
    finish_bytes,
    finish_quorum,
    fixed_tree,
    gradient_context,
    gradient_noise,
    late_context,
    plan_of_round,
    tree_without_distances,
    vote_bytes,
)
from fedtree_secure.agreed.schedule import opens, turn_of
from fedtree_secure.agreed.stages import FIRST, MERGE, Exchange, attempt_of, in_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.transport import Transport
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.errors import RunStopped
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.report.cohort import Attendance
from fedtree_secure.server.admission import Admission
from fedtree_secure.server.channel import Channel, Missed, refusals
from fedtree_secure.server.cohort import CohortKeeper, fingerprint_distances
from fedtree_secure.server.experts import NodeBook
from fedtree_secure.server.graph import draw_graph
from fedtree_secure.server.masked_round import Following, Given, MaskedRound
from fedtree_secure.server.protocol import run_sketch
from fedtree_secure.server.state import RoundRecord, StateFolder

log = logging.getLogger("fedtree_secure.server")


@dataclass(frozen=True)
class Hooks:
    """What whoever runs a server may watch and stop.

    Attributes:
        stop: Asked between rounds; True ends the run in good order.
        on_round: Called after each round with its record.
        on_tree: Called with the tree when it comes into force, at each start.
        on_missed: See `Channel`.
        ask_again: Called with the clients that have not fetched the last experts; True asks these
            again. It may wait before it says so.
    """

    stop: Callable[[], bool] = lambda: False
    on_round: Callable[[RoundRecord], None] = lambda _: None
    on_tree: Callable[[Tree], None] = lambda _: None
    on_missed: Missed = lambda *_: None
    ask_again: Callable[[frozenset[str]], bool] = lambda _: False


class Coordinator:
    """Runs a job over a transport.

    Args:
        terms: What everybody pinned.
        key: The server's key pair; its public half is in the terms.
        facts: Of the model.
        transport: Carries bytes.
        folder: Where the server's state is kept.
        hooks: See `Hooks`.
    """

    def __init__(
        self,
        terms: Terms,
        key: Identity,
        facts: ModelFacts,
        transport: Transport,
        folder: Path,
        hooks: Hooks | None = None,
    ) -> None:
        self.terms, self.job, self.facts, self.hooks = terms, terms.job, facts, hooks or Hooks()
        self._folder = StateFolder(folder)
        self.state = self._folder.load()
        self.state.starts += 1
        before = self.state.starts, self.state.answered
        self._channel = Channel(terms, key, transport, *before, self.hooks.on_missed)
        self.cohort = CohortKeeper(
            *(terms, facts, self._channel, self.state),
            save=lambda: self._folder.save(self.state),
            signed=self._signed,
        )
        self._admission = Admission(terms, facts, self._channel)
        self.finished: frozenset[str] = frozenset()
        self._votes: dict[str, bytes] = {}
        # The next round, whose keys are dealt, and the last request to each of its clients then:
        # whoever is asked anything else gives its keys up.
        self._ahead: tuple[MaskedRound, dict[str, int]] | None = None
        self.book: NodeBook | None = None
        if self.state.labels is not None:
            self._restore(Tree(terms.names, self.state.labels, self.job.masking.min_group))

    @property
    def joined(self) -> dict[str, wire.Joined]:
        """Clients that are here."""
        return self.cohort.joined

    @property
    def tree(self) -> Tree | None:
        """The tree in force, None before there is one."""
        return None if self.book is None else self.book.tree

    @property
    def records(self) -> list[RoundRecord]:
        """What became of each round."""
        return self.state.records

    def attendance(self) -> Attendance:
        """What became of the cohort, for reports."""
        assert self.cohort.roll is not None
        return Attendance(
            self.cohort.roll,
            (0, *(adopted.first_round for adopted in self.state.changes)),
            {name: bool(signature) for name, signature in self.state.gone.items()},
            self.cohort.waiting,
            self.job.masking.min_group,
        )

    def run(self) -> None:
        """Run every stage that is not finished yet.

        Raises:
            RunStopped: Asked to stop, or too few clients are left; the state on disk is that after
                the last finished round.
        """
        self._folder.save(self.state)
        self._join()
        if self.state.labels is None:
            self._find_tree()
        self._prepare(str(Exchange.PREPARE), self.joined, needed=True)
        first = max(MERGE if self.terms.merges else 1, self.state.finished_round + 1)
        for number in range(first, self.job.rounds + 1):
            if self.hooks.stop():
                raise RunStopped(f"stopped after round {number - 1} of {self.job.rounds}, as asked")
            self._round(number)
        self._finish()

    # --- before the first round -----------------------------------------------------------------

    def _join(self) -> None:
        for name, reply in self._admission.first(Exchange.JOIN).items():
            if name not in self.state.gone:
                self.cohort.took(name, reply)
        if len(self.joined) < self.job.masking.min_group:
            raise RunStopped(
                f"{len(self.joined)} of {len(self.terms.names)} clients joined; at least min_group "
                f"= {self.job.masking.min_group} are needed, or nothing may be summed"
            )
        if not self.state.clips:  # fixed once; clients accept no others later
            self.state.clips = self._admission.clips(self.joined)
            self._folder.save(self.state)

    def _join_late(self, number: int) -> None:
        left_out = self._admission.left_out
        away = {*self.joined, *left_out, *self.state.gone, *self._channel.left}
        missing = [name for name in self.terms.names if name not in away]
        if not missing:
            return
        exchange, clip = in_round(number, Exchange.JOIN), self.state.clips["round"]
        for name, reply in self._admission.late(exchange, missing, clip).items():
            log.info("client %s joins before round %d", name, number)
            self.cohort.took(name, reply)
        late = [name for name in missing if name in self.joined]
        self._prepare(in_round(number, Exchange.PREPARE), late)

    def _prepare(self, exchange: str, names: Iterable[str], *, needed: bool = False) -> None:
        """Let clients train their head, where it is their own: one that a group has averaged is
        taken from there, and nobody pays for another.
        """
        here = [name for name in names if name not in self.cohort.waiting]
        asked = dict.fromkeys((n for n in here if not self._head_is_merged(n)), wire.Prepare())
        self._channel.exchange(exchange, asked, needed=needed)

    def _head_is_merged(self, name: str) -> bool:
        assert self.book is not None
        heads = {n.name for n in self.book.nodes if n.ranges[0] in self.facts.layout.heads}
        mine = {node.name for node in self.book.nodes if name in node.members} & heads
        return any(entry.round == MERGE and entry.node in mine for entry in self.book.opened)

    def _find_tree(self) -> None:
        fixed = fixed_tree(self.terms, self.facts)
        if fixed is not None:
            self.adopt(fixed)
        else:
            self._agree_on_tree(self._proposal())
        assert self.book is not None
        self._folder.save_round(self.state, self.book.values, self.book.opened)

    def _proposal(self) -> wire.ProposeTree:
        """The proposed tree: kept before anyone hears of it, for a client signs one in a run."""
        if self.state.proposal is None:
            draft = self._fingerprints()
            if self.job.weighs_noise:
                draft = self._with_gradients(draft)
            labels = compute_tree(self.terms, self.facts, draft).labels
            self.state.proposal = msgspec.structs.replace(draft, labels=labels)
            self._folder.save(self.state)
        return self.state.proposal

    def _fingerprints(self) -> wire.ProposeTree:
        """Distances that the merge tree comes from, without labels."""
        if self.state.distances is None:
            found = fingerprint_distances(
                self._channel, self.terms, self.facts, self.joined, self.state.starts
            )
            self._check_sketched(found.members)
            self.state.distances = found
            self._folder.save(self.state)
        return self.state.distances

    def _with_gradients(self, draft: wire.ProposeTree) -> wire.ProposeTree:
        """Add distances of the first round's gradients, taken under merged heads."""
        self._channel.exchange(Exchange.PREPARE, dict.fromkeys(self.joined, wire.Prepare()))
        if self.book is None:
            tree = tree_without_distances(self.terms, self.facts, "none")
            self.book = NodeBook(self.job, self.facts, tree)
            if self.state.finished_round >= MERGE:
                self.book.restore(*self._folder.load_values(self.state.finished_round))
        if self.terms.merges_heads and self.state.finished_round < MERGE:
            self._round(MERGE)
        members = tuple(name for name in draft.members if name in self.joined)
        attempt = self.state.starts
        hello = self._tell(members, functools.partial(wire.GradientHello, members, attempt))
        context = gradient_context(self.terms, self.facts.digest, attempt, self.book.digests())
        named = functools.partial(in_round, FIRST)
        found, squared = run_sketch(self._channel, self.terms, context, hello, named)
        self._check_sketched(found)
        kept = np.array([draft.members.index(name) for name in found])
        depth, count = self.facts.depth, len(draft.members)
        prints = np.frombuffer(draft.squared, dtype="<f8").reshape(depth, count, count)
        noise = tuple(
            gradient_noise(self.job, self.joined[n].noise_multiplier, self.joined[n].records)
            for n in found
        )
        gradients = wire.Gradients(attempt, noise, squared.astype("<f8").tobytes())
        return wire.ProposeTree(
            draft.attempt,
            found,
            tuple(draft.noise[i] for i in kept),
            prints[:, kept][:, :, kept].tobytes(),
            (),
            gradients,
        )

    def _check_sketched(self, found: tuple[str, ...]) -> None:
        least = max(self.terms.quorum, self.job.masking.min_group)
        if len(found) < least:
            raise RunStopped(
                f"{len(found)} clients sent a sketch; {least} are needed (a quorum of the "
                "roster, and min_group)"
            )

    def _agree_on_tree(self, proposal: wire.ProposeTree) -> None:
        asked = [name for name in proposal.members if name in self.joined]
        replies = self._channel.exchange(Exchange.TREE, dict.fromkeys(asked, proposal))
        votes = self._signed(replies, vote_bytes(self.terms, proposal))
        if len(votes) < self.terms.quorum:
            against = ", ".join(sorted(refusals(replies))) or "nobody"
            raise RunStopped(
                f"{len(votes)} clients signed the tree; {self.terms.quorum} must. "
                f"It was refused by {against}"
            )
        self.state.votes = votes
        adopt = wire.AdoptTree(tuple(votes.items()))
        replies = self._channel.exchange(Exchange.ADOPT, dict.fromkeys(votes, adopt))
        for name, reply in replies.items():
            if isinstance(reply, wire.Done):
                self.cohort.trees[name] = 1
        self.adopt(compute_tree(self.terms, self.facts, proposal))

    def adopt(self, tree: Tree) -> None:
        """Take the first tree into force, with the values of heads that were merged before."""
        before, self.book = self.book, NodeBook(self.job, self.facts, tree)
        if before is not None:
            self.book.restore({**self.book.values, **before.values}, before.opened)
        self.state.labels = tree.labels
        self.cohort.begin(tree)
        self.hooks.on_tree(tree)

    def _restore(self, first: Tree) -> None:
        """Take the tree into force that an earlier start left, with its values."""
        *earlier, tree = (era.tree for era in self.cohort.begin(first).eras)
        self.book = NodeBook(self.job, self.facts, tree, earlier)
        self.book.restore(*self._folder.load_values(self.state.finished_round))
        self.hooks.on_tree(tree)

    def _change_cohort(self, number: int) -> None:
        """Make the change of the cohort that is due before a round, if one is."""
        assert self.book is not None
        waited = self.cohort.waiting
        if not self.cohort.between(number):
            return
        roll = self.cohort.roll
        assert roll is not None
        before, self.book = self.book, self.book.followed_by(roll.tree)
        # Under both names: a start after a crash here finds the values that it looks for.
        values = {**before.values, **self.book.values}
        self._folder.save_round(self.state, values, self.book.opened)
        self.cohort.teach(number)
        self.hooks.on_tree(roll.tree)
        came = sorted(set(waited) - set(self.cohort.waiting))
        self._prepare(in_round(number, Exchange.PREPARE), came)

    # --- rounds ---------------------------------------------------------------------------------

    def _round(self, number: int) -> None:
        assert self.book is not None
        record = RoundRecord(number)
        if number != MERGE:
            self._join_late(number)
            self._change_cohort(number)
        here = self._asked(number)
        outside = [name for name in here if name not in self.book.cohort]
        if outside and number != MERGE:
            alone = self._tell(outside, functools.partial(wire.Alone, number))
            replies = self._channel.exchange(in_round(number, Exchange.ALONE), alone)
            self._learnt(number, (n for n, r in replies.items() if isinstance(r, wire.Done)))
        if self.book.cohort:
            try:
                self._sum(number, record)
            except SecAggError as error:  # nothing was opened; the ledgers keep the charge
                record.error = f"{type(error).__name__}: {error}"
                log.warning("round %d opened nothing: %s", number, record.error)
        self.state.records.append(record)
        self.state.finished_round = number
        self.state.answered = self._channel.answered
        self._folder.save_round(self.state, self.book.values, self.book.opened)
        self.hooks.on_round(record)

    def _asked(self, number: int) -> list[str]:
        """Clients that are here, have a place, and whose turn it is."""
        assert self.book is not None
        turn, nodes = turn_of(self.terms, number), self.book.nodes
        summed = {n for e in nodes if opens(self.terms, turn, e.members) for n in e.members}
        useless = self.book.cohort - summed  # none of their sums could open
        away = {*self.cohort.waiting, *useless}
        return [name for name in self.joined if name in turn and name not in away]

    def _sum(self, number: int, record: RoundRecord) -> None:
        assert self.book is not None
        merge, book = number == MERGE, self.book
        beacon = self._beacon(number)
        asked = frozenset(self._asked(number)) & book.cohort
        following = self._following(number, asked, beacon)
        ahead = self._dealt(number, asked, beacon)
        if ahead is not None:
            given = Given(self._experts(asked), late_context(self.terms, book.digests()))
            plan, begins = ahead.plan, asked
            sums, began = ahead.open(given, following)
        else:
            clip, attempt = self._clip(merge=merge), attempt_of(self.state.starts, ahead=False)
            plan = self._plan(merge=merge, beacon=beacon, digests=book.digests())
            make = functools.partial(wire.Begin, number, attempt, merge, clip, beacon=beacon)
            requests = self._tell((name for name in plan.cohort if name in asked), make)
            begins = frozenset(requests)
            masked = MaskedRound(self._channel, self.terms, plan, number, attempt)
            sums, began = masked.run(requests, following)
        self._learnt(number, began)
        if not merge:
            self.cohort.missed(begins, began)
        if following is not None:
            last = {name: self._channel.asked[name] for name in following.round.dealt}
            self._ahead = following.round, last
        book.apply(sums, number)
        record.opened = {name: list(found.members_summed) for name, found in sums.items()}
        record.closed = sorted({node.name for node in plan.nodes} - set(sums))

    def _dealt(self, number: int, asked: frozenset[str], beacon: bytes) -> MaskedRound | None:
        """Take the round that was dealt ahead, where it is this one, with all who are asked."""
        (ahead, last), self._ahead = self._ahead or (None, {}), None
        if ahead is None or (ahead.number, ahead.dealt) != (number, asked):
            return None
        if any(self._channel.asked[name] != request for name, request in last.items()):
            return None
        plan = self._plan(merge=False, beacon=beacon, digests=None)
        return ahead if ahead.plan == plan else None

    def _clip(self, *, merge: bool) -> float:
        return self.state.clips["merge" if merge else "round"]

    def _plan(
        self, *, merge: bool, beacon: bytes, digests: tuple[wire.NodeDigest, ...] | None
    ) -> Plan:
        assert self.book is not None
        return plan_of_round(
            self.terms,
            self.facts,
            self.book.tree,
            "" if self.cohort.roll is None else self.cohort.roll.eras[-1].evidence,
            self._clip(merge=merge),
            digests,
            merge=merge,
            beacon=beacon,
        )

    def _following(self, number: int, asked: frozenset[str], beacon: bytes) -> Following | None:
        """The next round, to be dealt with this one; None where it cannot be, or is not known yet:
        after the merge other nodes are summed, and over another graph.
        """
        assert self.book is not None
        after = number + 1
        if number == MERGE or after > self.job.rounds:
            return None
        names = frozenset(self._asked(after)) & self.book.cohort
        if not names or not names <= asked:
            return None
        attempt = attempt_of(self.state.starts, ahead=True)
        plan = self._plan(merge=False, beacon=beacon, digests=None)
        begin = wire.Begin(*(after, attempt, False, self._clip(merge=False), None), beacon=beacon)
        made = MaskedRound(self._channel, self.terms, plan, after, attempt)
        return Following(made, begin, names)

    def _beacon(self, number: int) -> bytes:
        """What draws the graph of a round: drawn before the first that has it, and kept.

        Empty where the graph is complete: by the job, or because not all are there to draw one and
        the job does not insist.
        """
        assert self.book is not None
        merge = number == MERGE
        draft = draft_of_round(self.terms, self.facts, self.book.tree, merge=merge)
        if draft is None:
            return b""
        drawn = draw_graph(self._channel, self.terms, draft, self.state, self._folder.save, number)
        if drawn is None and self.job.masking.graph == "sparse":
            raise RunStopped(
                f"the graph of round {number} was not drawn: all its {len(draft.cohort)} clients "
                "must take part in that. Continue when they are there, with complete masks "
                '(masking.graph = "auto"), or without those who stay away'
            )
        return drawn or b""

    def _finish(self) -> None:
        """Hand out the last experts until everybody who joined has fetched them, or is given up."""
        self.cohort.teach(self.job.rounds + 1)
        self._hand_out(frozenset(self.joined))
        while (away := frozenset(self.joined) - self.finished) and self.hooks.ask_again(away):
            self._hand_out(away)

    def _hand_out(self, names: frozenset[str]) -> None:
        """Hand out the last experts, and the members' word that all hold the same."""
        assert self.book is not None
        first = not self.finished
        told = self._tell(sorted(names), wire.Finish)
        replies = self._channel.exchange(Exchange.FINISH, told, needed=first)
        self.finished |= {name for name, reply in replies.items() if isinstance(reply, wire.Done)}
        if not self.book.cohort:
            return
        self._votes |= self._signed(replies, finish_bytes(self.terms, self.book.digests()))
        known = self.terms, self.facts, self.book.tree
        enough = enough_votes(*known, self.state.beacons, self._votes)
        if not enough:
            least = finish_quorum(self.terms, self.book.tree, self.facts.layout)
            raise RunStopped(f"{len(self._votes)} clients confirmed the last experts; {least} must")
        asked = [name for name, reply in replies.items() if isinstance(reply, wire.Voted)]
        deliver = wire.Deliver(tuple((name, self._votes[name]) for name in enough))
        given = self._channel.exchange(
            Exchange.DELIVER, dict.fromkeys(asked, deliver), needed=first
        )
        self.finished |= {name for name, reply in given.items() if isinstance(reply, wire.Done)}

    def _signed(self, replies: Mapping[str, wire.Reply], message: bytes) -> dict[str, bytes]:
        """Return the signatures over a message that hold, sorted by name."""
        return {
            name: reply.signature
            for name, reply in sorted(replies.items())
            if isinstance(reply, wire.Voted)
            and self.terms.roster.verifies(name, reply.signature, message)
        }

    def _tell(
        self, names: Iterable[str], make: Callable[[wire.Experts], wire.Message]
    ) -> dict[str, wire.Message]:
        """Return each client's request with the experts that it is told. Clients that are told the
        same get one object, which is encoded once.
        """
        told = self._experts(names)
        made = {id(experts): make(experts) for experts in told.values()}
        return {name: made[id(experts)] for name, experts in told.items()}

    def _experts(self, names: Iterable[str]) -> dict[str, wire.Experts]:
        assert self.book is not None
        return {name: self.book.told(name, self.cohort.known.get(name, -1)) for name in names}

    def _learnt(self, number: int, names: Iterable[str]) -> None:
        """Note who holds the sums of all rounds before this one."""
        for name in names:
            self.cohort.known[name] = number - 1
