"""Cuts by bias and variance: a group is split in a layer only where that pays under the noise.

Sharing a layer averages the clients' privacy noise away; splitting it spares them the bias of
strangers. Both are known well enough to weigh them. Let g_i be client i's mean gradient of a layer
and E_i the energy (expected squared norm) of the noise that its whole budget would leave in it. A
cluster S that shares the layer is wrong by, summed over its members::

    cost(S) = W(S) + N(S),     W(S) = 1/(2|S|) * sum over i, j in S of ||g_i - g_j||^2
                               N(S) = mean of E_i over S / honest(|S|)

and a client that keeps the layer at home by E_i. The cost of a partition is the sum over its
clusters: the within sum of squares plus noise energy times the number of clusters, which is
Mallows' C_p (1973) for a clustering, with a penalty that nobody tunes.

W is unknown; its estimate W^ takes the distances of *noisy* gradients from a sketch and subtracts
the noise that is known to be in them, so that it is unbiased. How far off it is follows from the
noise and the sketch alone. Splitting S into A and B (a and b members) saves h ||x||^2 with
h = a b / (a + b) and x the difference of their means (Ward 1963). Observed is ||P (x + z)||^2: z
has d values and energy v = e(A)/a^2 + e(B)/b^2, e(.) the summed noise of the members; P has k rows
of variance 1/k. Given y = x + z, ||P y||^2 is ||y||^2 chi^2_k / k, so that::

    mean = ||x||^2 + v
    variance = 2 (||x||^2 + v)^2 / k   +   (4 ||x||^2 v + 2 v^2) / d
               (the sketch)                (the noise)

up to terms in 1/(k d). V = h^2 * variance, with ||x||^2 replaced by its estimate (zero if
negative), V0 with ||x||^2 = 0. Contrasts of different splits are orthogonal: under equal noise
their estimates are uncorrelated at ||x|| = 0, and variances of splits and of layers add up.

A split from layer t on (and in all deeper ones) counts for what it saves, minus the noise it adds,
minus `caution` standard errors, sqrt(sum of V over the layers from t on). And it must not be
chance: clients without groups save 0 with variance V0, so the splits of a plan, m of them, together
must save more than z_m * sqrt(sum of V0), with ::

    z_1 the normal quantile at which one of L layers to begin in passes with chance false_splits
    z_m^2 = z_1^2 + 2 (m - 1) log 8      (so the chance falls by 8 for each further split: there are
                                          fewer than 4^m subtrees with m splits, and their chances
                                          add up to less than 1.4 times that of one split)

This binds for plans of many rounds, whose one release is so noisy that the price of a split and its
standard error are only a fraction of what chance produces. It is a condition and not a margin: as a
margin it would hide from the choice of t what each further layer costs.

All layers and all nodes of the merge tree are decided at once, by dynamic programming over "the
layer from which on this node is split": exact, and linear in nodes and layers. So one lucky split
in a shallow layer does not force splits below it, a node may be split only for the sake of its
children's splits, and rows are nested because a node is split once. The partitions need not be cuts
at one height: a part of the tree that is split does not force another that merely merged later.

The merge tree must come from another release than the distances (fingerprints): on the noise that
chose it, every split looks better than it is.

Clients repeat the server's computation. It uses additions in an order that the merge tree fixes,
elementwise products, quotients and square roots, which IEEE 754 rounds correctly everywhere; no
matrix product, no random number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedtree_secure.agreed.cut_costs import (
    Floats,
    GradientEvidence,
    Nodes,
    Splits,
    checked_children,
)
from fedtree_secure.agreed.cut_plans import USUAL, Plans, Rule, plan
from fedtree_secure.errors import ConfigurationError


@dataclass(frozen=True)
class LayerCut:
    """How one layer is shared, and what else was weighed. Costs are estimates in the unit of the
    evidence, as the module's docstring defines them.

    Attributes:
        groups: Members of each group that shares the layer, largest first.
        at_home: Clients that keep the layer to themselves.
        cost: Of this choice.
        one_group: If all clients shared the layer.
        finest: If every split were made that leaves nobody alone (one group where there is none).
        alone: If every client kept the layer at home.
        saves: Bias that the best refused split would take away in this layer alone; 0 if every
            group is as small as it may be.
        costs: What that split would have to save: its noise and its margin.
    """

    groups: tuple[int, ...]
    at_home: int
    cost: float
    one_group: float
    finest: float
    alone: float
    saves: float
    costs: float

    def describe(self, layer: int) -> str:
        """Say in one sentence how the layer is shared and why. The unit of its figures is the noise
        of one client alone.
        """
        home = f", kept at home by {self.at_home}" if self.at_home else ""
        shared = "shared by " + ", ".join(map(str, self.groups)) if self.groups else "not shared"
        unit = self.alone / (sum(self.groups) + self.at_home) or 1.0
        if self.at_home or len(self.groups) > 1:
            less = (self.one_group - self.cost) / unit
            return f"layer {layer} is {shared}{home}: that costs {less:.2f} less than one group"
        if self.saves > self.costs:
            why = "a split would pay here, but not with those that it asks of deeper layers"
        elif self.saves > 0:
            why = f"a split would cost {self.costs / unit:.2f} and save {self.saves / unit:.2f}"
        else:
            why = f"a split would cost {self.costs / unit:.2f} and save nothing that can be seen"
        return f"layer {layer} is {shared}: {why}"


@dataclass(frozen=True)
class Cuts:
    """The chosen clusters.

    Attributes:
        labels: One row per layer of cluster numbers, each refining the row before it. A client that
            keeps a layer at home has a number of its own.
        layers: What was weighed in each layer.
    """

    labels: tuple[tuple[int, ...], ...]
    layers: tuple[LayerCut, ...]


def one_honest_member(size: int) -> int:  # noqa: ARG001 - the signature of a rule
    """Own noise: every client's noise protects it by itself, whatever the size of its group."""
    return 1


