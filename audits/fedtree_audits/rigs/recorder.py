"""The shipped engine, with a record of every value that a step was given and left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedtree_dp import DPSGD
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import CLUSTER, Backbone

Floats32 = np.ndarray[Any, np.dtype[np.float32]]
Values = dict[str, Floats32]
"""Flat values by place: ``layer0.1``, ``lam2``, ``head.weight``."""


@dataclass
class Opening:
    """One trainer of a client.

    Attributes:
        client: Whose it is.
        noise_multiplier, divisor: What it was opened with.
        before, after: Values around each step.
        moments: Adam's state after the last step, named as a client keeps it.
    """

    client: str
    noise_multiplier: float
    divisor: float
    before: list[Values] = field(default_factory=list)
    after: list[Values] = field(default_factory=list)
    moments: Values = field(default_factory=dict)


@dataclass
class Log:
    """What the engines of all clients of a process did.

    Attributes:
        backbone: Their model, which says where a parameter stands.
        current: Whose turn it is.
        openings: Every trainer that took a step, in order.
    """

    backbone: Backbone
    current: str = ""
    openings: list[Opening] = field(default_factory=list)

    def turn(self, client: str, handle: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """Return a handler that says whose turn it is."""

        def handled(request: bytes) -> bytes:
            self.current = client
            return handle(request)

        return handled


class Recorder(DPSGD):
    """Takes the shipped steps and writes down what they did.

    Attributes:
        log: Gets one entry for each trainer that takes a step.
    """

    log: Log

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        known = _places(self.log.backbone)
        self._at = [(known[id(p)], p) for _, p in self._named]
        noise, divisor = self.optimizer.noise_multiplier, self.optimizer.expected_batch_size
        self._opening = Opening(self.log.current, float(noise), float(divisor))

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Take a step between two copies of all values."""
        opening = self._opening
        if not opening.before:
            self.log.openings.append(opening)
        opening.before.append(self._values())
        report = super().step(batch)
        opening.after.append(self._values())
        state = self.optimizer.original_optimizer.state
        for place, p in self._at:
            if held := state.get(p):
                for short, name in (("step", "step"), ("m", "exp_avg"), ("v", "exp_avg_sq")):
                    opening.moments[f"{place}/{short}"] = _flat(held[name])
        return report

    def _values(self) -> Values:
        return {place: _flat(p) for place, p in self._at}


def recording(log: Log) -> type[DPSGD]:
    """Return an engine that writes to a log."""
    return type("Recording", (Recorder,), {"log": log})


def _flat(value: torch.Tensor) -> Floats32:
    return value.detach().float().cpu().reshape(-1).numpy().copy()


def _places(backbone: Backbone) -> dict[int, str]:
    """Name of each parameter that a client may train, by the parameter's identity."""
    experts, found = backbone.experts, dict[int, str]()
    for layer in range(experts.depth):
        found[id(experts.mixes[layer].logit)] = f"lam{layer}"
        for i, factor in enumerate(experts.factors(CLUSTER, layer)):
            found[id(factor)] = f"layer{layer}.{i}"
    named = backbone.projection.named_parameters()
    return found | {id(p): f"head.{name}" for name, p in named}
