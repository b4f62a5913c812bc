"""Ours without the external expert: a client hears nothing of other groups."""

from peers import tree
from peers.game import Game

SETTINGS = tree.SETTINGS


def play(game: Game) -> None:
    """Take the rounds."""
    tree.play(game, external=False)
