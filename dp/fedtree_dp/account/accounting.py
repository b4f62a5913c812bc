"""Epsilon of a list of events: the privacy loss distribution decides, RDP and PRV cross-check.

Composition by privacy loss distributions (PLD) is exact up to a discretisation that only ever
rounds up, so a coarser grid gives a larger epsilon and never a smaller one. It covers plans that
were fixed before they ran; for parameters chosen from earlier outputs see
`fedtree_dp.account.filters`. Gaussian DP's central limit is never used: it understates.

Sources: Koskela et al. 2020 (2006.07134), Doroshenko et al. 2022 (2207.04380, "connect the dots"),
Gopi et al. 2021 (2106.02848, PRV), Mironov 2017 and 2019 (RDP). Libraries: dp_accounting (PLD,
RDP), Opacus (PRV). All are imported at the first use, because they take seconds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

from fedtree_dp import checks
from fedtree_dp.account.events import (
    Event,
    Gaussian,
    PoissonGaussian,
    SharedPoissonGaussian,
    TruncatedPoissonGaussian,
)
from fedtree_dp.account.single_step import gaussian_step
from fedtree_dp.errors import ConfigurationError

Accountant = Literal["pld", "rdp", "prv"]

PLANNING_DISCRETIZATION = 1e-3
STATEMENT_DISCRETIZATION = 1e-4

# Below this delta, sums of double-precision convolutions over a million buckets are rounding
# errors.
SMALLEST_DELTA = 1e-12
# Below this noise epsilon is above 50,000 for any practical delta: no finite value is claimed.
_SMALLEST_NOISE = 3e-3
# Above this RDP bound nothing is private: the bound itself is returned instead of a distribution of
# many gigabytes.
_HOPELESS = 1000.0
_MOST_BUCKETS = 1_000_000
_GUARD_ORDERS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the same composition with as few events as possible, in an order that does not depend
    on the given one.

    Equal Poisson steps add up. Full-batch steps (`sample_rate` 1) are Gaussian releases, and
    Gaussian releases with multipliers s_i are together one with `(sum of s_i^-2)^-1/2`: exact, not
    a bound. Steps of shared noise count with their own noise alone; who may count on others says so
    first (`fedtree_dp.account.shared.given_honest`).
    """
    steps: Counter[PoissonGaussian | TruncatedPoissonGaussian] = Counter()
    full: Counter[float] = Counter()
    for event in events:
        step = _one_step(event)
        if isinstance(step, Gaussian):
            full[step.noise_multiplier] += times_of(event)
        else:
            steps[step] += times_of(event)
    merged: list[Event] = [replace(step, steps=steps[step]) for step in sorted(steps, key=_order)]
    if full:
        merged.append(Gaussian(_joint_noise(full)))
    return tuple(merged)


def _one_step(event: Event) -> Gaussian | PoissonGaussian | TruncatedPoissonGaussian:
    """Return one step of the event, in its simplest equal form; of shared noise, what holds
    whatever others do.
    """
    if isinstance(event, SharedPoissonGaussian):
        event = event.own
    if isinstance(event, TruncatedPoissonGaussian) and event.cap >= event.records:
        event = PoissonGaussian(event.noise_multiplier, event.sample_rate, event.steps)
    if isinstance(event, PoissonGaussian) and event.sample_rate == 1.0:
        return Gaussian(event.noise_multiplier)
    return event if isinstance(event, Gaussian) else replace(event, steps=1)


def _order(event: PoissonGaussian | TruncatedPoissonGaussian) -> tuple[float, ...]:
    cut = (event.records, event.cap) if isinstance(event, TruncatedPoissonGaussian) else (0, 0)
    return event.noise_multiplier, event.sample_rate, *cut


def times_of(event: Event) -> int:
    """Return how many times the event's mechanism ran."""
    return 1 if isinstance(event, Gaussian) else event.steps


def _joint_noise(full: Counter[float]) -> float:
    if 0.0 in full:
        return 0.0
    if sum(full.values()) == 1:
        return next(iter(full))
    # scaled by the smallest, so that the squares of huge or tiny multipliers stay finite
    least = min(full)
    return least / math.sqrt(
        math.fsum(times * (least / noise) ** 2 for noise, times in sorted(full.items()))
    )


