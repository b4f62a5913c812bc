"""The privacy loss distribution of one Gaussian step, with dp_accounting, all losses at once.

`privacy_loss_distribution.from_gaussian_mechanism` inverts the privacy loss for one value after the
other, which is most of the time of a plan. Here the same inverse is taken for all values in one go;
bounds, distribution functions, rounding and composition are the library's own.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SMALL = 1000  # losses that the library keeps sparse
_ROUNDING = 1e-12  # by which a divergence may rise with the loss, for the library as well


def gaussian_step(noise_multiplier: float, sample_rate: float, interval: float) -> Any:
    """Return the loss distribution of a Gaussian mechanism on a Poisson sample, as a
    `PrivacyLossDistribution` for adding or removing one record.

    Connect the dots (Doroshenko et al. 2207.04380), pessimistic; equal to what the library makes
    up to rounding of the last digits.

    Args:
        noise_multiplier: noise standard deviation over the sensitivity, above 0.
        sample_rate: in (0, 1]; 1 is no sampling.
        interval: distance of the losses that are kept, above 0.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    given = (noise_multiplier, sample_rate, interval)
    removed = _rounded(*given, AdjacencyType.REMOVE)
    if sample_rate == 1.0:
        return pld.PrivacyLossDistribution(removed)
    return pld.PrivacyLossDistribution(removed, _rounded(*given, AdjacencyType.ADD))


def _rounded(noise: float, rate: float, interval: float, adjacency: Any) -> Any:
    from dp_accounting.pld import privacy_loss_mechanism

    mechanism = privacy_loss_mechanism.GaussianPrivacyLoss(
        noise, sampling_prob=rate, adjacency_type=adjacency
    )
    bounds = mechanism.connect_dots_bounds()
    low = math.floor(bounds.epsilon_lower / interval)
    high = math.ceil(bounds.epsilon_upper / interval)
    removed = adjacency == privacy_loss_mechanism.AdjacencyType.REMOVE
    deltas = _deltas(mechanism, np.arange(low, high + 1) * interval, noise, rate, removed=removed)
    return _connected(interval, low, deltas)


def _connected(interval: float, low: int, deltas: Floats) -> Any:
    """Return the distribution whose divergence at each loss, ``low`` intervals and on, is the given
    one, and linear in exp(loss) between them (2207.04380, algorithm 1).

    The library's function for it goes through a dictionary of all losses.
    """
    from dp_accounting.pld import pld_pmf

    if deltas.size <= _SMALL or np.diff(deltas).max() > _ROUNDING:  # which it refuses
        return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
            interval, low, low + deltas.size - 1, deltas
        )
    rises = np.diff(np.minimum.accumulate(deltas))
    up, down = math.expm1(interval), math.expm1(-interval)
    masses = np.empty_like(deltas)
    masses[0] = 1 - deltas[0] + rises[0] / up
    masses[1:-1] = (rises[1:] - rises[:-1] * math.exp(interval)) / up
    masses[-1] = rises[-1] / down
    return pld_pmf.DensePLDPmf(interval, low, np.maximum(masses, 0.0), float(deltas.min()), True)


def _deltas(mechanism: Any, losses: Floats, noise: float, rate: float, *, removed: bool) -> Floats:
    """Return the hockey-stick divergence at each loss, shape (losses,)."""
    sign = 1.0 if removed else -1.0
    edge = math.log1p(-rate) if rate < 1 else -math.inf  # of signed losses: none is at or below
    inside = sign * losses > edge
    deltas = np.zeros_like(losses)
    if removed:
        deltas[~inside] = -np.expm1(losses[~inside])
    at = losses[inside]
    cut = -sign * 0.5 - sign * _unsampled(sign * at, rate, edge) * noise**2
    deltas[inside] = mechanism.mu_upper_cdf(cut) - np.exp(at + mechanism.mu_lower_log_cdf(cut))
    return np.clip(deltas, 0.0, 1.0)


def _unsampled(losses: Floats, rate: float, edge: float) -> Floats:
    """Return log(1 + (exp(loss) - 1) / rate): the loss without sampling that has this one with."""
    if rate == 1.0:
        return losses
    shifted = losses - math.log(rate)
    with np.errstate(divide="ignore"):
        found = shifted + np.log(-np.expm1(math.log(1 / rate - 1) - shifted))
    return np.where(np.isclose(losses, edge, rtol=1e-9, atol=0.0), -np.inf, found)
