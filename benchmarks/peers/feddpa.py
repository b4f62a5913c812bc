"""FedDPA (Yang et al., 2403.19211), its form with the global adapter first: half of the rounds
train one adapter for all, the others an adapter of each client's own beside it.

Like, not the same: the two are mixed by one learned weight for each layer and client instead of a
weight for each record, which needs no further private statistics; it starts at one half.
"""

from typing import Any

from peers.game import Game

SETTINGS: dict[str, Any] = {"mixing_weight": 0.5}


def play(game: Game) -> None:
    """Take the rounds."""
    for _ in range(game.rounds // 2):
        game.move(game.directions(), lambda _: game.together)
    for client in range(game.count):
        for layer in range(game.depth):
            game.set_external(client, layer, game.own(client, layer).copy())
    for _ in range(game.rounds - game.rounds // 2):
        game.move(game.directions(), lambda _: game.alone)
