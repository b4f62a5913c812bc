"""Epsilon against dp_accounting's own accountant, PRIVACY.md's measured figures and closed
forms.
"""

import math
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from scipy.stats import norm

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    PoissonGaussian,
    PrivacyBudget,
    calibrate,
)
from fedtree_dp.account.accounting import epsilon_of, merge, upper_bound
from fedtree_dp.account.events import TruncatedPoissonGaussian

MEASURED = PoissonGaussian(noise_multiplier=1, sample_rate=0.01, steps=3000)


def oracle(events, delta):
    """dp_accounting's PLD accountant, fed event by event, without our merging and caching."""
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    for event in events:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if isinstance(event, PoissonGaussian):
            accountant.compose(
                dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian), event.steps
            )
        else:
            accountant.compose(gaussian)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(0.6, 0.01, 30), (1.0, 0.3, 1), (5.0, 1, 9)])
def test_the_quick_bound_is_one(noise, rate, steps):
    events = [PoissonGaussian(noise, rate, steps), Gaussian(3.0)]
    for delta in (1e-3, 1e-6):
        assert epsilon_of(events, delta) <= upper_bound(events, delta) < math.inf


def test_the_quick_bound_accepts_nothing_that_it_does_not_know():
    cut = TruncatedPoissonGaussian(noise_multiplier=5, sample_rate=0.1, steps=1, records=90, cap=12)
    assert upper_bound([cut], 1e-5) == math.inf
    assert upper_bound([Gaussian(1e-4)], 1e-5) == math.inf
    assert upper_bound([], 1e-5) == 0.0


def test_measured_figures():
    assert epsilon_of([MEASURED], 1e-5) == pytest.approx(3.192, abs=6e-4)
    assert epsilon_of([MEASURED], 1e-5, accountant="rdp") == pytest.approx(3.511, abs=6e-4)
    assert epsilon_of([MEASURED], 1e-5, accountant="prv") == pytest.approx(3.203, abs=6e-4)


@pytest.mark.parametrize(
    "events",
    [
        [PoissonGaussian(2.2, 0.2, 10)] * 3 + [Gaussian(20.0)],
        [PoissonGaussian(1.5, 1.0, 2), Gaussian(5.0), Gaussian(5.0), PoissonGaussian(2.0, 0.1, 50)],
        [Gaussian(3.0), Gaussian(4.0), Gaussian(9.0)],
    ],
)
def test_equals_dp_accounting(events):
    assert epsilon_of(events, 1e-5) == pytest.approx(oracle(events, 1e-5), abs=1e-3)


def test_gaussian_closed_form():
    """Balle and Wang 2018, theorem 8: delta of the Gaussian mechanism at epsilon."""
    sigma = 2.0
    epsilon = epsilon_of([Gaussian(sigma)], 1e-5)

    def delta(eps):
        return norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * norm.cdf(
            -0.5 / sigma - eps * sigma
        )

    assert delta(epsilon) <= 1e-5 < delta(epsilon - 1e-3)


def test_accountants_agree_on_mixed_plans():
    plan = [PoissonGaussian(1.1, 0.2, 30), Gaussian(20.0)]
    pld, rdp, prv = (epsilon_of(plan, 1e-5, accountant=name) for name in ("pld", "rdp", "prv"))
    assert pld < prv < pld + 0.02
    assert pld < rdp < 1.25 * pld
    assert pld <= epsilon_of(plan, 1e-5, discretization=1e-2) < pld + 0.1


CUT = TruncatedPoissonGaussian(
    noise_multiplier=1.5, sample_rate=0.01, steps=200, records=10_000, cap=160
)


def test_truncated_batches():
    """A cap at six standard deviations costs nothing, one at 2.8 half as much again; dp_accounting
    agrees.
    """
    import dp_accounting
    from dp_accounting import pld

    def cost(event):
        return epsilon_of([event], 1e-5, discretization=1e-3)

    whole = cost(PoissonGaussian(1.5, 0.01, 200))
    assert whole <= cost(CUT) < whole + 1e-3
    tight = replace(CUT, cap=128)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
    accountant.compose(
        dp_accounting.TruncatedSubsampledGaussianDpEvent(10_000, 0.01, 128, 1.5), 200
    )
    assert cost(tight) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-9)
    assert cost(tight) > 1.5 * whole
    assert merge([replace(CUT, cap=10_000)]) == (PoissonGaussian(1.5, 0.01, 200),)
    assert merge([CUT, tight, CUT]) == (tight, replace(CUT, steps=400))
    assert epsilon_of([replace(CUT, noise_multiplier=0.01)], 1e-5) == math.inf
    with pytest.raises(ConfigurationError, match="only the PLD accountant"):
        epsilon_of([CUT], 1e-5, accountant="rdp")
    budget = PrivacyBudget(epsilon=0.7, delta=1e-5)
    (event,) = calibrate([tight], budget, verify=None)
    assert 0.69 < cost(event) <= 0.7


