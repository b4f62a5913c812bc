"""Ours with the paper's cut: each layer's silhouette on the fingerprints, against a threshold that
the noise sets.
"""

from typing import Any

from fedtree_secure.agreed.tree import build_tree
from peers import tree
from peers.game import Game

SETTINGS: dict[str, Any] = {"source": "fingerprint"}


def play(game: Game) -> None:
    """Take the rounds."""
    names = [f"{i:04d}" for i in range(game.count)]
    least = game.job.masking.min_group
    found = build_tree(names, game.fingerprints(), game.job.topology, least).labels
    labels = []
    for row in found:  # clusters too small to be summed keep the layer at home
        sizes = {n: row.count(n) for n in row}
        labels.append([n if sizes[n] >= least else game.count + i for i, n in enumerate(row)])
    game.notes["labels"] = labels
    tree.follow(game, labels, None, external=True)
