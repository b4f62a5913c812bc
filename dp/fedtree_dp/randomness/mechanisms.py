"""The Gaussian mechanism for one bounded mean: what a fingerprint, a metric or a weight is released
through.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedtree_dp.checks import real
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource


def gaussian_mean(
    vectors: torch.Tensor | npt.NDArray[np.floating],
    *,
    max_norm: float,
    divisor: float,
    noise_multiplier: float,
    noise: NoiseSource,
    normalise: bool = False,
) -> npt.NDArray[np.float64]:
    """Release the mean of one vector per record.

    Formal guarantee: adding or removing one record moves the sum by at most `max_norm` in L2, so
        the result is one
    Gaussian event with `noise_multiplier`, whatever the records hold: rows with a NaN or an
        infinity count as zero.

    Args:
        vectors: shape (records, d), one row a record; zero rows are allowed and give noise alone.
        max_norm: rows longer than this are scaled down to it.
        divisor: a public number to divide by, such as the declared size; never the true number of
            records.
        noise_multiplier: standard deviation of the noise on the sum, over `max_norm`. 0 is no
            privacy.
        noise: where the noise comes from.
        normalise: scale every row to exactly `max_norm`, short ones up; zero rows stay zero.

    Returns:
        Shape (d,), float64.

    Raises:
        ConfigurationError: a value out of range or vectors of another shape.
    """
    bound = real("max_norm", max_norm, above=0)
    public = real("divisor", divisor, above=0)
    sigma = real("noise_multiplier", noise_multiplier, at_least=0)
    given = (
        vectors.detach().cpu().double().numpy() if isinstance(vectors, torch.Tensor) else vectors
    )
    rows = np.array(given, dtype=np.float64)
    if rows.ndim != 2:
        raise ConfigurationError(f"vectors must have the shape (records, d), not {rows.shape}")
    total = _clip_rows(rows, bound, normalise=normalise).sum(axis=0)
    total += noise.normal(rows.shape[1], sigma * bound, torch.float64).numpy()
    return np.asarray(total / public)


def _clip_rows(
    rows: npt.NDArray[np.float64], bound: float, *, normalise: bool
) -> npt.NDArray[np.float64]:
    """Scale rows, in place, to at most (or exactly) `bound`; rows that are not finite
    become zero.
    """
    rows[~np.isfinite(rows).all(axis=1)] = 0.0
    # Dividing by the largest entry first keeps the squares of finite rows finite.
    largest = np.abs(rows).max(axis=1, initial=0.0)
    safe = np.where(largest > 0, largest, 1.0)
    unit = rows / safe[:, None]
    length = np.sqrt((unit**2).sum(axis=1))
    with np.errstate(over="ignore"):
        over = length > 0 if normalise else length * safe > bound
    target = np.where(length > 0, bound * (1 - 1e-15) / np.where(length > 0, length, 1.0), 0.0)
    rows[over] = unit[over] * target[over, None]
    return rows
