"""What sharing a layer costs, for every node of a merge tree, and how well that is known.

See `cuts`: W, N, V and V0 are defined there. Nothing is decided here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtree_secure.errors import ConfigurationError

Floats = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class GradientEvidence:
    """What the first round's own release says about the clients' gradients.

    Energies are expected squared norms, all in one unit. That clients differ because each drew its
    records by chance counts as difference here; a caller who knows how much may add it to both
    kinds of noise.

    Attributes:
        squared: (layers, clients, clients) estimated squared distances of the clients' noisy mean
            gradients, noise included; symmetric.
        noise: (clients,) or (layers, clients) energy of the noise in those gradients.
        plan_noise: (layers, clients) E, energy of the noise that one release with the whole budget
            of the rounds would leave: d (C sigma / (n sqrt(rounds)))^2 with d values in the layer,
            clipping norm C, n records and sigma the noise multiplier of each of the rounds.
        dimension: Values of a layer's gradient.
        sketch_size: Rows of the projection the distances come from.
    """

    squared: Floats
    noise: Floats
    plan_noise: Floats
    dimension: int
    sketch_size: int

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit and values that are no distances or energies."""
        shape = self.squared.shape
        if self.squared.ndim != 3 or shape[1] != shape[2] or 0 in shape:
            raise ConfigurationError(
                f"squared distances of shape {shape}; allowed is (layers, clients, clients)"
            )
        layers, clients = shape[:2]
        if self.noise.shape not in {(clients,), (layers, clients)}:
            raise ConfigurationError(
                f"noise of shape {self.noise.shape}; "
                f"allowed is ({clients},) or ({layers}, {clients})"
            )
        if self.plan_noise.shape != (layers, clients):
            raise ConfigurationError(
                f"plan noise of shape {self.plan_noise.shape}; allowed is ({layers}, {clients})"
            )
        if not (np.isfinite(self.squared).all() and (self.squared == _turned(self.squared)).all()):
            raise ConfigurationError("squared distances must be finite and symmetric")
        for what, values in (("noise", self.noise), ("plan noise", self.plan_noise)):
            if not (np.isfinite(values).all() and (values >= 0).all()):
                raise ConfigurationError(f"{what} must be finite energies of at least 0")
        for what, number in (("dimension", self.dimension), ("sketch size", self.sketch_size)):
            if number < 1:
                raise ConfigurationError(f"{what} {number}; at least 1 is needed")


@dataclass(frozen=True)
class Nodes:
    """What each node of a merge tree would cost as a cluster: clients first, then the merges in
    order. Arrays are (layers, nodes) unless said; energies are divided by ``2**exponent``.

    Attributes:
        children: (clients - 1, 2) nodes that a merge joins.
        size: (nodes,) members.
        within: W, estimated within sum of squares.
        noise: N, energy of the noise that members get by sharing.
        home: Energy of the noise that members have if each keeps the layer at home.
        variance: V, of what splitting the node into its two saves.
        null: V0 likewise.
        exponent: See above; keeps squares of energies finite.
    """

    children: Numbers
    size: Floats
    within: Floats
    noise: Floats
    home: Floats
    variance: Floats
    null: Floats
    exponent: int

    @classmethod
    def weigh(
        cls,
        children: Numbers,
        evidence: GradientEvidence,
        honest: Callable[[int], int],
        min_group: int,
    ) -> "Nodes":
        """Weigh all nodes in all layers. `honest` is asked about groups of `min_group` and more."""
        layers, clients = evidence.plan_noise.shape
        largest = max(
            np.abs(v).max() for v in (evidence.squared, evidence.noise, evidence.plan_noise)
        )
        exponent = int(np.frexp(largest)[1])
        plan = np.ldexp(evidence.plan_noise, -exponent)
        noise = np.ldexp(np.broadcast_to(evidence.noise, plan.shape), -exponent)
        size = _summed(children, np.ones((1, clients)))[0]
        relies = np.array([honest(int(n)) if n >= min_group else 1 for n in size], np.float64)
        if (relies < 1).any():
            raise ConfigurationError(
                f"noise that relies on {relies.min():g} honest members; at least 1 is needed"
            )
        home = _summed(children, plan)
        within = np.zeros_like(home)
        for layer in range(layers):
            squared = np.ldexp(evidence.squared[layer], -exponent)
            squared -= noise[layer][:, None] + noise[layer][None, :]
            within[layer] = _pairs(children, squared) / size
        variance, null = _variances(
            children,
            size,
            within,
            _summed(children, noise),
            evidence.dimension,
            evidence.sketch_size,
        )
        return cls(children, size, within, home / size / relies, home, variance, null, exponent)

    @property
    def clients(self) -> int:
        """Leaves of the tree."""
        return len(self.children) + 1