def noise_aware_cuts(
    merges: Floats,
    evidence: GradientEvidence,
    min_group: int,
    honest: Callable[[int], int] = one_honest_member,
    rule: Rule = USUAL,
) -> Cuts:
    """Choose for every layer the clusters whose estimated error is smallest.

    Args:
        merges: (clients - 1, 4) merge tree as scipy's `linkage` returns it, of another release than
            the evidence's.
        evidence: Distances and noise, clients in the merge tree's order.
        min_group: Clusters with fewer members are not shared: their members keep the layer at home.
        honest: Number of honest members, at least 1, whose noise a group of some size can rely on:
            noise shared in the masks is E / honest(size). Own noise by default.
        rule: How sure a split must be.

    Returns:
        Labels of each layer and what was weighed; the same on every machine.

    Raises:
        ConfigurationError: The merge tree is not one of these clients, `min_group` is below 2, or a
            group would rely on no honest member.
    """
    clients = evidence.squared.shape[1]
    children = checked_children(merges, clients)
    if min_group < 2:
        raise ConfigurationError(f"min_group {min_group}; a group has at least 2 members")
    nodes = Nodes.weigh(children, evidence, honest, min_group)
    clusters = _clusters(nodes, plan(nodes, min_group, rule), min_group)
    reports = _report(nodes, clusters, min_group, rule)
    return Cuts(tuple(_labels(nodes, held) for held in clusters), reports)


def _clusters(nodes: Nodes, plans: Plans, min_group: int) -> list[list[int]]:
    """The nodes that are clusters in each layer; clients at home are their own."""
    depth = len(nodes.within)
    found: list[list[int]] = [[] for _ in range(depth)]
    open_nodes = [(2 * nodes.clients - 2, 0)]
    while open_nodes:
        at, begin = open_nodes.pop()
        if begin == depth:
            continue
        shared = nodes.size[at] >= min_group
        end = int(plans.end[at, begin]) if shared else begin
        home = bool(plans.home[at, begin]) or not shared
        for layer in range(begin, end):
            found[layer].append(at)
        if home:
            members = _members(nodes, at)
            for layer in range(end, depth):
                found[layer].extend(members)
        else:
            open_nodes.extend((int(child), end) for child in nodes.children[at - nodes.clients])
    return found


def _members(nodes: Nodes, at: int) -> list[int]:
    """The clients below a node."""
    found, inner = [], [at]
    while inner:
        node = inner.pop()
        if node < nodes.clients:
            found.append(node)
        else:
            inner.extend(int(child) for child in nodes.children[node - nodes.clients])
    return sorted(found)


def _labels(nodes: Nodes, clusters: list[int]) -> tuple[int, ...]:
    """Cluster numbers of the clients, in the order of the clusters' first members."""
    held = sorted(_members(nodes, at) for at in clusters)
    labels = [0] * nodes.clients
    for number, members in enumerate(held):
        for client in members:
            labels[client] = number
    return tuple(labels)


def _report(
    nodes: Nodes, clusters: list[list[int]], min_group: int, rule: Rule
) -> tuple[LayerCut, ...]:
    """Describe each layer's choice beside the others."""
    splits = Splits.into_two(nodes, min_group)
    needs = np.maximum(
        splits.costs + rule.caution * np.sqrt(splits.variance),
        rule.quantile(len(clusters)) * np.sqrt(splits.null),
    )
    finest, root = _finest(nodes, min_group), len(nodes.size) - 1

    def unit(value: float) -> float:
        return float(np.ldexp(value, nodes.exponent))

    reports = []
    for layer, held in enumerate(clusters):
        cost = nodes.within[layer] + nodes.noise[layer]
        shared = [at for at in held if nodes.size[at] >= min_group]
        lonely = [at for at in held if nodes.size[at] < min_group]
        refused = [
            (splits.saves[layer, at - nodes.clients], needs[layer, at - nodes.clients])
            for at in shared
        ]
        saves, costs = max(refused, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))
        reports.append(
            LayerCut(
                groups=tuple(sorted((int(nodes.size[at]) for at in shared), reverse=True)),
                at_home=len(lonely),
                cost=unit(sum(cost[at] for at in shared) + sum(nodes.home[layer, lonely])),
                one_group=unit(cost[root]),
                finest=unit(sum(cost[at] for at in finest)),
                alone=unit(nodes.home[layer, root]),
                saves=unit(saves),
                costs=unit(costs),
            )
        )
    return tuple(reports)


def _finest(nodes: Nodes, min_group: int) -> list[int]:
    """The clusters after every split into two nodes of at least `min_group` members."""
    found, inner = [], [len(nodes.size) - 1]
    while inner:
        at = inner.pop()
        pair = nodes.children[at - nodes.clients] if at >= nodes.clients else ()
        if len(pair) and (nodes.size[pair] >= min_group).all():
            inner.extend(int(child) for child in pair)
        else:
            found.append(at)
    return sorted(found)
