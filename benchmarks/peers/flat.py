"""FedLEASE (Wang et al., 2509.15087): clients train alone first, are clustered once by their B, and
share one adapter in each cluster from then on.

Like, not the same: of the budget's steps two are the warm-up; clusters are those of the best
silhouette, average linkage, cosine distance replaced by that of the summed noisy gradients of B (B
itself is Adam's sign of them after so few steps), debiased; other clusters' experts are not mixed.
"""

from typing import Any

from peers.clusters import by_silhouette, debiased
from peers.game import Game

SETTINGS: dict[str, Any] = {}
WARM_UP = 2


def play(game: Game) -> None:
    """Take the rounds."""
    total = 0.0
    for _ in range(WARM_UP):
        found = game.directions()
        total = total + found
        game.move(found, lambda _: game.alone)
    squared = debiased(game, total, WARM_UP)
    clusters = by_silhouette(squared, game.job.masking.min_group, "average")
    game.notes["clusters"] = clusters
    for _ in range(game.rounds - WARM_UP):
        game.move(game.directions(), lambda _: clusters)
