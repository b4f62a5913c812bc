"""Builds that are broken on purpose. They exist for self-tests alone: no other package can import
this one.

Each is a subclass of the real thing with one mistake, so that everything around the mistake is the
shipped code.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtree_audits.rigs.engines import Build
from fedtree_dp import DPSGD, NoiseSource, PoissonSampler, PrivateOptimizer
from fedtree_dp.sgd import guards
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_dp.sgd.optimizer import Clipped
from fedtree_secagg import Node, Plan, Quantiser
from fedtree_secure.testing import Tree, inside, mean_of


class NoNoise(PrivateOptimizer):
    """Adds nothing."""

    def add_noise(self) -> None:
        """Leave the sum as it is."""
        for p in self.params:
            p.summed_grad = torch.zeros_like(p) if p.summed_grad is None else p.summed_grad


class HalfNoise(PrivateOptimizer):
    """Adds half the noise that was accounted for."""

    def add_noise(self) -> None:
        """Halve the multiplier around the real method."""
        self.noise_multiplier /= 2
        super().add_noise()
        self.noise_multiplier *= 2


class LayerTwin(PrivateOptimizer):
    """Draws noise once and uses it for every layer."""

    @torch.no_grad()
    def add_noise(self) -> None:
        """Cut every layer's noise from one draw."""
        widest = max(p.numel() for p in self.params)
        draw = self._noise.normal(widest, self.noise_multiplier * self.max_grad_norm)
        for p in self.params:
            noisy = draw[: p.numel()].view(p.shape)
            p.summed_grad = noisy if p.summed_grad is None else p.summed_grad + noisy


