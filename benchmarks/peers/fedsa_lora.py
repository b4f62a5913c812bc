"""FedSA-LoRA (Guo et al., 2410.01463): A is averaged over all clients, B stays at home."""

from typing import Any

from peers.game import Block, Game, Groups

SETTINGS: dict[str, Any] = {"freeze_a": False}


def play(game: Game) -> None:
    """Take the rounds."""

    def groups(block: Block) -> Groups:
        return game.together if block.kind == "A" else game.alone

    for _ in range(game.rounds):
        game.move(game.directions(), groups)
