"""What a plan costs and what other plans would cost, before any data is touched.

Everything here is computed from public numbers. The signal ratio is the norm of the noise in an
averaged step over the clipping norm, `sigma * sqrt(d) / (q * n)`: above about 1 the noise moves the
parameters more than the data can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedtree_dp import checks
from fedtree_dp.account.accounting import (
    PLANNING_DISCRETIZATION,
    STATEMENT_DISCRETIZATION,
    epsilon_of,
    merge,
    rdp_bound,
)
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.calibration import LARGE, calibrate
from fedtree_dp.account.events import Event, PoissonGaussian
from fedtree_dp.errors import BudgetExceeded, ConfigurationError

Unknown = Literal["noise", "epsilon", "rounds", "batch"]
Axis = Literal["rounds", "batch", "noise"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The public numbers of a training run of one client.

    Attributes:
        records: declared number of records, at least 1.
        sample_rate: probability that one record joins one step, above 0 and at most 1.
        rounds: rounds of the federation, at least 1.
        steps_per_round: DP-SGD steps in each round, at least 1.
        warm_up_steps: steps before the first round, at least 0, with the same noise and rate.
        parameters: number of trainable values, at least 1; only the signal ratio needs it.
        stages: further steps whose noise multipliers are relative to that of the rounds' steps,
            such as a head's own with 1.25; they are scaled along.
        releases: further events of the plan, such as a fingerprint; their noise is taken as it is.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    records: int
    sample_rate: float
    rounds: int
    steps_per_round: int = 1
    warm_up_steps: int = 0
    parameters: int = 1
    releases: tuple[Event, ...] = ()
    stages: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (
            ("records", 1),
            ("rounds", 1),
            ("steps_per_round", 1),
            ("warm_up_steps", 0),
            ("parameters", 1),
        ):
            checks.count(name, getattr(self, name), at_least=least)
        checks.real("sample_rate", self.sample_rate, above=0.0, at_most=1.0)
        object.__setattr__(self, "releases", tuple(self.releases))
        object.__setattr__(self, "stages", tuple(self.stages))

    @property
    def steps(self) -> int:
        """All DP-SGD steps, warm-up included."""
        return self.warm_up_steps + self.rounds * self.steps_per_round

    @property
    def batch(self) -> float:
        """Expected number of records in a step."""
        return self.sample_rate * self.records

    def events(self, noise_multiplier: float) -> tuple[Event, ...]:
        """Return what the plan would be charged with this noise in its steps."""
        return (*self.scaled(noise_multiplier), *self.releases)

    def scaled(self, noise_multiplier: float) -> tuple[Event, ...]:
        """Return the rounds' steps, then the stages, with this noise in the rounds' steps."""
        stages = (
            replace(event, noise_multiplier=event.noise_multiplier * noise_multiplier)
            for event in self.stages
        )
        return (PoissonGaussian(noise_multiplier, self.sample_rate, self.steps), *stages)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of the table of choices.

    Attributes:
        plan: the public numbers.
        delta: delta of the budget.
        epsilon: PLD epsilon of the plan (with what was spent before), at most the budget's.
        noise_multiplier: noise standard deviation of a step over the clipping norm; `inf` when no
            noise is enough.
        signal_ratio: norm of the noise over the clipping norm in an averaged step; smaller is
            better.
    """

    plan: Plan
    delta: float
    epsilon: float
    noise_multiplier: float
    signal_ratio: float


def signal_ratio(noise_multiplier: float, parameters: int, batch: float) -> float:
    """Return `sigma * sqrt(d) / (q * n)`: noise over clipping norm in an averaged step,
    dimensionless.
    """
    return noise_multiplier * math.sqrt(parameters) / batch


