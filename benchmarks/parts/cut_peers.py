"""Other ways to cut the same merge tree, for comparison; each returns labels by layer."""

import functools

import numpy as np

from fedtree_secure.agreed.cut_costs import GradientEvidence, Nodes
from fedtree_secure.agreed.cuts import noise_aware_cuts, one_honest_member
from fedtree_secure.agreed.tree import _labels, build_tree
from fedtree_secure.config import Topology

MIN_GROUP = 3


def tree(seen):
    """The rule of `fedtree_secure.agreed.cuts`."""
    return noise_aware_cuts(seen.merges, seen.evidence, MIN_GROUP).labels


def known(seen):
    """The same on true distances: the least that any cut of this merge tree can reach."""
    gram = seen.truth @ seen.truth.transpose(0, 2, 1)
    norms = np.diagonal(gram, axis1=1, axis2=2)
    squared = np.maximum(norms[:, :, None] + norms[:, None, :] - 2 * gram, 0.0)
    plan = seen.evidence.plan_noise
    exact = GradientEvidence(
        (squared + squared.transpose(0, 2, 1)) / 2, 0 * plan, plan, 2**60, 2**60
    )
    return noise_aware_cuts(seen.merges, exact, MIN_GROUP).labels


def one_group(seen):
    """Everybody shares every layer (FedIT)."""
    return np.zeros(seen.truth.shape[:2], int)


def alone(seen):
    """Nobody shares."""
    return np.tile(np.arange(seen.truth.shape[1]), (len(seen.truth), 1))


def by_group(seen):
    """The true groups in every layer, which no method is told."""
    return np.tile(seen.truly, (len(seen.truth), 1))


def flat(seen):
    """Our rule with one cut for all layers: they count as one layer of all their values."""
    e, layers = seen.evidence, len(seen.truth)
    joined = GradientEvidence(
        e.squared.sum(0)[None],
        e.noise.sum(0)[None],
        e.plan_noise.sum(0)[None],
        layers * e.dimension,
        layers * e.sketch_size,
    )
    return noise_aware_cuts(seen.merges, joined, MIN_GROUP).labels * layers


def silhouette(seen):
    """The calibrated silhouette of `fedtree_secure.agreed.tree`, on the fingerprints."""
    names = tuple(map(str, range(seen.truth.shape[1])))
    labels = build_tree(names, seen.fingerprints, Topology(), MIN_GROUP).labels
    return _at_home(labels)


def _at_home(labels):
    """Give each member of a cluster below `MIN_GROUP` a label of its own."""
    found = []
    for row in np.asarray(labels):
        sizes = np.bincount(row)
        found.append(np.where(sizes[row] < MIN_GROUP, len(row) + np.arange(len(row)), row))
    return found


def _by_number(seen):
    """(layers, clients) costs of the cuts into 1 to N clusters, and errors of each one's saving."""
    evidence = seen.evidence
    nodes = Nodes.weigh(seen.merges[:, :2].astype(int), evidence, one_honest_member, MIN_GROUP)
    count = nodes.clients
    price = np.where(nodes.size < MIN_GROUP, nodes.home, nodes.within + nodes.noise)
    costs, errors = [price[:, -1]], [0 * price[:, -1]]
    for at in range(2 * count - 2, count - 1, -1):
        a, b = nodes.children[at - count]
        costs.append(costs[-1] - price[:, at] + price[:, a] + price[:, b])
        errors.append(np.sqrt(nodes.variance[:, at]) if nodes.size[at] >= MIN_GROUP else errors[0])
    return np.array(costs).T, np.array(errors).T


def _cut(seen, numbers):
    return _at_home([_labels(seen.merges, number) for number in numbers])


def greedy(seen):
    """Layer by layer from the shallowest: the cut of least cost that has no fewer clusters."""
    costs, errors = _by_number(seen)
    numbers, least = [], 0
    for cost in costs + np.cumsum(errors, axis=1):
        least += int(np.argmin(cost[least:]))
        numbers.append(least + 1)
    return _cut(seen, numbers)


def heights(seen):
    """All layers at once over non-decreasing numbers of clusters, cuts at one height of the tree;
    each split counts for its gain minus one standard error.
    """
    costs, errors = _by_number(seen)
    costs = costs + np.cumsum(errors, axis=1)
    best, picks = np.zeros(costs.shape[1]), []
    for cost in costs[::-1]:
        total = cost + best
        # Least over this and larger numbers, from the right.
        pick = functools.reduce(
            lambda found, at: [
                at if not found or total[at] <= total[found[0]] else found[0],
                *found,
            ],
            range(len(total) - 1, -1, -1),
            [],
        )
        picks.append(pick)
        best = total[pick]
    numbers, least = [], 0
    for pick in picks[::-1]:
        least = pick[least]
        numbers.append(least + 1)
    return _cut(seen, numbers)


METHODS = {
    method.__name__: method
    for method in (tree, known, one_group, flat, by_group, alone, silhouette, greedy, heights)
}
