"""FFA-LoRA (Sun et al., 2403.12313): one group, A stays at its common beginning, B is averaged."""

from typing import Any

from peers.game import Game

SETTINGS: dict[str, Any] = {}


def play(game: Game) -> None:
    """Take the rounds."""
    for _ in range(game.rounds):
        game.move(game.directions(), lambda _: game.together)
