"""Ours: a merge tree of private fingerprints, cut layer by layer where a split pays under the
noise, judged on the first round's gradients; other groups' mean as external expert.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedtree_secure.agreed.cut_costs import GradientEvidence
from fedtree_secure.agreed.cuts import noise_aware_cuts
from fedtree_secure.agreed.tree import merge_tree
from peers.game import Block, Floats, Game, Groups, distances

SETTINGS: dict[str, Any] = {"source": "fingerprint"}


def play(game: Game, *, external: bool = True) -> None:
    """Take the rounds."""
    merges = merge_tree(game.fingerprints(), game.job.topology.linkage)
    first = game.directions()
    labels = cuts(game, merges, first)
    game.notes["labels"] = [list(map(int, row)) for row in labels]
    follow(game, labels, first, external=external)


def cuts(game: Game, merges: Floats, first: Floats) -> Any:
    """Cut the tree by what the first round's gradients say."""
    topology, layers = game.job.topology, game.of_layers(first)
    squared = distances(layers, topology.gradient_sketch_size)
    widths = np.array([layer.shape[1] for layer in layers], dtype=np.float64)
    energy = np.tile(widths[:, None] * game.variance(), (1, game.count))
    evidence = GradientEvidence(
        squared, energy, energy / game.rounds, int(widths.max()), topology.gradient_sketch_size
    )
    return noise_aware_cuts(merges, evidence, game.job.masking.min_group).labels


def follow(game: Game, labels: Any, first: Floats | None, *, external: bool) -> None:
    """Take the rounds under a tree.

    Args:
        labels: (layers, clients) cluster numbers.
        first: Directions of the first round, where they were taken already.
    """
    for number in range(game.rounds):
        taken = first if number == 0 and first is not None else game.directions()

        def groups(block: Block) -> Groups:
            return clusters(labels[block.layer])

        game.move(taken, groups)
        if external:
            mix(game, labels)


def clusters(row: Any) -> Groups:
    """Return the clients of each cluster."""
    return [np.flatnonzero(np.asarray(row) == n).tolist() for n in np.unique(row)]


def mix(game: Game, labels: Any) -> None:
    """Give clients the mean of the other released clusters, as the product does."""
    least = game.job.masking.min_group
    for layer, row in enumerate(labels):
        released = [group for group in clusters(row) if len(group) >= least]
        for client in range(game.count):
            others = [i for group in released if client not in group for i in group]
            mean = np.mean([game.own(i, layer) for i in others], axis=0) if others else None
            game.set_external(client, layer, mean)
