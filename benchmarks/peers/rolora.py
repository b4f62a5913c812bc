"""RoLoRA (Chen et al., 2409.02346): one group; B trains in odd rounds, A in even ones, so that each
round's mean of a factor is the mean of the products, too.
"""

from typing import Any

from peers.game import Block, Game, Groups

SETTINGS: dict[str, Any] = {"freeze_a": False}


def play(game: Game) -> None:
    """Take the rounds."""
    for number in range(game.rounds):
        idle = "A" if number % 2 == 0 else "B"

        def groups(block: Block, idle: str = idle) -> Groups:
            return [] if block.kind == idle else game.together

        game.move(game.directions(idle=idle), groups)
