"""Flat clusters of clients by one distance for all layers."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

from fedtree_secure.agreed.tree import silhouette
from peers.game import Floats, Game, distances


def by_silhouette(squared: Floats, least: int, method: str) -> list[list[int]]:
    """Return the clusters of the best silhouette; one cluster where none has `least` members in
    every cluster and a silhouette above 0.

    Args:
        squared: (clients, clients) squared distances, debiased.
    """
    apart = np.sqrt(np.maximum(squared, 0.0))
    merges = linkage(squareform(apart, checks=False), method)
    best, score = np.zeros(len(apart), int), 0.0
    for count in range(2, len(apart) // least + 1):
        labels = cut_tree(merges, count).ravel()
        if np.bincount(labels).min() >= least and (found := silhouette(apart, labels)) > score:
            best, score = labels, found
    return [np.flatnonzero(best == n).tolist() for n in np.unique(best)]


def debiased(game: Game, vectors: Floats, releases: int, kind: str = "B") -> Floats:
    """Return squared distances of (clients, length) vectors without the known noise in them.

    Args:
        releases: How many directions were added up in a vector.
    """
    flat = np.concatenate(game.of_layers(vectors, kind), axis=1)
    squared = distances([flat], game.job.topology.gradient_sketch_size)[0]
    known = 2 * releases * game.variance() * flat.shape[1]
    return squared - known * (1 - np.eye(len(squared)))
