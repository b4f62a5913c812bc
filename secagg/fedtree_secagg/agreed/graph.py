"""Who shares masks with whom, who holds whose shares, and whose votes count: the graph of a plan.

`Complete` is everyone with everyone. `Rings` is for large cohorts: after Bell et al. (CCS 2020,
section 3) clients stand on a ring in random order, and neighbours are the k nearest. One ring of
all clients says who holds shares, and with whom a node of all clients masks; each other node has a
ring of its own for masks, so that its sum stays in one piece however small its part of the cohort
is; the first k clients of the ring of all are the committee whose votes fix the survivors.

The order comes from a `Beacon`: 32 bytes that nobody could foresee or steer when the tree was fixed
(`fedtree_secagg.beacon` draws one from the randomness of all clients). A beacon names the tree it
was drawn for and serves no other: a server that knew the rings first could choose clusters that put
a client between its accomplices.

Why a server that chooses freely whom it calls dropped out cannot cut a node in two: see
`Rings.holds_together`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.node import Node
from fedtree_secagg.agreed.parameters import RingGraph, find_ring_graph
from fedtree_secagg.errors import ConfigurationError
from fedtree_secagg.primitives import keys


@dataclass(frozen=True)
class Beacon:
    """Public randomness of a tree.

    Args:
        value: 32 bytes, uniform, and unpredictable to everybody when the tree was fixed.
        tree: `Plan.tree` of the plan it was drawn for.
    """

    value: bytes
    tree: bytes

    def __post_init__(self) -> None:
        for label, value in (("value", self.value), ("tree", self.tree)):
            if not isinstance(value, bytes) or len(value) != 32:
                raise ConfigurationError(f"beacon: {label} must be 32 bytes")


@dataclass(frozen=True)
class Sparse:
    """Asks for a sparse graph.

    Args:
        neighbours: k, even: holders of a client's shares, and members of the committee.
            `find_neighbourhood` has it.
        dropouts: clients that may drop out while the round still succeeds but with probability
            2^-20, D.
        beacon: None in the draft of a plan; `Plan.with_beacon` fills it in.
    """

    neighbours: int
    dropouts: int
    beacon: Beacon | None = None


class Members(Protocol):
    """What a graph asks of a plan: who is in which node, and how many may be corrupt."""

    @property
    def colluders(self) -> int:
        """Clients that may be corrupt."""
        ...

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes."""
        ...

    @property
    def cohort(self) -> tuple[str, ...]:
        """All clients, sorted."""
        ...

    @property
    def place(self) -> Mapping[str, int]:
        """The place of each client in the cohort, from 0."""
        ...

    def nodes_of(self, name: str) -> tuple[Node, ...]:
        """Return the nodes of a client."""
        ...


class Graph(Protocol):
    """What a round asks of a graph. Tuples are in a fixed order that all parties compute alike."""

    @property
    def committee(self) -> Sequence[str]:
        """Whose votes on the survivors count."""
        ...

    def holders(self, dealer: str) -> Sequence[str]:
        """Return who may hold the client's shares, in the order of their Shamir points, from 1."""
        ...

    def dealers(self, holder: str) -> Sequence[str]:
        """Return whose shares the client may hold, sorted."""
        ...

    def peers(self, name: str, node: Node) -> Sequence[str]:
        """Return with whom the client may share a mask in a node."""
        ...

    def contacts(self, name: str) -> frozenset[str]:
        """Return whose adverts the client needs, its own included."""
        ...

    def holds_together(self, node: Node, survivors: Group) -> bool:
        """Say whether masks join all honest ones among these survivors, whoever dropped out."""
        ...


class Complete:
    """Everyone is everyone's neighbour."""

    def __init__(self, plan: Members) -> None:
        self.committee = plan.cohort
        self._everyone = frozenset(plan.cohort)

    def holders(self, dealer: str) -> Sequence[str]:  # noqa: ARG002 - the same for all
        """Return all clients."""
        return self.committee

    def dealers(self, holder: str) -> Sequence[str]:  # noqa: ARG002 - the same for all
        """Return all clients."""
        return self.committee

    def peers(self, name: str, node: Node) -> Sequence[str]:
        """Return the other members."""
        return [member for member in node.members if member != name]

    def contacts(self, name: str) -> frozenset[str]:  # noqa: ARG002 - the same for all
        """Return all clients."""
        return self._everyone

    def holds_together(self, node: Node, survivors: Group) -> bool:  # noqa: ARG002 - no gap can part it
        """Return True."""
        return True


