"""A step whose sum leaves as whole numbers of a grid, with exact noise: for noise that several
clients share.

The clipped sum is rounded to the grid first, and the discrete Gaussian is added to whole numbers,
so the noise has no low bits that could tell anything, and sums of such releases are sums of
integers. The weights are not moved: with one client's part of the noise they would hold less noise
than what was charged. They move when the sum of all is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtree_dp.checks import count, real
from fedtree_dp.randomness.discrete import LARGEST_SIGMA, discrete_gaussian
from fedtree_dp.randomness.noise import NoiseSource

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Where the values of a step's sum are rounded to, and the noise that they get there.

    Attributes:
        step: size of a grid step, in the units of the clipped sum.
        deviation: parameter of the discrete Gaussian, in grid steps
            (`fedtree_dp.account.shared.deviation_for`).
        limit: largest magnitude of a value before its noise, in grid steps; larger ones are cut,
            which brings no two sums further apart. The noise is never cut: of a sum of several
            clients, cutting one client's share would be no post-processing.

    Raises:
        ConfigurationError: a value out of range.
    """

    step: float
    deviation: float
    limit: int

    def __post_init__(self) -> None:
        real("step", self.step, above=0)
        real("deviation", self.deviation, above=0, at_most=LARGEST_SIGMA)
        count("limit", self.limit)


def released(grid: Grid, sums: Sequence[Tensor | int], noise: NoiseSource) -> Ints:
    """Return the noisy sums on the grid, one vector after another.

    Args:
        grid: see there.
        sums: clipped sum of each parameter, or its number of values where no record joined.
        noise: where the noise comes from.

    Returns:
        Shape (values of all parameters,).
    """
    whole = np.concatenate(
        [np.zeros(s, np.int64) if isinstance(s, int) else _rounded(grid, s) for s in sums]
    )
    return whole + discrete_gaussian(len(whole), grid.deviation, noise)


def _rounded(grid: Grid, total: Tensor) -> Ints:
    values = total.detach().to("cpu", torch.float64).reshape(-1).numpy() / grid.step
    whole = np.nan_to_num(np.rint(values), nan=0.0)
    cut: Ints = np.clip(whole, -grid.limit, grid.limit).astype(np.int64)
    return cut
