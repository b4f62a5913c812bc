"""The Rényi filter: divergences against dp_accounting, never above the budget, unaffected by the
order of events.
"""

import math

import pytest

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    PoissonGaussian,
    PrivacyBudget,
    epsilon_of,
)
from fedtree_dp.account.events import TruncatedPoissonGaussian
from fedtree_dp.account.filters import RenyiFilter, renyi_divergence, renyi_share

BUDGET = PrivacyBudget(epsilon=3, delta=1e-5)


@pytest.mark.parametrize(
    "event",
    [
        Gaussian(2.0),
        PoissonGaussian(1.0, 0.01, 100),
        PoissonGaussian(0.5, 0.3, 7),
        PoissonGaussian(40, 1e-4, 1),
    ],
)
@pytest.mark.parametrize("order", [2, 3, 17, 64, 512])
def test_equals_dp_accounting_at_one_order(event, order):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

    oracle = rdp.RdpAccountant([order])
    rate, steps = (
        (event.sample_rate, event.steps) if isinstance(event, PoissonGaussian) else (1.0, 1)
    )
    oracle.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(event.noise_multiplier)), steps)
    assert renyi_divergence(event, order) == pytest.approx(oracle._rdp[0], rel=1e-6, abs=1e-13)


def test_share_is_dp_accountings_conversion():
    from dp_accounting.rdp import rdp_privacy_accountant

    for order in (8, 20, 64):
        share = renyi_share(BUDGET, order)
        assert rdp_privacy_accountant.compute_epsilon([order], [share], BUDGET.delta)[
            0
        ] == pytest.approx(3.0, abs=1e-9)


def test_adaptive_run_stays_within_the_budget():
    """Noise is lowered whenever a round 'looks bad', until the filter refuses; PLD of what ran is
    inside.
    """
    step, bold = PoissonGaussian(1.2, 0.02, 100), PoissonGaussian(1.1, 0.02, 100)
    run = RenyiFilter.for_plan(BUDGET, [step] * 6)
    accepted = []
    while run.admits(event := step if len(accepted) % 3 else bold):
        run.charge(event)
        accepted.append(event)
    with pytest.raises(BudgetExceeded, match="at order") as refused:
        run.charge(event)
    assert len(accepted) >= 3
    assert epsilon_of(accepted, 1e-5) <= run.epsilon() <= 3 < refused.value.requested_total
    assert refused.value.spent == run.epsilon()
    assert run.admits(Gaussian(1000.0))
    run.charge(Gaussian(1000.0))
    assert not run.admits(step)


def test_the_plans_order_is_a_good_one():
    """A fixed order costs an adaptive plan little beyond the RDP of the same plan fixed
    beforehand.
    """
    plan = [PoissonGaussian(1.0, 0.01, 1000)]
    budget = PrivacyBudget(epsilon_of(plan, 1e-5, accountant="rdp") * 1.02, 1e-5)
    RenyiFilter.for_plan(budget, plan).charge(plan[0])


def test_refused():
    for plan in ([], [Gaussian(0)]):
        with pytest.raises(ConfigurationError, match="plan"):
            RenyiFilter.for_plan(BUDGET, plan)
    with pytest.raises(ConfigurationError, match="order 2 cannot reach"):
        RenyiFilter(BUDGET, order=2)
    with pytest.raises(ConfigurationError, match="order must be a whole number"):
        RenyiFilter(BUDGET, order=1)
    with pytest.raises(ConfigurationError, match="truncated"):
        renyi_divergence(TruncatedPoissonGaussian(1, 0.1, 1, 100, 20), 4)
    assert renyi_divergence(Gaussian(0), 4) == math.inf
    assert RenyiFilter(BUDGET, order=10).epsilon() == 0.0