def price(
    plan: Plan, budget: PrivacyBudget, *, spent: Sequence[Event] = (), verify: float | None = None
) -> PlanRow:
    """Return the row of one plan: the least noise in its steps that keeps the budget.

    Args:
        plan: the public numbers; its `releases` count as spent.
        budget: what may be spent.
        spent: what was charged before.
        verify: passed to `calibrate`; `None` is right within about .2% and never above the budget.

    Returns:
        The row; with infinite noise and ratio when the budget leaves no room.

    Raises:
        ConfigurationError: delta is not below one over the plan's records.
    """
    budget.check_records(plan.records)
    before = (*spent, *plan.releases)
    try:
        calibrated = calibrate(plan.scaled(1.0), budget, spent=before, verify=verify)
    except BudgetExceeded as refusal:
        return PlanRow(plan, budget.delta, refusal.spent, math.inf, math.inf)
    noise = calibrated[0].noise_multiplier
    grid = _grid(plan, noise, budget, spent) if verify is None else verify
    return PlanRow(
        plan=plan,
        delta=budget.delta,
        epsilon=epsilon_of((*before, *calibrated), budget.delta, discretization=grid),
        noise_multiplier=noise,
        signal_ratio=signal_ratio(noise, plan.parameters, plan.batch),
    )


def plan_table(
    plan: Plan,
    budget: PrivacyBudget,
    *,
    spent: Sequence[Event] = (),
    epsilons: Iterable[float] = (1.0, 3.0, 8.0),
    factors: Iterable[float] = (0.5, 2.0),
) -> tuple[PlanRow, ...]:
    """Return the asked plan's row first, then one row for each other choice of epsilon, of rounds
    and of batch.

    Args:
        plan: the plan asked about.
        budget: the budget asked about.
        spent: what was charged before.
        epsilons: other budgets to show, at the same delta.
        factors: other numbers of rounds and other batches to show, as multiples of the asked ones.

    Raises:
        ConfigurationError: a value out of range, or delta too large.
    """
    choices = [(plan, budget)]
    choices += [(plan, PrivacyBudget(epsilon, budget.delta)) for epsilon in epsilons]
    for factor in factors:
        choices.append((replace(plan, rounds=max(1, round(plan.rounds * factor))), budget))
        rate = min(1.0, plan.sample_rate * factor)
        choices.append((replace(plan, sample_rate=rate), budget))
    unique = dict.fromkeys(choices)  # keeps the order
    return tuple(price(choice, allowed, spent=spent) for choice, allowed in unique)


def solve(
    unknown: Unknown,
    plan: Plan,
    budget: PrivacyBudget,
    *,
    noise_multiplier: float | None = None,
    spent: Sequence[Event] = (),
) -> PlanRow:
    """Return the plan completed by the best value of one unknown, the others being given.

    Args:
        unknown: `"noise"`: the least that keeps the budget. `"epsilon"`: what plan and noise cost,
            whatever the budget's epsilon. `"rounds"` and `"batch"`: the most whole rounds, or the
            largest whole expected batch, that plan and noise allow; the plan's own number is not
            looked at.
        plan: the public numbers.
        budget: what may be spent, at which delta.
        noise_multiplier: noise of the steps over the clipping norm; needed unless it is the
            unknown.
        spent: what was charged before.

    Raises:
        BudgetExceeded: not even one round, or a batch of one, keeps the budget.
        ConfigurationError: another unknown, noise missing or given where it is asked for, or delta
            too large.
    """
    if unknown not in {"noise", "epsilon", "rounds", "batch"}:
        raise ConfigurationError(
            f"cannot solve for {unknown!r}; known: noise, epsilon, rounds, batch"
        )
    if (unknown == "noise") != (noise_multiplier is None):
        raise ConfigurationError("give noise_multiplier exactly when it is not what is solved for")
    if noise_multiplier is None:
        return price(plan, budget, spent=spent)
    budget.check_records(plan.records)
    noise = checks.real("noise_multiplier", noise_multiplier, above=0.0)
    if unknown == "epsilon":
        return _costed(plan, budget, noise, spent, STATEMENT_DISCRETIZATION)

    def row(number: int, grid: float = PLANNING_DISCRETIZATION) -> PlanRow:
        rate = number / plan.records
        changed = (
            replace(plan, rounds=number) if unknown == "rounds" else replace(plan, sample_rate=rate)
        )
        return _costed(changed, budget, noise, spent, grid)

    return _largest(row, plan.records if unknown == "batch" else 10**6, budget, unknown)


