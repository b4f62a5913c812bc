"""Exact privacy profiles and conversions that round towards less leakage.

`gaussian_delta` is theorem 8 of Balle and Wang (1805.06530) and corollary 2.13 of Dong, Roth and Su
(1905.02383). `profile_inverse` turns the (epsilon, delta) points of any accountant into the inverse
blow-up function that the one-run f-DP bound needs; leaving points out only makes the bound smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtr

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics.scores import Floats
from fedtree_dp import Event
from fedtree_dp.account.accounting import merge, times_of
from fedtree_dp.account.events import Gaussian, PoissonGaussian

_LARGEST = 1e4
_ROUNDING = 1e-15  # of the accountant's sums, which may come out below zero


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return delta(epsilon) of mu-GDP: Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)."""
    if mu <= 0:
        return 0.0
    return float(
        ndtr(-epsilon / mu + mu / 2) - math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return an epsilon that mu-GDP exceeds at `delta`, within 1e-9 relative of the exact value
    from below.

    Raises:
        ScoresError: mu is negative or not finite, or delta out of range.
    """
    if not (math.isfinite(mu) and mu >= 0) or not 0 < delta < 1:
        raise ScoresError(
            f"mu is {mu!r} and delta {delta!r}; allowed: mu finite and at least 0, delta in (0, 1)"
        )
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta and high < _LARGEST:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return low * (1 - 1e-12)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the mu whose epsilon at `delta` is this one (to 1e-12): the inverse of
    `gaussian_epsilon`.
    """
    low, high = 0.0, 1.0
    while gaussian_epsilon(high, delta) < epsilon and high < _LARGEST:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return low


def profile_inverse(points: Sequence[tuple[float, float]]) -> Callable[[Floats], Floats]:
    """Return the inverse blow-up function of the trade-off curve above all (epsilon, delta) points.

    f(x) = max(0, 1 - delta - e^eps x, e^-eps (1 - delta - x)) for each point (Wasserman and Zhou
    2010; Dong, Roth and Su, proposition 2.5); the inverse of 1 - f is the largest of (y - delta)
    e^-eps and 1 - delta - (1 - y) e^eps.

    Raises:
        ScoresError: no points, or one outside epsilon >= 0 and 0 <= delta <= 1.
    """
    if not points or any(eps < 0 or not 0 <= delta <= 1 for eps, delta in points):
        raise ScoresError("a profile needs points with epsilon at least 0 and delta in [0, 1]")
    grown = np.exp([min(eps, 700.0) for eps, _ in points])
    deltas = np.array([delta for _, delta in points])

    def inverse(y: Floats) -> Floats:
        given = np.asarray(y, dtype=np.float64)[..., None]
        found = np.maximum((given - deltas) / grown, 1 - deltas - (1 - given) * grown).max(axis=-1)
        return np.asarray(np.clip(found, 0.0, 1.0))

    return inverse


def accountant_points(
    events: Sequence[Event], epsilons: Sequence[float]
) -> list[tuple[float, float]]:
    """Return (epsilon, delta) of the events from a PLD on the planning grid; it only overstates
    delta.

    Raises:
        ScoresError: an event that is neither Gaussian nor Poisson-subsampled Gaussian.
    """
    composed = _pld(events, pessimistic=True)
    return [
        (float(eps), min(1.0, max(_ROUNDING, float(composed.get_delta_for_epsilon(float(eps))))))
        for eps in epsilons
    ]


def epsilon_at_least(events: Sequence[Event], delta: float) -> float:
    """Return an epsilon that the events are known to exceed or equal: an optimistic PLD, which
    rounds down.
    """
    return max(0.0, float(_pld(events, pessimistic=False).get_epsilon_for_delta(delta)))


def _pld(events: Sequence[Event], *, pessimistic: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    composed = None
    for event in merge(events):
        if not isinstance(event, Gaussian | PoissonGaussian):
            raise ScoresError(f"no profile is computed for {event.mechanism}")
        rate = 1.0 if isinstance(event, Gaussian) else event.sample_rate
        one = pld.from_gaussian_mechanism(
            event.noise_multiplier,
            value_discretization_interval=1e-3,
            sampling_prob=rate,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        part = one.self_compose(times_of(event)) if times_of(event) > 1 else one
        composed = part if composed is None else composed.compose(part)
    if composed is None:
        raise ScoresError("no events were given")
    return composed
