"""A budget for plans that change their mind: noise, rate or stopping chosen from what was released
before.

Composition by loss distributions is proved for plans fixed beforehand. A Rényi filter at one order,
itself fixed beforehand, is valid when each event is chosen from all earlier outputs: refuse the
first event that would bring the sum of Rényi divergences above the order's share (Feldman and Zrnic
2021, 2008.11193; Whitehouse et al. 2023, 2203.05481, show that adaptivity need not cost more than
fixed plans). The order is never switched afterwards: choosing the best of several at the end is not
covered by the theorem.

Use it beside the ledger, which keeps the durable account: an adaptive job asks `charge` here first,
then the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedtree_dp import checks
from fedtree_dp.account.accounting import times_of
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event, Gaussian, TruncatedPoissonGaussian
from fedtree_dp.errors import BudgetExceeded, ConfigurationError

_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)


def renyi_divergence(event: Event, order: int) -> float:
    """Return the event's Rényi differential privacy at a whole order, in nats; `inf` without noise.

    Mironov, Talwar and Zhang 2019 (1908.10530), section 3.3: for whole orders the sampled
    Gaussian's divergence is a finite sum, and the larger of the two directions.

    Args:
        event: `Gaussian`, `PoissonGaussian`, or shared noise, of which the own part counts.
        order: whole number from 2.

    Raises:
        ConfigurationError: truncated batches (no Rényi bound is known here), or an order below 2.
    """
    checks.count("order", order, at_least=2)
    if isinstance(event, TruncatedPoissonGaussian):
        raise ConfigurationError(
            "an adaptive plan cannot hold truncated batches: no Rényi bound for them is known here"
        )
    if event.noise_multiplier == 0.0:
        return math.inf
    rate = 1.0 if isinstance(event, Gaussian) else event.sample_rate
    return times_of(event) * _one_step(event.noise_multiplier, rate, order)


def _one_step(noise: float, rate: float, order: int) -> float:
    if rate == 1.0:
        return order / (2.0 * noise**2)
    logs = [
        _log_binomial(order, k)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + k * (k - 1) / (2.0 * noise**2)
        for k in range(order + 1)
    ]
    # the terms 0 and 1 sum to nearly 1: subtracted inside, so that tiny divergences keep their
    # digits
    top = max(logs)
    if top > 50.0:
        return (top + math.log(math.fsum(math.exp(value - top) for value in logs))) / (order - 1)
    excess = math.fsum(
        math.exp(_log_binomial(order, k) + k * math.log(rate) + (order - k) * math.log1p(-rate))
        * math.expm1(k * (k - 1) / (2.0 * noise**2))
        for k in range(2, order + 1)
    )
    return math.log1p(excess) / (order - 1)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def renyi_share(budget: PrivacyBudget, order: int) -> float:
    """Return how much Rényi divergence at `order` keeps the budget; negative when the order cannot
    reach it.

    Canonne, Kamath and Steinke 2020 (2004.00010), proposition 12, solved for the divergence.
    """
    return (
        budget.epsilon
        - math.log1p(-1.0 / order)
        + (math.log(budget.delta) + math.log(order)) / (order - 1)
    )


class RenyiFilter:
    """Accepts events one after another, each chosen freely from earlier outputs, while the budget
    holds.

    Formal guarantee: the sequence of all accepted events' releases, however they were chosen, is
    (epsilon, delta)- differentially private for neighbours that differ by one record added or
    removed.

    Attributes:
        budget: what all accepted events together may cost.
        order: the Rényi order, fixed at construction.
        share: Rényi divergence that keeps the budget at this order, in nats.
        used: Rényi divergence of the accepted events, in nats.
    """

    def __init__(self, budget: PrivacyBudget, *, order: int) -> None:
        """Start empty.

        Raises:
            ConfigurationError: the order is no whole number from 2, or too low to reach this
                budget's delta.
        """
        self.budget = budget
        self.order = checks.count("order", order, at_least=2)
        self.share = renyi_share(budget, self.order)
        self.used = 0.0
        if self.share <= 0.0:
            raise ConfigurationError(
                f"order {order} cannot reach epsilon {budget.epsilon:g} at delta {budget.delta:g}; "
                "take a higher one, "
                "or let for_plan choose"
            )

    @classmethod
    def for_plan(cls, budget: PrivacyBudget, plan: Sequence[Event]) -> RenyiFilter:
        """Return an empty filter whose order lets the expected plan be run most often.

        The plan is a guess made before anything ran; the filter is valid for whatever is run
        instead.

        Raises:
            ConfigurationError: an empty plan, one without noise or with truncated batches, or no
                usable order.
        """
        orders = [order for order in _ORDERS if renyi_share(budget, order) > 0.0]
        if not plan or not orders:
            raise ConfigurationError(
                "a filter needs an expected plan, and a budget that some order can reach"
            )

        def runs(order: int) -> float:
            return renyi_share(budget, order) / math.fsum(
                renyi_divergence(event, order) for event in plan
            )

        if not all(event.noise_multiplier for event in plan):
            raise ConfigurationError("a filter's expected plan needs noise in every event")
        return cls(budget, order=max(orders, key=runs))

    def admits(self, event: Event) -> bool:
        """Say whether the event would be accepted now."""
        return self.used + renyi_divergence(event, self.order) <= self.share

    def charge(self, event: Event) -> None:
        """Accept the event, before it runs.

        Raises:
            BudgetExceeded: it does not fit; nothing changed, and smaller events may still fit.
        """
        cost = renyi_divergence(event, self.order)
        if self.used + cost > self.share:
            raise BudgetExceeded(
                f"an adaptive plan may use Rényi divergence {self.share:.4g} at order "
                f"{self.order}; {self.used:.4g} is "
                f"used and this event costs {cost:.4g}. Nothing was charged",
                spent=self.epsilon(),
                requested_total=self._epsilon(self.used + cost),
                allowed=self.budget.epsilon,
            )
        self.used += cost

    def epsilon(self) -> float:
        """Return epsilon of what was accepted, at the budget's delta: an upper bound, valid when
        the filter refuses.
        """
        return self._epsilon(self.used) if self.used else 0.0

    def _epsilon(self, divergence: float) -> float:
        return divergence + self.budget.epsilon - self.share
