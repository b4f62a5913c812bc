"""Shared noise: what is claimed of it, against computations that share no code with the claim."""

import math

import numpy as np
import pytest

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    PoissonGaussian,
    PrivacyBudget,
    SharedPoissonGaussian,
    epsilon_of,
    given_honest,
    statement,
)
from fedtree_dp.account import events as forms
from fedtree_dp.account.accounting import merge
from fedtree_dp.account.filters import renyi_divergence
from fedtree_dp.account.shared import (
    KERNEL,
    LEAST_DEVIATION,
    MOST_ROUNDING,
    deviation_for,
    divergence_of_sum,
    merged,
    rows_of,
    table,
)

DELTA = 1e-5
EVENT = SharedPoissonGaussian(noise_multiplier=3.0, sample_rate=1.0, steps=10, honest=4)


def discrete(deviation: float, reach: int) -> np.ndarray:
    """Probabilities of the discrete Gaussian on -reach .. reach."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2.0 * deviation**2))
    return weights / weights.sum()


# --- the event ------------------------------------------------------------------------------------


def test_nothing_assumes_honest_others_unless_it_is_told_to():
    own = PoissonGaussian(3.0, 1.0, 10)
    assert epsilon_of([EVENT], DELTA) == epsilon_of([own], DELTA)
    assert merge([EVENT]) == merge([own])
    assert renyi_divergence(EVENT, 8) == renyi_divergence(own, 8)
    assert epsilon_of(given_honest([EVENT]), DELTA) == epsilon_of(
        [PoissonGaussian(6, 1, 10)], DELTA
    )


def test_more_honest_members_than_the_event_counts_on_are_not_believed():
    assert EVENT.together(100) == EVENT.together(4) == EVENT.together()
    assert EVENT.together(1) == EVENT.own
    assert given_honest([EVENT, Gaussian(2.0)], 9) == (EVENT.together(), Gaussian(2.0))


def test_canonical_form_and_ranges():
    told = EVENT.to_dict()
    assert told == {
        "mechanism": "shared_poisson_gaussian",
        "noise_multiplier": 3.0,
        "sample_rate": 1.0,
        "steps": 10,
        "honest": 4,
    }
    assert forms.from_dict(told) == EVENT
    for field, value in (("honest", 0), ("honest", 65_536), ("honest", 2.5), ("steps", 0)):
        with pytest.raises(ConfigurationError, match=field):
            forms.from_dict(told | {field: value})


def test_reports_keep_what_shared_steps_count_on():
    one = SharedPoissonGaussian(3.0, 1.0, 1, 4)
    assert merged([one] * 10 + [Gaussian(2.0)]) == (Gaussian(2.0), EVENT)
    said = statement([one] * 10, DELTA, prv=False)
    assert said.releases == (EVENT.to_dict(),)
    assert said.epsilon == epsilon_of([PoissonGaussian(6.0, 1.0, 10)], DELTA)
    assert any("at least 3 other clients" in text for text in said.assumptions)
    others = said.to_dict()["honest_others"]
    assert [row["others"] for row in others] == [3, 2, 1, 0]
    assert others[0]["epsilon"] == said.epsilon
    assert others[-1]["epsilon"] == epsilon_of([EVENT], DELTA)


def test_a_statement_of_own_noise_is_what_it_was():
    said = statement([PoissonGaussian(3.0, 1.0, 10)], DELTA, prv=False)
    assert "honest_others" not in said.to_dict()
    assert len(said.assumptions) == 4


# --- an independent accountant --------------------------------------------------------------------


def test_the_table_is_what_dp_accounting_says_of_full_batches():
    """Exact for a Gaussian (Balle and Wang 2018), composed by hand, against every row."""
    from dp_accounting import dp_event, pld
    from scipy.stats import norm

    rows = table([EVENT], DELTA)
    assert [row.others for row in rows] == [3, 2, 1, 0]
    for row in rows:
        sigma = 3.0 * math.sqrt(row.others + 1) / math.sqrt(10)
        accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
        accountant.compose(dp_event.GaussianDpEvent(sigma))
        assert row.epsilon == pytest.approx(accountant.get_epsilon(DELTA), abs=2e-3)
        a, b = 1 / (2 * sigma), row.epsilon * sigma
        exact = norm.cdf(a - b) - math.exp(row.epsilon) * norm.cdf(-a - b)
        assert exact <= DELTA * (1 + 1e-9)  # never understated
        assert exact > 0.95 * DELTA


def test_a_table_of_many_stays_short_and_has_both_ends():
    assert rows_of(12) == tuple(range(12, 0, -1))
    many = rows_of(65_535)
    assert (many[0], many[-5:]) == (65_535, (5, 4, 3, 2, 1))
    assert len(many) < 20
    rows = table([SharedPoissonGaussian(3.0, 1.0, 10, 40)], DELTA)
    assert [row.others + 1 for row in rows] == list(rows_of(40))
    found = [row.epsilon for row in rows]
    assert found == sorted(found)


def test_subsampled_shared_steps_agree_with_dp_accounting():
    from dp_accounting import dp_event, pld

    event = SharedPoissonGaussian(1.0, 0.2, 4, 2)
    for row in table([event], DELTA):
        accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
        noise = dp_event.GaussianDpEvent(math.sqrt(row.others + 1))
        accountant.compose(dp_event.PoissonSampledDpEvent(0.2, noise), 4)
        assert row.epsilon == pytest.approx(accountant.get_epsilon(DELTA), abs=5e-3)


# --- a sum of discrete Gaussians ------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.5, 0.7, 0.85, 1.0])
@pytest.mark.parametrize("members", [2, 3, 5])
def test_the_bound_on_a_sum_holds_where_it_can_be_seen(deviation, members):
    """Exact convolutions on grids so coarse that the gap is no rounding error."""
    reach = math.ceil(6 * deviation * math.sqrt(members))
    one, total = discrete(deviation, reach), np.ones(1)
    for _ in range(members):
        total = np.convolve(total, one)
    middle = len(total) // 2
    window = slice(middle - reach // 2, middle + reach // 2 + 1)
    single = discrete(deviation * math.sqrt(members), middle)
    gap = np.abs(np.log(total[window] / single[window])).max()
    assert gap <= divergence_of_sum(deviation, members)
    assert gap > 1e-3 * divergence_of_sum(deviation, members) or gap < 1e-12


def test_the_bound_vanishes_on_the_grids_that_are_allowed():
    assert divergence_of_sum(LEAST_DEVIATION, 65_535) == 0.0
    assert 4 * math.exp(-2 * math.pi**2 * KERNEL**2) * 1e9 == 0.0


def test_a_continuous_gaussian_through_a_discrete_kernel_is_the_discrete_gaussian():
    """SPEC 10: so whatever the accountant says of the continuous one holds. With a small kernel the
    gap can be seen, and its bound 4 exp(-2 pi^2 s^2) holds.
    """
    deviation, kernel = 3.0, 0.7
    inner = math.sqrt(deviation**2 - kernel**2)
    grid = np.linspace(-14 * inner, 14 * inner, 40_001)
    weight = np.exp(-(grid**2) / (2 * inner**2))
    weight /= weight.sum()
    points = np.arange(-40, 41)
    norm = sum(np.exp(-((z - grid) ** 2) / (2 * kernel**2)) for z in points)
    mixed = np.array(
        [(weight * np.exp(-((z - grid) ** 2) / (2 * kernel**2)) / norm).sum() for z in points]
    )
    exact, inside = discrete(deviation, 40), np.abs(points) <= 12
    gap = np.abs(np.log(mixed / exact))[inside].max()
    assert gap <= 4 * math.exp(-2 * math.pi**2 * kernel**2)
    assert gap > 1e-9


def test_the_sum_of_two_members_keeps_its_epsilon_exactly():
    """Hockey-stick divergence of shifted sums of discrete Gaussians, summed term by term."""
    sensitivity, multiplier = 400.0, 1.5
    one = deviation_for(multiplier, sensitivity, values=1)
    reach = math.ceil(9 * one.deviation)
    total = np.convolve(discrete(one.deviation, reach), discrete(one.deviation, reach))
    shift = round(sensitivity)
    claim = epsilon_of([SharedPoissonGaussian(multiplier, 1.0, 1, 2).together()], DELTA)
    p, q = total[shift:], total[:-shift]
    delta = np.maximum(p - math.exp(claim) * q, 0.0).sum()
    assert delta <= DELTA
    assert delta > 0.9 * DELTA


# --- the grid -------------------------------------------------------------------------------------


def test_rounding_and_the_kernel_are_paid_for():
    found = deviation_for(2.0, 10_000.0, values=10_000)
    assert found.margin == pytest.approx(0.01)
    assert found.deviation >= math.hypot(2.0 * 10_000 * 1.01, KERNEL)
    assert found.deviation <= 1.000001 * math.hypot(2.0 * 10_000 * 1.01, KERNEL)


def test_rounded_vectors_are_as_close_as_the_margin_says():
    rng = np.random.default_rng(5)
    for _ in range(200):
        near = rng.normal(size=64) * 5
        step = rng.normal(size=64)
        far = near + 20.0 * step / np.linalg.norm(step)
        moved = np.linalg.norm(np.rint(near) - np.rint(far))
        assert moved <= 20.0 + math.sqrt(64)


@pytest.mark.parametrize(
    ("noise", "sensitivity", "values"),
    [(1.0, 100.0, 1), (10.0, 1000.0, 10_001 * 100), (1.0, LEAST_DEVIATION / 2, 1)],
)
def test_a_grid_that_is_too_coarse_is_refused(noise, sensitivity, values):
    with pytest.raises(ConfigurationError, match="too coarse a grid"):
        deviation_for(noise, sensitivity, values)
    assert MOST_ROUNDING < 1


# --- budget and ledger ----------------------------------------------------------------------------


def test_own_epsilon_is_part_of_a_budget():
    budget = PrivacyBudget(epsilon=8, delta=DELTA, own_epsilon=30)
    assert budget.to_dict() == {"epsilon": 8.0, "delta": DELTA, "own_epsilon": 30.0}
    assert budget.alone == PrivacyBudget(epsilon=30, delta=DELTA)
    assert PrivacyBudget(8, DELTA).alone == PrivacyBudget(8, DELTA)
    assert repr(budget) == "PrivacyBudget(epsilon=8.0, delta=1e-05, own_epsilon=30.0)"
    for own in (7.9, 0, math.inf, "30", True):
        with pytest.raises(ConfigurationError, match="own_epsilon"):
            PrivacyBudget(8, DELTA, own_epsilon=own)


def charge(ledger, event):
    ledger.charge(event, job="run", purpose="round")


def test_a_ledger_without_own_epsilon_counts_on_nobody(tmp_path):
    one = SharedPoissonGaussian(2.0, 1.0, 1, 4)
    budget = PrivacyBudget(epsilon=1.5, delta=DELTA)
    with Ledger.open(tmp_path / "ledger", dataset="a", budget=budget) as ledger:
        assert epsilon_of(given_honest([one]), DELTA) < 1.5 < epsilon_of([one], DELTA)
        assert not ledger.affords(one)
        with pytest.raises(BudgetExceeded, match=r"own noise alone .*Nothing was charged.*own_eps"):
            charge(ledger, one)
        assert not ledger.events()


def test_a_ledger_keeps_both_promises_over_all_jobs(tmp_path):
    one = SharedPoissonGaussian(4.0, 1.0, 1, 4)
    both = PrivacyBudget(epsilon=100, delta=DELTA, own_epsilon=100)
    with Ledger.open(tmp_path / "wide", dataset="a", budget=both) as ledger:
        charge(ledger, one)
        charge(ledger, Gaussian(4.0))
        assert ledger.spent() == epsilon_of([Gaussian(8.0), Gaussian(4.0)], DELTA)
        assert ledger.own_spent() == epsilon_of([Gaussian(4.0), Gaussian(4.0)], DELTA)
        (reading,) = ledger.odometer()
        assert reading.total == ledger.spent()

    few = SharedPoissonGaussian(1.5, 1.0, 1, 4)

    def allowed(budget, name):
        with Ledger.open(tmp_path / name, dataset="a", budget=budget) as ledger:
            count = 0
            while ledger.affords(few):
                charge(ledger, few)
                count += 1
            with pytest.raises(BudgetExceeded):
                charge(ledger, few)
            return count

    by_epsilon = allowed(PrivacyBudget(2, DELTA, own_epsilon=90), "by-epsilon")
    by_own = allowed(PrivacyBudget(2, DELTA, own_epsilon=3.5), "by-own")
    assert together(few, by_epsilon) <= 2 < together(few, by_epsilon + 1)
    assert alone(few, by_own) <= 3.5 < alone(few, by_own + 1)
    assert 1 <= by_own < by_epsilon


def together(event, count):
    return epsilon_of(given_honest([event] * count), DELTA)


def alone(event, count):
    return epsilon_of([event] * count, DELTA)


def test_a_budget_with_another_own_epsilon_is_another_budget(tmp_path):
    budget = PrivacyBudget(8, DELTA, own_epsilon=30)
    with Ledger.open(tmp_path / "ledger", dataset="a", budget=budget):
        pass
    with Ledger.open(tmp_path / "ledger", dataset="a", budget=budget) as ledger:
        assert ledger.budget.own_epsilon == 30.0
    for other in (PrivacyBudget(8, DELTA), PrivacyBudget(8, DELTA, own_epsilon=31)):
        with pytest.raises(LedgerError, match="with own_epsilon 30, not 8"):
            Ledger.open(tmp_path / "ledger", dataset="a", budget=other)
