"""Ours with both factors trained, as FedIT trains them: what of the difference is A's."""

from typing import Any

from peers import tree
from peers.game import Game

SETTINGS: dict[str, Any] = {**tree.SETTINGS, "freeze_a": False}


def play(game: Game) -> None:
    """Take the rounds."""
    tree.play(game)
