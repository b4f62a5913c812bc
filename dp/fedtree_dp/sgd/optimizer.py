"""Clip, sum, add noise, divide: Opacus' `DPOptimizer` with the parts mended that can void a
guarantee.

What differs from Opacus 1.6, and why (docs/opacus-traps.md):

- a record whose gradient is not finite contributes exactly zero instead of turning the whole update
  into NaN;
- noise comes from a `NoiseSource`, never from a `torch.Generator` that a seed reaches;
- the divisor is one public constant, never a batch or data set length, and never times the number
  of micro-batches;
- a step without records is a step: noise alone;
- sums are kept in float32 or wider, also for bfloat16 parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from fedtree_dp.checks import real
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource
from fedtree_dp.sgd.grid import Grid, Ints, released


@dataclasses.dataclass(frozen=True)
class Clipped:
    """What clipping did to one micro-batch. Private: a diagnostic for the data's owner, never to be
    released.

    Attributes:
        records: records seen; dummies are none.
        clipped: records whose gradient was scaled down.
        dropped: records that contributed zero because their loss or gradient was not finite.
    """

    records: int
    clipped: int
    dropped: int


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """An optimizer whose step is one Gaussian event with sensitivity `max_grad_norm`.

    Formal guarantee: between two calls of `noisy_step`, every record enters the sum once with a
    joint L2 norm, over all parameters, of at most `max_grad_norm`; the sum then receives
    independent Gaussian noise of standard deviation `noise_multiplier * max_grad_norm` in each
    coordinate, once, and is divided by a public constant. What is released on a grid
    (`release_on`) gets the grid's noise instead.

    Args:
        optimizer: what takes the noisy gradient; its parameters that require gradients are those
            that are clipped.
        noise_multiplier: at least 0; 0 is no privacy, for tests and research references only.
        max_grad_norm: clipping norm, above 0.
        expected_batch_size: the public divisor, above 0: sample rate times the *declared* size.
        noise: where the noise comes from.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
    ) -> None:
        if not isinstance(noise, NoiseSource):
            raise ConfigurationError(
                f"noise must be a fedtree_dp.NoiseSource, not {type(noise).__name__}: a seed "
                "reaches torch's generators"
            )
        if expected_batch_size is None:
            raise ConfigurationError(
                "expected_batch_size is the public divisor and must be given; it is never counted"
            )
        super().__init__(
            optimizer,
            noise_multiplier=real("noise_multiplier", noise_multiplier, at_least=0),
            max_grad_norm=real("max_grad_norm", max_grad_norm, above=0),
            expected_batch_size=real("expected_batch_size", expected_batch_size, above=0),
            loss_reduction="mean",
        )
        self._noise = noise
        self._grid: tuple[Grid, Sequence[Tensor]] | None = None
        self._released: Ints | None = None

    def release_on(self, grid: Grid, parameters: Sequence[Tensor]) -> None:
        """Let the sums of some parameters leave on a grid, see `fedtree_dp.sgd.grid`: they get the
        grid's noise in place of `noise_multiplier`'s, are fetched with `take_released`, and these
        parameters do not move.

        Raises:
            ConfigurationError: a parameter that this optimizer does not clip, or one given twice.
        """
        known, given = {id(p) for p in self.params}, [id(p) for p in parameters]
        if not given or not set(given) <= known or len(set(given)) != len(given):
            raise ConfigurationError(
                "only parameters that this optimizer clips are released on a grid, each once"
            )
        self._grid = (grid, tuple(parameters))

    def take_released(self) -> Ints:
        """Return what the last step released on the grid, and forget it.

        Returns:
            Whole numbers of grid steps, noise included: the parameters' values one after another.

        Raises:
            ConfigurationError: no step was taken since, or nothing is released on a grid.
        """
        found, self._released = self._released, None
        if found is None:
            raise ConfigurationError("no step has released anything on a grid since")
        return found

    def clip_and_accumulate(self) -> None:
        """Clip the `grad_sample` of every parameter and add the result to `summed_grad` (Opacus'
        own entry point).
        """
        self.accumulate(self.grad_samples)
        for p in self.params:
            p.grad_sample = None

    @torch.no_grad()
    def accumulate(
        self,
        per_sample: Sequence[Tensor],
        valid: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Clipped:
        """Clip each record's gradient and add it to the sum of the current step.

        Args:
            per_sample: for each of `params`, in order, shape (rows, *parameter shape).
            valid: optional, shape (rows,), bool: records that may contribute at all.
            present: optional, shape (rows,), bool: False for dummies, which contribute exactly zero
                and are not counted.
        """
        rows = [wide(g).reshape(g.shape[0], math.prod(g.shape[1:])) for g in per_sample]
        norms, finite = finite_rows(rows)
        if valid is not None:
            finite &= valid.to(finite.device)
        if present is not None:
            finite &= present.to(finite.device)
        # A hair below the bound, so that rounding of norm and product cannot lift a record above
        # it.
        bound = self.max_grad_norm * (1 - 8 * torch.finfo(norms.dtype).eps)
        factor = torch.where(finite, bound / norms.clamp(min=bound), 0.0)
        records = len(finite) if present is None else int(present.sum())
        dropped = records - int(finite.sum())
        left_out = (~finite).nonzero().flatten()
        for p, g in zip(self.params, rows, strict=True):
            # 0 * NaN is NaN, so rows that are left out are cleared first; nobody reads them again.
            g.index_fill_(0, left_out.to(g.device), 0.0)
            total = (factor.to(g) @ g).view(p.shape)
            p.summed_grad = total if p.summed_grad is None else p.summed_grad + total
        return Clipped(records, int((finite & (norms > bound)).sum()), dropped)

    @torch.no_grad()
    def add_noise(self) -> None:
        """Add noise to every parameter's clipped sum, drawn once for all parameters."""
        params = self._without_released()
        if not params:
            return
        wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        std = self.noise_multiplier * self.max_grad_norm
        sizes = [p.numel() for p in params]
        draws = torch.split(self._noise.normal(sum(sizes), std, wide, params[0].device), sizes)
        for p, draw in zip(params, draws, strict=True):
            noisy = draw.view(p.shape).to(p.device, _wide_dtype(p.dtype))
            p.summed_grad = noisy if p.summed_grad is None else noisy + p.summed_grad

    def _without_released(self) -> list[Any]:
        """Release on the grid what leaves on it; return the other parameters."""
        if self._grid is None:
            return list(self.params)
        grid, parameters = self._grid
        held = [(p.numel(), getattr(p, "summed_grad", None)) for p in parameters]
        sums = [size if total is None else total for size, total in held]
        self._released = released(grid, sums, self._noise)
        for p in parameters:
            p.summed_grad = torch.zeros_like(p, dtype=_wide_dtype(p.dtype))  # type: ignore[attr-defined]
        gone = {id(p) for p in parameters}
        return [p for p in self.params if id(p) not in gone]

    @torch.no_grad()
    def scale_grad(self) -> None:
        """Set every `grad` to the noisy sum over the public constant, rounded to the parameter's
        type last.
        """
        for p in self.params:
            p.grad = (p.summed_grad / self.expected_batch_size).to(p.dtype)

    def noisy_step(self) -> None:
        """Add noise to what was accumulated, possibly nothing, and take one optimizer step."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step()
        self.discard()

    def snapshot(self) -> list[Tensor | None]:
        """Return the sums of the current step; they are replaced, never changed in place."""
        return [p.summed_grad for p in self.params]

    def put_back(self, sums: Sequence[Tensor | None]) -> None:
        """Forget what joined the sums since `snapshot`."""
        for p, total in zip(self.params, sums, strict=True):
            p.summed_grad = total

    def discard(self) -> None:
        """Forget all gradients: after a step, and after an error in one."""
        for p in self.params:
            p.grad = p.summed_grad = p.grad_sample = None

    def release(self) -> None:
        """Take every attribute of Opacus off the parameters."""
        for p in self.params:
            p.grad = None
            for name in ("summed_grad", "grad_sample"):
                if hasattr(p, name):
                    delattr(p, name)


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(g: Tensor) -> Tensor:
    """Return a gradient in the type that sums are kept in: float32, or float64 as it is."""
    return g.to(_wide_dtype(g.dtype))


def finite_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the joint norm of every row over all parameters, and whether it is finite."""
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1).to(rows[0].device) for g in rows]).norm(
        dim=0
    )
    return norms, norms.isfinite()