class Rings:
    """The sparse graph that a plan's beacon draws."""

    def __init__(self, plan: Members, sparse: Sparse, beacon: Beacon) -> None:
        self._plan, self._dropouts = plan, sparse.dropouts
        self._half = sparse.neighbours // 2
        self._everyone = _Circle(plan.cohort, beacon, b"holders")
        self.committee = self._everyone.order[: sparse.neighbours]
        sizes = {len(node.members) for node in plan.nodes}
        self._rings = {n: find_ring_graph(n, *self.limits(n), nodes=len(plan.nodes)) for n in sizes}
        self._circles = {
            node.name: self._circle_of(node, beacon)
            for node in plan.nodes
            if self._rings[len(node.members)] is not None
        }

    def _circle_of(self, node: Node, beacon: Beacon) -> "_Circle":
        """Return a node's ring. That of all clients is the one of holders: a client then works with
        the wider of the two neighbourhoods instead of both, and either bound holds as before.
        """
        if len(node.members) == len(self._plan.cohort):
            return self._everyone
        return _Circle(node.members, beacon, b"node", node.name)

    def limits(self, n: int) -> tuple[int, int]:
        """Return the colluders (all of them, at most n) and dropouts in a node of n."""
        plan = self._plan
        return min(plan.colluders, n), self._dropouts * n // len(plan.cohort)

    def ring(self, node: Node) -> RingGraph | None:
        """Return the ring's parameters; None for a small node, where all mask with all."""
        return self._rings[len(node.members)]

    def holders(self, dealer: str) -> Sequence[str]:
        """Return the k nearest on the ring of all clients, without the dealer."""
        return self._everyone.near(dealer, self._half)

    def dealers(self, holder: str) -> Sequence[str]:
        """Return the same clients, sorted: nearness is mutual."""
        return sorted(self._everyone.near(holder, self._half))

    def peers(self, name: str, node: Node) -> Sequence[str]:
        """Return the nearest on the node's ring, or all other members of a small node."""
        ring = self.ring(node)
        if ring is None:
            return [member for member in node.members if member != name]
        return self._circles[node.name].near(name, ring.half)

    def contacts(self, name: str) -> frozenset[str]:
        """Return holders, dealers and peers, and the client itself."""
        peers = (peer for node in self._plan.nodes_of(name) for peer in self.peers(name, node))
        return frozenset((name, *self.holders(name), *peers))

    def holds_together(self, node: Node, survivors: Group) -> bool:
        """Say whether any `half` neighbours on the node's ring have at least `least` survivors.

        Two parts of the honest survivors without a mask between them lie between two gaps of at
        least `half` places without an honest survivor. Where each such stretch must have `least`
        survivors, both gaps would have to hold `least` corrupt clients each; that no two stretches
        do was decided, but with probability 2^-42, when the beacon was drawn, and no choice of
        dropouts changes it. The rule is computed from the survivor set alone, so all clients decide
        alike.
        """
        ring = self.ring(node)
        if ring is None:
            return True
        alive = survivors.flags[self._circles[node.name].places(self._plan)].astype(np.int64)
        around = np.concatenate(([0], np.cumsum(np.concatenate((alive, alive[: ring.half - 1])))))
        return int((around[ring.half :] - around[: -ring.half]).min()) >= ring.least


class _Circle:
    """Names on a ring, in the order of pseudorandom 64-bit numbers."""

    def __init__(self, names: Sequence[str], beacon: Beacon, *purpose: str | bytes) -> None:
        key = keys.expand(keys.extract(beacon.tree, beacon.value), b"ring", *purpose)
        numbers = np.frombuffer(keys.keystream(key, 8 * len(names)), "<u8")
        self.order = tuple(names[place] for place in np.argsort(numbers, kind="stable"))
        self._at = {name: place for place, name in enumerate(self.order)}
        self._places: npt.NDArray[np.int64] | None = None

    def near(self, name: str, half: int) -> tuple[str, ...]:
        """Return the `half` names before and the `half` names after this one, in ring order."""
        at, n = self._at[name], len(self.order)
        return tuple(
            self.order[(at + step) % n] for step in (*range(-half, 0), *range(1, half + 1))
        )

    def places(self, plan: Members) -> npt.NDArray[np.int64]:
        """Return the place in the cohort of each name, in ring order."""
        if self._places is None:
            self._places = np.array([plan.place[name] for name in self.order], np.int64)
        return self._places
