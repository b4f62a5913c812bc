"""Heads trained at home with the whole budget, then averaged once among those with the same labels:
what the product's ``rounds = 0`` gives.
"""

from typing import Any

from peers.game import Game

SETTINGS: dict[str, Any] = {"rounds": 0}


def play(game: Game) -> None:
    """Take no rounds."""
    assert game.rounds == 0
