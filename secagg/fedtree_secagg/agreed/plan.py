"""What is summed: the nodes of the tree, who is in each, and the rules no plan may break.

A client's update is a vector of `length` values. A node is a set of clients together with the
coordinates in which they are summed as one group. Nodes that share coordinates share no client, so
each coordinate of a client lands in exactly one released sum; coordinates that no node of a client
covers stay at home and are never uploaded.

Why disjoint nodes with a minimum size suffice against differencing inside a round: two sums over
the same coordinate never overlap in members, so every atom of the released partition is a node
itself and has at least `min_group` members, and so has the rest of the coordinate's participants
once a node is taken away.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.graph import Beacon, Complete, Graph, Rings, Sparse
from fedtree_secagg.agreed.node import Node, Range
from fedtree_secagg.agreed.parameters import threshold_range
from fedtree_secagg.errors import ConfigurationError
from fedtree_secagg.primitives.quantise import Quantiser
from fedtree_secagg.primitives.ring import Ring

SMALLEST_GROUP = 3
LARGEST_LENGTH = 2**32 - 1
LARGEST_COHORT = 2**16 - 1


@dataclass(frozen=True)
class Plan:
    """Everything that client and server must agree on before a round; its hash salts every key.

    Args:
        length: values in a client's full vector, at least 1.
        nodes: see `Node`; any two that share coordinates must not share members.
        threshold: participants that must answer at every stage, t. Must satisfy 2t > n + colluders,
            so that no server can collect both kinds of share of one client, and t <= n.
            `Plan.full_threshold` gives the smallest.
        quantiser: the grid of the values.
        min_group: members a node needs to be opened; at least 3 and at least colluders + 2. A node
            that falls below it during a round is not opened.
        colluders: clients that may hand their knowledge to the server, c.
        context: SHA-256 of everything else that the application binds: model, data layout,
            configuration, tree.
        ring: the integers the sums live in; 2^16 halves the upload of small cohorts.
        sparse: None for the full graph. For cohorts of hundreds and more: clients then mask and
            share with a few random neighbours; threshold counts holders of one client's shares
            (`find_neighbourhood` gives both numbers), and the plan needs a beacon (`with_beacon`)
            before it can be used.
        late: whether the application binds 32 bytes more, which are known only once the shares are
            dealt (SPEC.md, "Late context"): each client gives them with the inbox, its masks derive
            from them and it signs them; clients that give others open nothing.
    """

    length: int
    nodes: tuple[Node, ...]
    threshold: int
    quantiser: Quantiser
    context: bytes
    min_group: int = SMALLEST_GROUP
    colluders: int = 1
    ring: Ring = field(default=Ring(32))
    sparse: Sparse | None = None
    late: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if not 1 <= self.length <= LARGEST_LENGTH:
            raise ConfigurationError(f"plan: length is {self.length}; give 1 to {LARGEST_LENGTH}")
        if not isinstance(self.context, bytes) or len(self.context) != 32:
            raise ConfigurationError(
                "plan: context must be 32 bytes: the SHA-256 of what the application binds"
            )
        self._check_groups()
        self._check_threshold()
        self._check_disjoint()
        self._check_capacity()

    @staticmethod
    def full_threshold(n: int, colluders: int = 1) -> int:
        """Return the smallest safe threshold of a full graph: the least t with 2t > n + colluders.

        n - t participants may drop out. Default of one colluder: the smallest assumption under
        which a node of three still hides two clients from each other.

        >>> Plan.full_threshold(20, colluders=2), Plan.full_threshold(8)
        (12, 5)
        """
        if n < SMALLEST_GROUP or not 0 <= colluders <= n - 2:
            raise ConfigurationError(
                f"threshold: n is {n} and colluders {colluders}; "
                f"n must be at least {SMALLEST_GROUP} and colluders between 0 and n - 2"
            )
        return (n + colluders) // 2 + 1

    @cached_property
    def cohort(self) -> tuple[str, ...]:
        """All clients of the plan, sorted."""
        return tuple(sorted({member for node in self.nodes for member in node.members}))

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the plan's canonical encoding (SPEC.md, "Plan hash")."""
        grid = self.quantiser
        canonical = [
            *(
                "fedtree-secagg/v1/plan",
                self.length,
                self.threshold,
                self.min_group,
                self.colluders,
                self.ring.bits,
            ),
            [float(grid.clip), grid.bits, grid.saturate],
            self.context,
            self._canonical_nodes,
            None
            if self.sparse is None or self.sparse.beacon is None
            else [self.sparse.beacon.value, self.tree],
            *([True] if self.late else []),
        ]
        return hashlib.sha256(msgspec.msgpack.encode(canonical)).digest()

    @cached_property
    def tree(self) -> bytes:
        """SHA-256 of what a beacon is drawn for: nodes and bounds, not context or quantiser."""
        sparse = self.sparse
        bounds = [self.threshold, self.min_group, self.colluders]
        canonical = [
            *(
                "fedtree-secagg/v1/tree",
                *bounds,
                None if sparse is None else [sparse.neighbours, sparse.dropouts],
            ),
            self._canonical_nodes,
        ]
        return hashlib.sha256(msgspec.msgpack.encode(canonical)).digest()

    def with_beacon(self, beacon: Beacon) -> "Plan":
        """Return the plan with the beacon that draws its sparse graph.

        Raises:
            ConfigurationError: the plan is not sparse, or the beacon was drawn for another tree.
        """
        if self.sparse is None:
            raise ConfigurationError(
                "plan: only a sparse plan takes a beacon; give sparse=Sparse(..)"
            )
        return replace(self, sparse=replace(self.sparse, beacon=beacon))

    @cached_property
    def graph(self) -> Graph:
        """Who shares masks with whom, and who holds whose shares."""
        if self.sparse is None:
            return Complete(self)
        if self.sparse.beacon is None:
            raise ConfigurationError(
                "plan: a sparse plan needs a beacon first, see Plan.with_beacon"
            )
        return Rings(self, self.sparse, self.sparse.beacon)

    @cached_property
    def place(self) -> dict[str, int]:
        """The place of each client in the cohort, from 0."""
        return {name: place for place, name in enumerate(self.cohort)}

    def places_of(self, node: Node) -> npt.NDArray[np.int64]:
        """Return the places of a node's members in the cohort."""
        return self._node_places[node.name]

    @cached_property
    def _node_places(self) -> dict[str, npt.NDArray[np.int64]]:
        return {
            n.name: np.array([self.place[member] for member in n.members], np.int64)
            for n in self.nodes
        }

    @cached_property
    def _canonical_nodes(self) -> list[Any]:
        return [
            [node.name, list(node.members), [list(r) for r in node.ranges]] for node in self.nodes
        ]

    def nodes_of(self, name: str) -> tuple[Node, ...]:
        """Return the nodes of a client, in the order of the plan: the order of its upload."""
        return self._by_member.get(name, ())

    def width_of(self, name: str) -> int:
        """Return how many values the client uploads."""
        return sum(node.width for node in self.nodes_of(name))

    @cached_property
    def _by_member(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for member in node.members:
                found.setdefault(member, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def _check_groups(self) -> None:
        if not self.nodes:
            raise ConfigurationError("plan: no nodes; a round without a node sums nothing, skip it")
        if len({node.name for node in self.nodes}) != len(self.nodes):
            raise ConfigurationError("plan: two nodes share a name; name each once")
        least = max(SMALLEST_GROUP, self.colluders + 2)
        if self.colluders < 0 or self.min_group < least:
            raise ConfigurationError(
                f"plan: min_group is {self.min_group} with colluders {self.colluders}; "
                f"min_group must be at least {least} (colluders + 2, "
                f"and never below {SMALLEST_GROUP}): a smaller group hides nobody"
            )
        for node in self.nodes:
            if len(node.members) < self.min_group:
                raise ConfigurationError(
                    f"plan: node {node.name!r} has {len(node.members)} members, "
                    f"min_group is {self.min_group}; merge it or leave its coordinates at home"
                )
        if len(self.cohort) > LARGEST_COHORT:
            raise ConfigurationError(
                f"plan: {len(self.cohort)} clients; at most {LARGEST_COHORT} are supported"
            )

    def _check_threshold(self) -> None:
        n = len(self.cohort)
        if self.sparse is not None:
            self._check_sparse(self.sparse, n)
        elif not (n + self.colluders < 2 * self.threshold and self.threshold <= n):
            raise ConfigurationError(
                f"plan: threshold is {self.threshold} for {n} clients and {self.colluders} "
                f"colluders; allowed are {(n + self.colluders) // 2 + 1} to {n}: "
                "below, a server could collect both kinds of share"
            )

    def _check_sparse(self, sparse: Sparse, n: int) -> None:
        k = sparse.neighbours
        if not (2 <= k < n and k % 2 == 0 and 0 <= sparse.dropouts <= n):
            raise ConfigurationError(
                f"plan: {k} neighbours and {sparse.dropouts} dropouts for {n} clients; "
                "neighbours must be even and below the number of clients, "
                "dropouts at most that number; see find_neighbourhood"
            )
        least, most = threshold_range(n, min(self.colluders, n), sparse.dropouts, k)
        if not least <= self.threshold <= most:
            allowed = (
                f"allowed are {least} to {most}"
                if least <= most
                else "no threshold fits: take more neighbours"
            )
            raise ConfigurationError(
                f"plan: threshold is {self.threshold} for {k} neighbours of {n} clients, "
                f"{self.colluders} colluders and {sparse.dropouts} dropouts; "
                f"{allowed}; see find_neighbourhood"
            )
        if sparse.beacon is not None and sparse.beacon.tree != self.tree:
            raise ConfigurationError(
                "plan: the beacon was drawn for another tree; nodes, members, threshold, "
                "colluders and neighbours must be fixed first: draw a new beacon for this plan"
            )

    def _check_disjoint(self) -> None:
        for name in self.cohort:
            where = sorted((r, node.name) for node in self.nodes_of(name) for r in node.ranges)
            for ((_, stop), first), ((start, _), second) in pairwise(where):
                if start < stop:
                    raise ConfigurationError(
                        f"plan: {name!r} is in nodes {first!r} and {second!r}, which share "
                        f"coordinate {start}; a coordinate of a client belongs to one node"
                    )
            if where[-1][0][1] > self.length:
                raise ConfigurationError(
                    f"plan: node {where[-1][1]!r} ends at {where[-1][0][1]}, "
                    f"the vector at {self.length}"
                )

    def _check_capacity(self) -> None:
        largest = max(len(node.members) for node in self.nodes)
        capacity = (
            self.ring.capacity(self.quantiser.bits) if self.quantiser.bits <= self.ring.bits else 0
        )
        if largest > capacity:
            allowed = self.ring.bits - (largest - 1).bit_length()
            raise ConfigurationError(
                f"plan: {largest} values of {self.quantiser.bits} bits "
                f"overflow the ring of {self.ring.bits} bits; "
                f"use at most {allowed} bits (n * 2^(bits-1) <= 2^{self.ring.bits - 1})"
            )


def check_succession(before: Plan, after: Plan) -> None:
    """Refuse a change of membership where two rounds' sums would differ by a few clients.

    Where an old and a new node share coordinates, the members that left, that came and that stayed
    must each be none or at least `after.min_group`. This is about adjacent plans; what differencing
    over many rounds can show is bounded by each client's local noise only.

    Raises:
        ConfigurationError: a smaller group could be isolated; keep the old membership or move a
            larger group.
    """
    for old in before.nodes:
        for new in after.nodes:
            if _overlap(old.ranges, new.ranges):
                _check_atoms(old, new, after.min_group)


def _check_atoms(old: Node, new: Node, min_group: int) -> None:
    first, second = set(old.members), set(new.members)
    for what, group in (
        ("leave", first - second),
        ("join", second - first),
        ("stay in", first & second),
    ):
        if 0 < len(group) < min_group:
            raise ConfigurationError(
                f"succession: {len(group)} members {what} node {new.name!r} (before: "
                f"{old.name!r}); none or at least {min_group} may: "
                "the difference of two rounds would show them"
            )


def _overlap(first: Iterable[Range], second: Iterable[Range]) -> bool:
    intervals = sorted([*first, *second])
    return any(start < stop for (_, stop), (start, _) in pairwise(intervals))