@dataclass(frozen=True)
class Splits:
    """Splitting each merge of the tree, layer by layer; arrays are (layers, merges).

    Attributes:
        saves: Bias that the split takes away.
        costs: Noise that it adds.
        variance, null: V and V0 of `saves`.
    """

    saves: Floats
    costs: Floats
    variance: Floats
    null: Floats

    @classmethod
    def into_two(cls, nodes: Nodes, min_group: int) -> "Splits":
        """Split each merge into its two nodes; the members of one below `min_group` go home."""
        small, merges = nodes.size < min_group, slice(nodes.clients, None)
        left, right = nodes.children.T

        def added(shared: Floats, sent_home: Floats) -> Floats:
            value = np.where(small, sent_home, shared)
            both: Floats = value[:, left] + value[:, right]
            return both

        nothing = np.zeros_like(nodes.within)
        # A node that goes home saves all of its bias, whose estimate is as uncertain as all splits
        # below it together.
        variance, null = (
            values[:, merges] + added(nothing, _with_all_below(nodes.children, values))
            for values in (nodes.variance, nodes.null)
        )
        return cls(
            nodes.within[:, merges] - added(nodes.within, nothing),
            added(nodes.noise, nodes.home) - nodes.noise[:, merges],
            variance,
            null,
        )

    @classmethod
    def home(cls, nodes: Nodes) -> "Splits":
        """Send all members of each merge home."""
        merges = slice(nodes.clients, None)
        variance, null = (
            _with_all_below(nodes.children, values)[:, merges]
            for values in (nodes.variance, nodes.null)
        )
        added = (nodes.home - nodes.noise)[:, merges]
        return cls(nodes.within[:, merges], added, variance, null)


def checked_children(merges: Floats, clients: int) -> Numbers:
    """(clients - 1, 2) nodes that each merge joins; refuses what is no merge tree of them."""
    if merges.ndim != 2 or merges.shape[0] != clients - 1 or merges.shape[1] < 2:
        raise ConfigurationError(
            f"a merge tree of shape {merges.shape} for {clients} clients; "
            f"allowed is ({clients - 1}, 4)"
        )
    whole = np.where(np.isfinite(merges[:, :2]), merges[:, :2], -1.0)
    children = np.clip(whole, -1, 2 * clients).astype(np.int64)
    if (children != whole).any():
        children[:] = -1
    late = (children >= clients + np.arange(clients - 1)[:, None]).any()
    once = sorted(children.ravel().tolist()) == list(range(2 * clients - 2))
    if late or not once:
        raise ConfigurationError("a merge tree must join every client and every earlier merge once")
    return children


def _summed(children: Numbers, values: Floats) -> Floats:
    """(rows, nodes) sums over the members of each node of (rows, clients) values."""
    total = np.concatenate([values, np.zeros((len(values), len(children)))], axis=1)
    for at, (a, b) in enumerate(children, start=values.shape[1]):
        total[:, at] = total[:, a] + total[:, b]
    return total


def _pairs(children: Numbers, squared: Floats) -> Floats:
    """(nodes,) sums of distances over the pairs within each node; overwrites `squared`."""
    clients = len(squared)
    row = np.arange(2 * clients - 1)  # where a node's sums of distances to all others stand
    total = np.zeros(2 * clients - 1)
    for at, (a, b) in enumerate(children, start=clients):
        i, j = row[a], row[b]
        total[at] = total[a] + total[b] + squared[i, j]
        squared[i] += squared[j]
        squared[:, i] = squared[i]
        row[at] = i
    return total


def _variances(
    children: Numbers,
    size: Floats,
    within: Floats,
    noise: Floats,
    dimension: int,
    sketch_size: int,
) -> tuple[Floats, Floats]:
    """V and V0 of splitting each node into its two, (layers, nodes); 0 for the clients."""
    clients = len(children) + 1
    a, b = children.T
    variance, null = np.zeros_like(within), np.zeros_like(within)
    factor = size[a] * size[b] / size[clients:]
    # Energies times the factor h: of the noise in the difference of two means, and of the saving.
    blur = factor * (noise[:, a] / size[a] ** 2 + noise[:, b] / size[b] ** 2)
    saving = np.maximum(within[:, clients:] - within[:, a] - within[:, b], 0.0)
    sketch, values = float(sketch_size), float(dimension)
    null[:, clients:] = 2 * blur**2 / sketch + 2 * blur**2 / values
    variance[:, clients:] = (
        2 * (saving + blur) ** 2 / sketch + (4 * saving * blur + 2 * blur**2) / values
    )
    return variance, null


def _with_all_below(children: Numbers, values: Floats) -> Floats:
    """(layers, nodes) values of each node plus those of all nodes below it."""
    total = values.copy()
    for at, (a, b) in enumerate(children, start=len(children) + 1):
        total[:, at] += total[:, a] + total[:, b]
    return total


def _turned(squared: Floats) -> Floats:
    return squared.transpose(0, 2, 1)