def sweep(
    plan: Plan,
    budget: PrivacyBudget,
    *,
    noise_multiplier: float,
    spent: Sequence[Event] = (),
    factors: Iterable[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
) -> dict[Axis, tuple[PlanRow, ...]]:
    """Return what a plan costs when one of its numbers is another and the rest stay: epsilon
    against each of them.

    Args:
        plan: the public numbers.
        budget: only its delta is used.
        noise_multiplier: of the rounds' steps.
        spent: what was charged before.
        factors: multiples of the plan's own number, above 0; rounds stay whole and rates at most 1,
            so that fewer rows than factors can come back.

    Returns:
        Rows in the order of the factors, without repetitions.
    """
    budget.check_records(plan.records)
    noise = checks.real("noise_multiplier", noise_multiplier, above=0.0)
    scales = [checks.real("factors", factor, above=0.0) for factor in factors]

    def rows(plans: Iterable[tuple[Plan, float]]) -> tuple[PlanRow, ...]:
        return tuple(
            _costed(changed, budget, sigma, spent, _grid(changed, sigma, budget, spent))
            for changed, sigma in dict.fromkeys(plans)
        )

    return {
        "rounds": rows(
            (replace(plan, rounds=max(1, round(plan.rounds * f))), noise) for f in scales
        ),
        "batch": rows(
            (replace(plan, sample_rate=min(1.0, plan.sample_rate * f)), noise) for f in scales
        ),
        "noise": rows((plan, noise * f) for f in scales),
    }


def _grid(plan: Plan, noise: float, budget: PrivacyBudget, spent: Sequence[Event]) -> float:
    """Return a grid for a table's row: a ten-thousandth of its epsilon, where that is above 100.

    A distribution has about epsilon over the grid's spacing buckets; an epsilon of thousands on
    the grid of small ones takes a minute and says the same three digits.
    """
    bound = rdp_bound(merge((*spent, *plan.events(noise))), budget.delta)
    return PLANNING_DISCRETIZATION if bound <= LARGE else min(1.0, 1e-4 * bound)


def _costed(
    plan: Plan,
    budget: PrivacyBudget,
    noise: float,
    spent: Sequence[Event],
    grid: float = PLANNING_DISCRETIZATION,
) -> PlanRow:
    epsilon = epsilon_of((*spent, *plan.events(noise)), budget.delta, discretization=grid)
    return PlanRow(
        plan, budget.delta, epsilon, noise, signal_ratio(noise, plan.parameters, plan.batch)
    )


def _largest(
    row: Callable[..., PlanRow], most: int, budget: PrivacyBudget, unknown: str
) -> PlanRow:
    """Return the row of the largest number that keeps the budget: doubling, then bisection (epsilon
    is monotone).
    """
    best, high = row(1), 2
    if best.epsilon > budget.epsilon:
        # the search's grid overstates; only the one of statements and ledgers may refuse
        best = row(1, STATEMENT_DISCRETIZATION)
    if best.epsilon > budget.epsilon:
        raise BudgetExceeded(
            f"{unknown} 1 already reaches epsilon {best.epsilon:.4g} of {budget.epsilon:g} allowed "
            "at delta "
            f"{budget.delta:g}. Plan more noise",
            spent=0.0,
            requested_total=best.epsilon,
            allowed=budget.epsilon,
        )
    low = 1
    while high <= most and (tried := row(high)).epsilon <= budget.epsilon:
        best, low, high = tried, high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        tried = row(middle)
        if tried.epsilon <= budget.epsilon:
            best, low = tried, middle
        else:
            high = middle
    return best
