"""Clients on a line and simulated federations, for the tests of the cut by bias and variance."""

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from fedtree_secure.agreed.cut_costs import GradientEvidence

EXACT = 2**50  # rows of a sketch and values of a layer that leave no doubt
THREE = np.repeat([0, 1, 2], 3)
DIMENSION, SKETCH = 320, 256


def line(*points):
    """One layer of clients on a line, and their merge tree."""
    x = np.array(points, float)[:, None]
    return squareform(pdist(x, "sqeuclidean"))[None], linkage(x, "ward")


def exact(squared, energy):
    """Evidence without noise; `energy` is the plan's, for all clients and layers or for each."""
    layers, clients = squared.shape[:2]
    plan = np.broadcast_to(np.asarray(energy, float), (layers, clients)).copy()
    return GradientEvidence(squared, np.zeros(clients), plan, EXACT, EXACT)


def federation(seed, *, groups=THREE, depth=0, signal=1.0, rounds=10, layers=6, energy=1.0):
    """Merge tree and evidence; group centres of squared norm `signal` from layer `depth` on."""
    rng = np.random.default_rng(seed)
    clients = len(groups)
    plan = np.broadcast_to(energy, (clients,))
    centres = rng.normal(size=(max(groups) + 1, DIMENSION)) / np.sqrt(DIMENSION)
    merges = linkage(centres[groups] + 0.2 * noise_of(rng, np.ones(clients)), "ward")
    squared = []
    for layer in range(layers):
        shown = np.sqrt(signal) * centres[groups] * (layer >= depth)
        squared.append(sketched(rng, shown + noise_of(rng, rounds * plan)))
    plans = np.tile(plan, (layers, 1))
    return merges, GradientEvidence(np.array(squared), rounds * plan, plans, DIMENSION, SKETCH)


def noise_of(rng, energy):
    return np.sqrt(energy / DIMENSION)[:, None] * rng.normal(size=(len(energy), DIMENSION))


def sketched(rng, vectors):
    """Squared distances through a Gaussian sketch, whose Wishart matrix is drawn by Bartlett's
    decomposition.
    """
    count = len(vectors)
    factor = np.tril(rng.normal(size=(count, count)), -1)
    factor[np.diag_indices(count)] = np.sqrt(rng.chisquare(SKETCH - np.arange(count)))
    views = np.linalg.cholesky(vectors @ vectors.T) @ factor / np.sqrt(SKETCH)
    return squareform(pdist(views, "sqeuclidean"))


def partition(row):
    """The clusters of a row of labels."""
    return {frozenset(np.flatnonzero(np.equal(row, label)).tolist()) for label in set(row)}