class Unclipped(PrivateOptimizer):
    """Sums gradients as they are."""

    max_grad_norm: float

    def accumulate(
        self,
        per_sample: Sequence[Tensor],
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Clipped:
        """Raise the bound around the real method."""
        bound = float(self.max_grad_norm)
        self.max_grad_norm = 1e9
        found = super().accumulate(per_sample, valid, present)
        self.max_grad_norm = bound
        return found


class NoPrivacy(NoNoise, Unclipped):
    """Trains as if there were no DP: neither noise nor clipping."""


class PerLayer(PrivateOptimizer):
    """Clips each parameter to the norm that should hold for all of them together."""

    @torch.no_grad()
    def accumulate(
        self,
        per_sample: Sequence[Tensor],
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Clipped:
        """Clip one parameter after the other."""
        del valid, present
        for p, rows in zip(self.params, per_sample, strict=True):
            norms = rows.reshape(len(rows), math.prod(rows.shape[1:])).norm(dim=1)
            total = torch.einsum("i,i...->...", (self.max_grad_norm / norms).clamp(max=1.0), rows)
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total
        return Clipped(len(per_sample[0]), 0, 0)


class NaNPasses(PrivateOptimizer):
    """Opacus' own rule: a NaN is scaled by NaN and added."""

    @torch.no_grad()
    def accumulate(
        self,
        per_sample: Sequence[Tensor],
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Clipped:
        """Clip without looking for what is not finite."""
        del valid, present
        norms = torch.stack(
            [g.reshape(len(g), math.prod(g.shape[1:])).norm(dim=1) for g in per_sample]
        ).norm(dim=0)
        for p, rows in zip(self.params, per_sample, strict=True):
            total = torch.einsum("i,i...->...", (self.max_grad_norm / norms).clamp(max=1.0), rows)
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total
        return Clipped(len(norms), 0, 0)


class PrivateDivisor(PrivateOptimizer):
    """Divides by the number of records in the batch."""

    def accumulate(
        self,
        per_sample: Sequence[Tensor],
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Clipped:
        """Remember the size of the batch."""
        rows = len(per_sample[0])
        self.expected_batch_size = float(rows if present is None else int(present.sum()))
        return super().accumulate(per_sample, valid, present)


class RecordsCalledUnits(DPSGD):
    """Clips every record by itself and calls it a clip of its unit."""

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Forget which records belong together."""
        parts = [batch] if isinstance(batch, Mapping) else list(batch or ())
        names = (guards.UNIT, guards.LAST)
        return super().step(
            [{name: v for name, v in part.items() if name not in names} for part in parts]
        )


class Repeating(NoiseSource):
    """Draws the same Gaussians at every call."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self._key = key

    def normal(
        self,
        shape: int | tuple[int, ...],
        std: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Start the stream again."""
        return NoiseSource(self._key).normal(shape, std, dtype, device)


class DoubledRate(PoissonSampler):
    """Samples twice as often as was accounted for."""

    def __init__(self, size: int, sample_rate: float, source: NoiseSource) -> None:
        super().__init__(size, min(1.0, 2 * sample_rate), source)


class Shuffled(PoissonSampler):
    """Batches of fixed size from a shuffled order, called Poisson."""

    def __init__(self, size: int, sample_rate: float, source: NoiseSource) -> None:
        super().__init__(size, sample_rate, source)
        self._order: list[int] = []

    def draw(self) -> npt.NDArray[np.int64]:
        """Return the next records of the order."""
        each = round(self._size * self.sample_rate)
        if len(self._order) < each:
            self._order = np.argsort(self._source.integers(self._size)).tolist()
        taken, self._order = self._order[:each], self._order[each:]
        return np.sort(np.array(taken, dtype=np.int64))


class PrivateRate(PoissonSampler):
    """Computes its rate from the private number of records, as ``batch / len(dataset)``."""

    def __init__(self, size: int, sample_rate: float, source: NoiseSource) -> None:
        super().__init__(size, min(1.0, sample_rate * 64 / size), source)


def shared_source(key: bytes, client: int) -> NoiseSource:
    """The same noise for every client."""
    del client
    return NoiseSource(key)


def repeating_source(key: bytes, client: int) -> NoiseSource:
    """The same noise at every step."""
    return Repeating(hashlib.sha256(key + bytes([client])).digest())


BUILDS: dict[str, Build] = {
    "no noise": Build(optimizer=NoNoise),
    "half the noise": Build(optimizer=HalfNoise),
    "noise reused over steps": Build(source=repeating_source),
    "noise reused over layers": Build(optimizer=LayerTwin),
    "noise shared by clients": Build(source=shared_source),
    "clipping off": Build(optimizer=Unclipped),
    "per-layer clipping called global": Build(optimizer=PerLayer),
    "doubled sampling rate": Build(sampler=DoubledRate),
    "shuffling called Poisson": Build(sampler=Shuffled),
}


OF_UNITS: dict[str, Build] = {
    "a clip a record called a clip a unit": Build(engine=RecordsCalledUnits),
}


class AnyGroup(Plan):
    """Opens sums over groups of any size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_group", 1)
        super().__post_init__()

    def _check_groups(self) -> None:
        """Check nothing."""


def any_cluster(
    members: tuple[str, ...], labels: tuple[tuple[int, ...], ...], min_group: int
) -> Tree:
    """Return a tree that releases clusters of any size."""
    del min_group
    return Tree(members, labels, 1)


def _any_mean(opened: Any, node: Node, quantiser: Quantiser, least: int) -> Any:
    """Take a sum over any number of survivors."""
    del least
    return mean_of(opened, node, quantiser, 1)


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Put broken parts in the place of shipped ones, and the shipped ones back.

    Args:
        changes: module or class, name in it, and what stands there meanwhile.
    """
    shipped = [(place, name, getattr(place, name)) for place, name, _ in changes]
    for place, name, broken in changes:
        setattr(place, name, broken)
    try:
        yield
    finally:
        for place, name, original in shipped:
            setattr(place, name, original)


@contextlib.contextmanager
def any_group_opens() -> Iterator[None]:
    """Take the smallest group out of the plan that both sides agree on, out of the participants'
    tree, and out of what both take for a sum.
    """
    with replaced(
        (inside.graph, "Plan", AnyGroup),
        (inside.party, "tree_of", any_cluster),
        (inside.received, "mean_of", _any_mean),
        (inside.experts, "mean_of", _any_mean),
    ):
        yield
