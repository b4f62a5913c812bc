"""Adapters at home: nobody shares a layer. The head is the group's, as everywhere."""

from typing import Any

from peers.game import Game

SETTINGS: dict[str, Any] = {}


def play(game: Game) -> None:
    """Take the rounds."""
    for _ in range(game.rounds):
        game.move(game.directions(), lambda _: game.alone)
