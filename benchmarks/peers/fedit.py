"""FedIT (Zhang et al., 2305.05644): one group, both factors averaged by themselves."""

from typing import Any

from peers.game import Game

SETTINGS: dict[str, Any] = {"freeze_a": False}


def play(game: Game) -> None:
    """Take the rounds."""
    for _ in range(game.rounds):
        game.move(game.directions(), lambda _: game.together)
