"""A server that says whatever an audit wants it to say, signed with the key that clients pin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from fedtree_audits.rigs.parties import Parties
from fedtree_secagg import SecAggError
from fedtree_secagg.server import NodeSum
from fedtree_secure.testing import (
    Channel,
    Job,
    MaskedRound,
    ModelFacts,
    NodeBook,
    RunStopped,
    Tree,
    largest_change,
    messages,
    plan_of_round,
    quantiser_of,
)

LARGE = 2**12  # of an invented sum, in steps of the grid: Adam then moves by its learning rate
Floats32 = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Line:
    """Carries requests and notes what became of each, for the auditor alone.

    Attributes:
        handlers: What answers a request, by client.
        answers: Stage, client and kind of answer: the tag of a reply, ``refused: REASON``, or the
            class of the error that was raised instead.
    """

    handlers: Mapping[str, Callable[[bytes], bytes]]
    answers: list[tuple[str, str, str]] = field(default_factory=list)

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """Deliver requests; a client that raises does not answer."""
        replies = {}
        for name, request in requests.items():
            try:
                replies[name] = self.handlers[name](request)
            except Exception as error:  # any error is a missing reply
                self.answers.append((stage, name, type(error).__name__))
            else:
                self.answers.append((stage, name, _kind(replies[name])))
        return replies


def _kind(reply: bytes) -> str:
    decoded = messages.decode_reply(reply)
    if isinstance(decoded, messages.Refused):
        return f"refused: {decoded.reason}"
    return type(decoded).__name__.lower()


class LyingBook(NodeBook):
    """The values of all nodes, and invented external experts by client."""

    def __init__(self, job: Job, facts: ModelFacts, tree: Tree) -> None:
        super().__init__(job, facts, tree)
        self.lies: dict[str, Floats32] = {}

    def _external(self, name: str) -> Floats32:
        return self.lies[name] if name in self.lies else super()._external(name)


class Liar:
    """A server with the right key and its own idea of what was opened.

    Args:
        parties: Whom it talks to.
        tree: Who shares which part, as the clients hold it.

    Attributes:
        book: Values and sums as this server tells them; `invent` adds sums that nobody uploaded,
            `lie` exchanges external experts.
        channel: Signs and numbers what it sends.
        line: What the clients answered.
    """

    def __init__(self, parties: Parties, tree: Tree) -> None:
        terms = parties.terms
        self.parties, self.job, self.facts = parties, terms.job, parties.backbone.facts()
        self.line = Line({name: p.handle for name, p in parties.participants.items()})
        self.channel = Channel(terms, parties.server, self.line, 1, {})
        self.tree, self.book = tree, LyingBook(self.job, self.facts, tree)
        first = next(iter(parties.participants.values())).party
        noise = first.member.noise_plan.rounds
        self.clip = largest_change(self.job, noise, first.records, merge=False)

    def ask(self, requests: Mapping[str, messages.Message]) -> dict[str, str]:
        """Send requests; return the kind of each answer."""
        self.send(requests)
        return {name: kind for _, name, kind in self.line.answers[-len(requests) :]}

    def send(self, requests: Mapping[str, messages.Message]) -> dict[str, Any]:
        """Send requests; return the replies that came."""
        try:
            return dict(self.channel.exchange("audit", requests))
        except RunStopped:
            return {}

    def finish(self, name: str) -> str:
        """End the run for all members as it should end; return the kind of one client's answer."""
        members = {member for node in self.book.nodes for member in node.members}
        ends = {member: messages.Finish(self.told(member)) for member in sorted(members)}
        replies = self.send(ends)
        votes = tuple(
            (member, reply.signature)
            for member, reply in replies.items()
            if isinstance(reply, messages.Voted)
        )
        return self.ask({name: messages.Deliver(votes)})[name]

    def invent(self, change: Floats32, number: int, book: NodeBook | None = None) -> None:
        """Take sums that nobody uploaded for opened ones.

        Args:
            change: Shape (layout length,); each value's sign says where the node's value shall
                move, by one step of Adam; 0 leaves it where it is.
            number: Of the round that they are said to come from.
            book: That takes them; this server's own if None.
        """
        largest = max(len(node.members) for node in self.book.nodes)
        grid = quantiser_of(self.job, self.clip, largest, merge=False)
        sums = {}
        for node in self.book.nodes:
            ring = (LARGE * np.sign(node.gather(change))).astype(np.int32)
            sums[node.name] = NodeSum(node, node.members, ring, grid)
        (book or self.book).apply(sums, number)

    def told(self, name: str) -> messages.Experts:
        """Return what this server tells a client of the experts."""
        return self.book.told(name, -1)

    def begin(self, name: str, number: int, experts: messages.Experts | None = None) -> Any:
        """Return the request that begins a round for a client."""
        told = self.told(name) if experts is None else experts
        return messages.Begin(number, 1, merge=False, clip=self.clip, experts=told)

    def round(
        self, number: int, lies: Mapping[str, messages.Experts] | None = None
    ) -> dict[str, NodeSum]:
        """Run a masked round; the book takes nothing of it by itself.

        Args:
            number: Of the round.
            lies: Clients that are told other experts than the book's.

        Returns:
            The opened sums by node; none where too few take part.
        """
        plan = plan_of_round(
            self.parties.terms,
            self.facts,
            self.tree,
            "",
            self.clip,
            self.book.digests(),
            merge=False,
        )
        given = {name: self.begin(name, number, (lies or {}).get(name)) for name in plan.cohort}
        masked = MaskedRound(self.channel, self.parties.terms, plan, number, 1)
        try:
            sums, _ = masked.run(given)
        except (SecAggError, RunStopped):
            return {}
        return sums

    def with_external(self, name: str, external: Floats32) -> messages.Experts:
        """Return what a client is told, with another external expert under the old digests."""
        return msgspec.structs.replace(self.told(name), external=messages.pack(external))

    def lie(self, names: Iterable[str], external: Floats32) -> None:
        """Tell clients another external expert from now on, with digests that fit it.

        Args:
            names: Clients; all members of a node, or its digest fits nobody else.
            external: Shape (layout length,).
        """
        self.book.lies |= dict.fromkeys(names, external)
        self.book.remember(())  # forgets what was told before

    def stop_lying(self) -> None:
        """Tell everybody again what follows from the opened sums."""
        self.book.lies.clear()
        self.book.remember(())
