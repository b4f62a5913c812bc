"""Other ways to train that the defaults were compared with, on tasks and seeds that the table does
not use.

What is varied is what the literature on LoRA under DP varies: which factors train. FFA-LoRA (Sun et
al., 2403.12313) keeps A at its initial value: our default; RoLoRA (Chen et al., 2409.02346) and
LA-LoRA train A and B in turns, so that a step's noise meets one factor only; plain LoRA trains both
at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedtree_dp import DPSGD
from fedtree_secure.testing import Engine, Job

TASKS, SEEDS, EPSILONS = ("wordnet-8", "20ng-6"), (100, 101, 102), (8.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from the defaults.

    Attributes:
        train_a: A trains, too.
        in_turns: B in the even steps, A in the odd ones, head and lam in all.
        rounds: Steps of the rounds; None for the default.
        learning_rate: Of the adapters; None for the default.
    """

    train_a: bool = False
    in_turns: bool = False
    rounds: int | None = None
    learning_rate: float | None = None

    def apply(self, job: Job) -> Job:
        """Return the job of this variant."""
        rate = self.learning_rate or job.training.learning_rate
        return dataclasses.replace(
            job,
            rounds=self.rounds or job.rounds,
            lora=dataclasses.replace(job.lora, freeze_a=not self.train_a),
            training=dataclasses.replace(job.training, learning_rate=rate),
        )


DEFAULT = "B alone (default)"
VARIANTS = {
    DEFAULT: Variant(),
    "A and B": Variant(train_a=True),
    "A and B in turns": Variant(train_a=True, in_turns=True),
    "B alone, 20 steps, half the rate": Variant(rounds=20, learning_rate=2e-3),
}


def one_factor(step: int) -> Engine:
    """Return an engine that trains the adapters' B in even steps and their A in odd ones; what else
    trains, does so always.
    """
    idle = ".lora_A." if step % 2 == 0 else ".lora_B."

    def opened(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[..., Any],
        **settings: Any,
    ) -> DPSGD:
        held = {id(p): p for name, p in model.named_parameters() if idle in name}
        for group in optimizer.param_groups:  # their moments stay where they are
            group["params"] = [p for p in group["params"] if id(p) not in held]
        for p in held.values():
            p.requires_grad_(False)
        return DPSGD(model, optimizer, loss, **settings)

    return opened
