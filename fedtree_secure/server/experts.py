"""The experts of all nodes, as the server holds them: moved by opened sums, told as sums.

What a client is told depends on its nodes alone, so clients of the same leaf get one message.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedtree_secagg import Node, NodeSum
from fedtree_secure.agreed.class_sums import take_sum
from fedtree_secure.agreed.cohort import line_of
from fedtree_secure.agreed.messages import Experts, NodeDigest, OpenedSum, pack
from fedtree_secure.agreed.moves import Floats, NodeValues, mean_of, node_digest, start
from fedtree_secure.agreed.round_plan import nodes_of
from fedtree_secure.agreed.stages import MERGE
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.config import Job
from fedtree_secure.model.facts import ModelFacts


class NodeBook:
    """Values of every node, and every sum that was opened.

    Args:
        job, facts, tree: Public settings, the model's facts, who shares which part.
        earlier: Trees that were in force before, the first one first (`agreed.cohort`).
    """

    def __init__(
        self, job: Job, facts: ModelFacts, tree: Tree, earlier: Sequence[Tree] = ()
    ) -> None:
        self.job, self.facts, self.tree = job, facts, tree
        self._trees = (*earlier, tree)
        self.nodes = nodes_of(tree, facts.layout)
        self.values = {node.name: start(node, facts.initial) for node in self.nodes}
        self.opened: list[OpenedSum] = []
        heads = facts.layout.heads
        self._by_group = {n.members: n for n in self.nodes if n.ranges[0] not in heads}
        self._told: dict[tuple[object, ...], Experts] = {}
        self._digests: tuple[NodeDigest, ...] | None = None

    @property
    def cohort(self) -> frozenset[str]:
        """Clients that belong to a node."""
        return frozenset(name for node in self.nodes for name in node.members)

    def apply(self, sums: Mapping[str, NodeSum], number: int) -> None:
        """Move the nodes whose sums were opened in a round; the others keep their values."""
        opened = [
            OpenedSum(
                number,
                name,
                len(found.members_summed),
                found.quantiser.clip,
                np.ascontiguousarray(found.ring, dtype="<i4").tobytes(),
                len(self._trees) - 1,
            )
            for name, found in sorted(sums.items())
        ]
        for entry in opened:
            grid = sums[entry.node].quantiser
            node = sums[entry.node].node
            mean = mean_of(entry, node, grid, self.job.masking.min_group)
            take_sum(
                *(self.job, self.facts, node, self.values[entry.node], mean),
                survivors=entry.survivors,
                merge=number == MERGE,
            )
        self.remember(opened)

    def remember(self, opened: Iterable[OpenedSum]) -> None:
        """Add sums that are in the values already."""
        self.opened.extend(opened)
        self._told.clear()
        self._digests = None

    def restore(self, values: Mapping[str, NodeValues], opened: Sequence[OpenedSum]) -> None:
        """Take over what an earlier start wrote down."""
        self.values = {node.name: values[node.name] for node in self.nodes}
        self.opened = []
        self.remember(opened)

    def followed_by(self, tree: Tree) -> "NodeBook":
        """Return the book of the tree that follows: each node holds what its ancestor held."""
        after = NodeBook(self.job, self.facts, tree, self._trees)
        layout, values = self.facts.layout, {}
        for node in after.nodes:
            _, (_, was) = itertools.islice(line_of(after._trees, layout, node), 2)
            values[node.name] = self.values[was.name]
        after.restore(values, self.opened)
        return after

    def digests(self) -> tuple[NodeDigest, ...]:
        """What the members of each node hold alike, by node."""
        if self._digests is None:
            self._digests = tuple(
                node_digest(node, self.values[node.name], self._external(node.members[0]))
                for node in self.nodes
            )
        return self._digests

    def told(self, name: str, known: int) -> Experts:
        """Return what a client needs to hold its experts of this moment.

        Args:
            name: The client.
            known: Last round whose sums it holds, -1 if none.
        """
        key = (known, tuple(self._groups(name)))
        if key not in self._told:
            own = {
                (era, then.name)
                for node in self.nodes
                if name in node.members
                for era, then in line_of(self._trees, self.facts.layout, node)
            }
            sums = tuple(e for e in self.opened if e.round > known and (e.era, e.node) in own)
            self._told[key] = Experts(sums, self.digests(), pack(self._external(name)))
        return self._told[key]

    def _groups(self, name: str) -> list[tuple[str, ...] | None]:
        return [self.tree.group_of(name, part) for part in range(len(self.facts.layout.parts))]

    def _external(self, name: str) -> Floats:
        """The mean over the members of the other released clusters; initial without any.

        Heads have none: nobody mixes its head with those of other labels.
        """
        external = self.facts.initial.copy()
        for part, (begin, end) in enumerate(self.facts.layout.layers):
            others = self.tree.externals_of(name, part)
            if others:
                weighted = [
                    len(group) * self._part(self._by_group[group], begin, end).astype(np.float64)
                    for group in others
                ]
                external[begin:end] = np.sum(weighted, axis=0) / sum(map(len, others))
        return external

    def _part(self, node: Node, begin: int, end: int) -> Floats:
        at = 0
        for first, last in node.ranges:
            if first <= begin and end <= last:
                offset = at + begin - first
                return self.values[node.name].values[offset : offset + end - begin]
            at += last - first
        raise AssertionError(f"{begin}:{end} is not of {node.name}")