def epsilon_of(
    events: Iterable[Event],
    delta: float,
    *,
    accountant: Accountant = "pld",
    discretization: float = STATEMENT_DISCRETIZATION,
) -> float:
    """Return the epsilon of all events together, at `delta`, for add-or-remove-one-record
    neighbours.

    With a truncated event among them the neighbours are those of `TruncatedPoissonGaussian`.

    Args:
        events: what was or would be released; fixed beforehand, or at least not chosen from earlier
            outputs.
        delta: from 1e-12 to below 1.
        accountant: `"pld"` (the one that budgets are held to), `"rdp"` (an upper bound, usually 5
            to 20% larger) or `"prv"` (Opacus; about .01 above PLD).
        discretization: grid of the privacy loss in nats, PLD only. It is coarsened where one step
            would need more than a million buckets (noise below about .02). Where RDP bounds epsilon
            by no less than 1,000, that bound is returned.

    Returns:
        0.0 for no events, `inf` if any release has no noise, or so little that no finite value is
        claimed.

    Raises:
        ConfigurationError: delta, discretisation or accountant outside what is stated here, or
            truncated batches with another accountant than PLD.
    """
    checks.real("delta", delta, at_least=SMALLEST_DELTA, below=1.0)
    checks.real("discretization", discretization, above=0.0, at_most=1.0)
    merged = merge(events)
    if accountant not in _ACCOUNTANTS:
        raise ConfigurationError(
            f"unknown accountant {accountant!r}{checks.suggestion(str(accountant), _ACCOUNTANTS)}"
        )
    if accountant != "pld" and any(isinstance(event, TruncatedPoissonGaussian) for event in merged):
        raise ConfigurationError(
            f"only the PLD accountant knows truncated Poisson batches, not {accountant!r}"
        )
    if not merged:
        return 0.0
    if min(event.noise_multiplier for event in merged) < _SMALLEST_NOISE:
        return math.inf
    return _ACCOUNTANTS[accountant](merged, delta, discretization)


@functools.lru_cache(maxsize=4096)
def _pld(merged: tuple[Event, ...], delta: float, discretization: float) -> float:
    """PLD epsilon; cached, because clients of one job run the same plan and a ledger asks again
    after each charge.
    """
    cut = any(isinstance(event, TruncatedPoissonGaussian) for event in merged)
    bound = rdp_bound(merged, delta)
    if bound >= _HOPELESS:
        return math.inf if cut else bound
    least = min(event.noise_multiplier for event in merged)
    # a cut batch has twice the sensitivity
    widest = 4.0 * (16.0 / least + 1.0 / least**2) if cut else 16.0 / least + 1.0 / least**2
    interval = max(discretization, widest / _MOST_BUCKETS)
    composed: Any = None
    for event in merged:
        part = _single(_one_step(event), interval)
        part = part.self_compose(times_of(event)) if times_of(event) > 1 else part
        composed = part if composed is None else composed.compose(part)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


@functools.lru_cache(maxsize=32)
def _single(step: Event, interval: float) -> Any:
    """Return the loss distribution of one step; cached, because building it is most of the work."""
    if isinstance(step, TruncatedPoissonGaussian):
        from dp_accounting.pld import privacy_loss_distribution as pld

        return pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=step.records,
            sampling_probability=step.sample_rate,
            truncated_batch_size=step.cap,
            noise_multiplier=step.noise_multiplier,
            value_discretization_interval=interval,
            neighboring_relation=_replace_special(),
        )
    noise, rate = _kind(step)
    return gaussian_step(noise, rate, interval)


def _replace_special() -> Any:
    from dp_accounting import NeighboringRelation

    return NeighboringRelation.REPLACE_SPECIAL


def _kind(event: Event) -> tuple[float, float]:
    return event.noise_multiplier, 1.0 if isinstance(event, Gaussian) else event.sample_rate


def rdp_bound(merged: tuple[Event, ...], delta: float) -> float:
    """Return a rough bound of epsilon within milliseconds: RDP at a dozen orders; 0.0 for no
    events.

    Not a bound with truncated batches, whose truncation it ignores: then only a guide.
    """
    return _rdp(merged, delta, 0.0, _GUARD_ORDERS) if merged else 0.0


def upper_bound(events: Iterable[Event], delta: float) -> float:
    """Return a quick upper bound of epsilon: RDP at a dozen orders, typically 5 to 30% above PLD.

    `inf` with truncated batches, which RDP does not know.
    """
    merged = merge(events)
    if any(isinstance(event, TruncatedPoissonGaussian) for event in merged):
        return math.inf
    if merged and min(event.noise_multiplier for event in merged) < _SMALLEST_NOISE:
        return math.inf
    return rdp_bound(merged, delta)


@functools.lru_cache(maxsize=256)
def _rdp(
    merged: tuple[Event, ...],
    delta: float,
    _discretization: float,
    orders: tuple[float, ...] | None = None,
) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

    accountant = rdp.RdpAccountant(orders)
    with _quiet_absl():
        for event in merged:
            noise, rate = _kind(event)
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), times_of(event))
        return float(accountant.get_epsilon(delta))


def _prv(merged: tuple[Event, ...], delta: float, _discretization: float) -> float:
    import numpy as np

    with warnings.catch_warnings():  # importing Opacus pulls in modules that deprecate themselves
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(*_kind(event), times_of(event)) for event in merged]
    # a rate of 1 takes the logarithm of 0, exp() overflows in the far tail, RDP sizes the domain
    # with a few orders
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Optimal order is the (largest|smallest) alpha", category=UserWarning
        )
        return float(accountant.get_epsilon(delta))


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Hold back dp_accounting's advice on RDP orders, which users of this package cannot follow."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


_ACCOUNTANTS: dict[str, Callable[[tuple[Event, ...], float, float], float]] = {
    "pld": _pld,
    "rdp": _rdp,
    "prv": _prv,
}
