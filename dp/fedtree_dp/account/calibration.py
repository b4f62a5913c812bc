"""The smallest noise that keeps a plan inside a budget, never a smaller one.

The search runs on a coarse grid of the privacy loss, which only overstates epsilon. Where that
would waste budget, its result is judged, and the search continued, on the fine grid that statements
and ledgers use.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fedtree_dp import checks
from fedtree_dp.account.accounting import (
    PLANNING_DISCRETIZATION,
    STATEMENT_DISCRETIZATION,
    epsilon_of,
    merge,
    rdp_bound,
)
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event
from fedtree_dp.errors import BudgetExceeded, ConfigurationError

# Above this epsilon, which protects nobody any more, plans are priced on coarser grids.
LARGE = 100.0
# A plan is worth running only if it may spend at least this part of the budget.
LEAST_USEFUL_SHARE = 1e-3
# Aimed at: this much below the budget, so that another machine's rounding does not push the plan
# over it.
_MARGIN = 1e-5
# Good enough: a result between this much below the budget and the budget.
_GAP = 1e-3
# The logarithm of a factor is tried within these bounds.
_WIDEST = 20.0
# Two factors whose logarithms are so close give epsilons closer than a quarter of the gap.
_NARROWEST = 1e-5
# Steps of regula falsi before bisection takes over.
_PATIENCE = 8


class _NoRootError(Exception):
    """No factor between exp(-20) and exp(20) meets the target."""


def calibrate(
    template: Sequence[Event],
    budget: PrivacyBudget,
    *,
    spent: Sequence[Event] = (),
    discretization: float = PLANNING_DISCRETIZATION,
    verify: float | None = STATEMENT_DISCRETIZATION,
) -> tuple[Event, ...]:
    """Scale the noise of all events of a plan by one common factor so that the budget is just kept.

    Args:
        template: the plan; its noise multipliers give relative shares (1 and 2: the second gets
            twice the noise).
        budget: what `spent` and the plan together may cost.
        spent: what was charged before, from the ledger.
        discretization: grid of the search, in nats.
        verify: grid of statements and ledgers, on which the result is judged where the search's
            grid is too coarse to be tight; `None` to stop after the search, for tables.

    Returns:
        The plan's events in their order with their final noise multipliers; PLD epsilon of `spent`
        and them together is at most `budget.epsilon`, and within .1% of it unless `verify` is
        `None`.

    Raises:
        BudgetExceeded: what was spent leaves less than a thousandth of the budget, or no noise is
            enough.
        ConfigurationError: an empty plan, or one with an event without noise.
    """
    plan, before = tuple(template), tuple(spent)
    checks.real("discretization", discretization, above=0.0, at_most=0.5)
    if verify is not None:
        checks.real("verify", verify, above=0.0, at_most=1.0)
    if not plan or min(event.noise_multiplier for event in plan) == 0.0:
        raise ConfigurationError(
            "a plan needs at least one event, and each a noise multiplier above 0 as its share"
        )
    return _calibrate(plan, budget, before, discretization, verify)


@functools.lru_cache(maxsize=256)
def _calibrate(
    plan: tuple[Event, ...],
    budget: PrivacyBudget,
    before: tuple[Event, ...],
    discretization: float,
    verify: float | None,
) -> tuple[Event, ...]:
    """Do the work of `calibrate`; cached, because the clients of one job mostly share plan and
    budget.
    """
    if budget.epsilon > LARGE:
        # A distribution has about epsilon over the grid's spacing buckets, so grids are coarser in
        # proportion: they overstate, so the budget is kept, and what is lost is in the fourth digit
        discretization = min(0.5, max(discretization, 1e-4 * budget.epsilon))
        verify = None if verify is None else min(0.5, max(verify, 1e-5 * budget.epsilon))
    already = epsilon_of(before, budget.delta, discretization=verify or discretization)
    if budget.epsilon - already < LEAST_USEFUL_SHARE * budget.epsilon:
        raise _exceeded(
            "too little for any plan. Raise the budget on purpose, or stop here", already, budget
        )
    try:
        return _scaled(plan, _factor(plan, budget, before, discretization, verify))
    except _NoRootError:
        raise _exceeded(
            "and no noise keeps this plan within it. Plan fewer steps", already, budget
        ) from None


def _exceeded(what: str, spent: float, budget: PrivacyBudget) -> BudgetExceeded:
    left = max(budget.epsilon - spent, 0.0)
    return BudgetExceeded(
        f"epsilon {spent:.4f} of {budget.epsilon:g} is spent at delta {budget.delta:g}; {left:.2g} "
        f"is left, {what}",
        spent=spent,
        requested_total=math.inf,
        allowed=budget.epsilon,
    )


def _factor(
    plan: tuple[Event, ...],
    budget: PrivacyBudget,
    before: tuple[Event, ...],
    discretization: float,
    verify: float | None,
) -> float:
    target = budget.epsilon * (1.0 - _MARGIN)

    def on_grid(grid: float) -> Callable[[float], float]:
        return lambda factor: epsilon_of(
            (*before, *_scaled(plan, factor)), budget.delta, discretization=grid
        )

    def bound(factor: float) -> float:
        return rdp_bound(merge((*before, *_scaled(plan, factor))), budget.delta)

    least = min(event.noise_multiplier for event in plan)
    factor = 1.0 / least
    if rdp_bound(merge(before), budget.delta) < target:
        with contextlib.suppress(_NoRootError):  # a starting point within milliseconds, no more
            factor = _solve(bound, target, start=factor, step=0.5)
    # A coarse grid overstates what was spent too; where it leaves no room only the fine one can
    # tell.
    if epsilon_of(before, budget.delta, discretization=discretization) < target * (
        1.0 - LEAST_USEFUL_SHARE
    ):
        factor = _solve(on_grid(discretization), target, start=0.95 * factor, step=0.05)
        # Coarse grids overstate by about the square of their spacing: where two agree, the fine one
        # has little to gain.
        loose = (
            on_grid(2 * discretization)(factor) - on_grid(discretization)(factor)
            > _GAP / 4 * budget.epsilon
        )
        if (
            verify is None
            or not loose
            or budget.epsilon * (1.0 - _GAP) <= on_grid(verify)(factor) <= budget.epsilon
        ):
            return factor
    return _solve(on_grid(verify or discretization), target, start=factor, step=0.002)


def _scaled(plan: tuple[Event, ...], factor: float) -> tuple[Event, ...]:
    return tuple(replace(event, noise_multiplier=event.noise_multiplier * factor) for event in plan)


def _solve(epsilon: Callable[[float], float], target: float, *, start: float, step: float) -> float:
    """Return a factor whose epsilon is at most `target`, and within `_GAP` / 4 of it.

    Epsilon falls smoothly with the factor, nearly as a power law: regula falsi in logarithms
    (Illinois variant, so that neither end of the bracket gets stuck), aimed at the middle of the
    allowed gap, needs three to six evaluations.
    """

    def above(x: float) -> float:
        ratio = epsilon(math.exp(x)) / target
        return math.log(min(max(ratio, 1e-6), 1e6)) + _GAP / 8

    (low, y_low), (high, y_high) = _bracket(above, math.log(start), step)
    previous, steps = 0.0, 0
    while high - low > _NARROWEST:
        x = (low * y_high - high * y_low) / (y_high - y_low)
        if steps >= _PATIENCE:  # it jumps, as it does where `epsilon_of` turns to its bound
            x = (low + high) / 2
        y, steps = above(x), steps + 1
        if abs(y) <= _GAP / 8:
            return math.exp(x)
        if y > 0.0:
            low, y_low, y_high = x, y, y_high / 2 if previous > 0.0 else y_high
        else:
            high, y_high, y_low = x, y, y_low / 2 if previous < 0.0 else y_low
        previous = y
    return math.exp(high)


def _bracket(
    above: Callable[[float], float], x: float, step: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (log factor, value) on both sides of the root, too little noise first, by strides that
    double.
    """
    y = above(x)
    while True:
        other = x + math.copysign(step, y)
        if abs(other) > _WIDEST:
            raise _NoRootError
        y_other = above(other)
        if y_other * y <= 0.0:
            return ((x, y), (other, y_other)) if y > 0.0 else ((other, y_other), (x, y))
        x, y, step = other, y_other, 2 * step
