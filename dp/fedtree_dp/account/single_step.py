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
    from dp_accounting.pld import pld_pmf, privacy_loss_mechanism

    mechanism = privacy_loss_mechanism.GaussianPrivacyLoss(
        noise, sampling_prob=rate, adjacency_type=adjacency
    )
    bounds = mechanism.connect_dots_bounds()
    low = math.floor(bounds.epsilon_lower / interval)
    high = math.ceil(bounds.epsilon_upper / interval)
    removed = adjacency == privacy_loss_mechanism.AdjacencyType.REMOVE
    deltas = _deltas(mechanism, np.arange(low, high + 1) * interval, noise, rate, removed=removed)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)


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
