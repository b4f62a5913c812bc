"""FedALT (Bian et al., 2503.11880): every client trains an adapter of its own beside the frozen
mean of all others'.

Like, not the same: they are mixed by one learned weight for each layer and client instead of a
router for each record; it starts at one half.
"""

from typing import Any

import numpy as np

from peers.game import Game

SETTINGS: dict[str, Any] = {"mixing_weight": 0.5}


def play(game: Game) -> None:
    """Take the rounds."""
    for _ in range(game.rounds):
        game.move(game.directions(), lambda _: game.alone)
        for layer in range(game.depth):
            own = np.stack([game.own(client, layer) for client in range(game.count)])
            rest = (own.sum(axis=0) - own) / (game.count - 1)
            for client in range(game.count):
                game.set_external(client, layer, rest[client])