def test_special_cases():
    assert epsilon_of([], 1e-5) == 0.0
    assert epsilon_of([Gaussian(0.0)], 1e-5) == math.inf
    assert epsilon_of([Gaussian(0.0), Gaussian(2.0)], 1e-5) == math.inf
    assert epsilon_of([PoissonGaussian(0.0, 0.1, 1)], 1e-5, accountant="rdp") == math.inf
    assert epsilon_of([Gaussian(1e15)], 1e-5) == 0.0
    assert (
        1e5 < epsilon_of([PoissonGaussian(0.3, 0.2, 10**6)], 1e-5) < math.inf
    )  # RDP's bound, at once


def test_merging_does_not_depend_on_order_or_split():
    parts = (
        [PoissonGaussian(1.1, 0.2, 3)] * 4
        + [Gaussian(7.0)] * 3
        + [PoissonGaussian(1.3, 0.2, 5), Gaussian(2.0)]
    )
    shuffled = random.Random(3).sample(parts, len(parts))
    assert merge(parts) == merge(shuffled)
    assert merge([PoissonGaussian(1.1, 0.2, 12)]) == merge(parts[:4])
    assert merge([PoissonGaussian(6.0, 1.0, 4)]) == (Gaussian(3.0),)
    assert merge([Gaussian(1e300)] * 4) == (Gaussian(5e299),)


@pytest.mark.parametrize("delta", [0, 1, math.nan, 1e-13, -1])
def test_refuses_delta(delta):
    with pytest.raises(ConfigurationError, match="delta"):
        epsilon_of([MEASURED], delta)


def test_refuses_options():
    with pytest.raises(ConfigurationError, match="did you mean 'prv'"):
        epsilon_of([MEASURED], 1e-5, accountant="prc")
    with pytest.raises(ConfigurationError, match="discretization"):
        epsilon_of([MEASURED], 1e-5, discretization=0)


def test_calibrates_to_the_measured_figure():
    (event,) = calibrate([MEASURED], PrivacyBudget(epsilon=3, delta=1e-5))
    assert event.noise_multiplier == pytest.approx(1.0333, abs=1.5e-3)
    assert 2.997 <= epsilon_of([event], 1e-5) <= 3.0


@pytest.mark.parametrize(
    ("epsilon", "template", "spent"),
    [
        (4, [PoissonGaussian(1, 0.2, 30), Gaussian(20)], []),
        (1, [PoissonGaussian(1.28, 0.2, 30), PoissonGaussian(1.6, 0.2, 10)], []),
        (3, [PoissonGaussian(1, 0.1, 30)], [PoissonGaussian(3, 0.2, 30)]),
        (0.01, [PoissonGaussian(3, 0.03, 24)], []),
        (0.2, [PoissonGaussian(1, 0.0005, 30_000)], []),  # here only the fine grid is tight
    ],
)
def test_calibration_is_never_above_and_hardly_below(epsilon, template, spent):
    budget = PrivacyBudget(epsilon=epsilon, delta=1e-5)
    plan = calibrate(template, budget, spent=spent)
    assert 0.998 * epsilon <= epsilon_of([*spent, *plan], 1e-5) <= epsilon
    factors = [
        after.noise_multiplier / before.noise_multiplier
        for after, before in zip(plan, template, strict=True)
    ]
    assert max(factors) == pytest.approx(min(factors), rel=1e-12)


def test_calibration_for_tables_stops_after_the_search():
    budget = PrivacyBudget(epsilon=2, delta=1e-5)
    (event,) = calibrate([PoissonGaussian(1, 0.05, 100)], budget, verify=None)
    assert 1.99 <= epsilon_of([event], 1e-5) <= 2


def test_calibration_refuses_what_cannot_be():
    budget = PrivacyBudget(epsilon=1, delta=1e-5)
    with pytest.raises(BudgetExceeded, match="0 is left, too little") as caught:
        calibrate([MEASURED], budget, spent=[MEASURED])
    assert caught.value.spent == pytest.approx(3.192, abs=1e-3)
    assert caught.value.allowed == 1
    for template in ([], [Gaussian(0)], [MEASURED, Gaussian(0)]):
        with pytest.raises(ConfigurationError, match="at least one event"):
            calibrate(template, budget)
    with pytest.raises(ConfigurationError, match="verify"):
        calibrate([MEASURED], budget, verify=-1.0)


def test_calibration_gives_up_beyond_its_bounds(monkeypatch):
    from fedtree_dp.account import calibration

    monkeypatch.setattr(calibration, "_WIDEST", 0.01)
    with pytest.raises(BudgetExceeded, match="no noise keeps this plan within it"):
        calibrate([PoissonGaussian(7, 0.03, 11)], PrivacyBudget(epsilon=0.5, delta=1e-5))


def test_importing_the_package_is_fast():
    """dp_accounting, scipy, torch and Opacus take seconds; they are loaded at the first use."""
    slow = ("torch", "scipy", "dp_accounting", "absl")
    code = f"import sys, fedtree_dp; sys.exit(any(m in sys.modules for m in {slow}))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
