"""The real DP-SGD engine on a small model, made to be measured: same code path as a job, known
randomness.

`Build` says which pieces a run is put together from. An audit uses the shipped ones; a self-test
replaces one of them by a broken subclass (`fedtree_audits.rigs.broken`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedtree_audits.statistics.scores import Floats
from fedtree_dp import DPSGD, NoiseSource, PoissonSampler, PrivateOptimizer
from fedtree_dp.sgd.guards import Batch

FEATURES, HIDDEN, CLASSES = 24, 32, 4


@dataclass(frozen=True)
class Build:
    """What a build consists of.

    Attributes:
        optimizer: class that clips, adds noise and divides.
        sampler: makes the sampler from size, rate and source.
        source: makes a client's noise source from a key and the client's number.
        engine: class that takes the steps.
    """

    optimizer: type[PrivateOptimizer] = PrivateOptimizer
    sampler: Callable[[int, float, NoiseSource], PoissonSampler] = PoissonSampler
    source: Callable[[bytes, int], NoiseSource] = lambda key, client: NoiseSource(
        key[:31] + bytes([key[31] ^ client])
    )
    engine: type[DPSGD] = DPSGD


class Probe(torch.optim.SGD):
    """SGD with learning rate 0 that keeps the gradients it is given: weights stay, releases are
    seen.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.0)
        self.seen: list[Floats] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Keep the gradient."""
        del closure
        given = [p.grad for group in self.param_groups for p in group["params"]]
        self.seen.append(
            torch.cat([g.reshape(-1).double() for g in given if g is not None]).numpy()
        )


def model(seed: int = 0) -> nn.Module:
    """Return two linear layers with a tanh between them; weights from a public seed."""
    rng = np.random.default_rng([seed, 7])
    made = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    for p in made.parameters():
        p.data = torch.from_numpy(0.3 * rng.normal(size=p.shape)).float()
    return made


def records(count: int, seed: int = 0, scale: float = 3.0) -> Batch:
    """Return `count` random records with large gradients, so that clipping matters."""
    rng = np.random.default_rng([seed, 11])
    x = torch.from_numpy(scale * rng.normal(size=(count, FEATURES))).float()
    return {"x": x, "y": torch.from_numpy(rng.integers(0, CLASSES, count))}


def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross entropy, one value a record."""
    return nn.functional.cross_entropy(network(batch["x"]), batch["y"], reduction="none")


def releases(
    build: Build,
    key: bytes,
    batches: list[Batch | None],
    *,
    noise_multiplier: float,
    max_grad_norm: float = 1.0,
    divisor: float = 8.0,
    client: int = 0,
) -> npt.NDArray[np.float64]:
    """Return what the engine releases for these batches, as noisy sums: shape (steps, values), in
    clipping norms.

    Args:
        build: what is audited.
        key: 32 bytes; the noise is a function of it, the client and the build.
        batches: one for each step, None for an empty one; with units, see `of_units`.
        noise_multiplier, max_grad_norm, divisor: the engine's settings.
        client: whose noise source.
    """
    network = model()
    probe = Probe(list(network.parameters()))
    with build.engine(
        network,
        probe,
        loss,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=divisor,
        noise=build.source(key, client),
    ) as engine:
        engine.rehearse(records(2, seed=2**20))
        engine.optimizer.__class__ = build.optimizer
        for batch in batches:
            engine.step(batch)
    return np.stack(probe.seen) * divisor / max_grad_norm


def of_units(batch: Batch, size: int) -> Batch:
    """Return a batch whose records are units of `size` records each, the last maybe of fewer; in
    turns, so that no unit's records stand together.
    """
    rows = torch.arange(len(batch["y"]))
    count = -(-len(rows) // size)
    return {**batch, "unit": rows % count, "last": rows >= len(rows) - count}


def clipped_sum(batch: Batch, max_grad_norm: float = 1.0) -> Floats:
    """Return the definition: one record (one unit, where the batch names them) at a time, plain
    autograd, one joint norm over all layers, the sum.
    """
    network, total = model(), np.zeros(sum(layer_sizes()))
    unit = batch.get("unit", torch.arange(len(batch["y"])))
    for number in sorted(set(unit.tolist())):
        network.zero_grad()
        mine = {name: batch[name][unit == number] for name in ("x", "y")}
        loss(network, mine).sum().backward()  # type: ignore[no-untyped-call]
        flat = torch.cat(
            [p.grad.reshape(-1).double() for p in network.parameters() if p.grad is not None]
        ).numpy()
        total += flat * min(1.0, max_grad_norm / float(np.linalg.norm(flat)))
    return total / max_grad_norm


def layer_sizes() -> tuple[int, int]:
    """Values of the first and the second layer."""
    return HIDDEN * (FEATURES + 1), CLASSES * (HIDDEN + 1)
