"""The planner: PRIVACY.md's signal ratios, monotone rows, refused input."""

import math

import pytest

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    PoissonGaussian,
    PrivacyBudget,
    calibrate,
    epsilon_of,
)
from fedtree_dp.account import calibration
from fedtree_dp.account.planner import Plan, plan_table, price, signal_ratio, solve, sweep

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)


def test_measured_signal_ratios():
    """MiniLM with 36,864 values: 64 of 2,000 records drown in noise, all 2,000 in 100 steps
    do not.
    """
    small = price(Plan(2000, 64 / 2000, rounds=24, parameters=36_864), BUDGET)
    large = price(Plan(2000, 1.0, rounds=100, parameters=36_864), BUDGET)
    assert small.noise_multiplier == pytest.approx(0.51, abs=0.01)
    assert small.signal_ratio == pytest.approx(1.5, abs=0.05)
    assert large.noise_multiplier == pytest.approx(6.0, abs=0.02)
    assert large.signal_ratio == pytest.approx(0.6, abs=0.03)


def test_table_rows_are_sound_and_ordered():
    plan = Plan(2000, 0.2, rounds=10, steps_per_round=3, warm_up_steps=6, parameters=900)
    rows = plan_table(plan, PrivacyBudget(3, 1e-5), epsilons=(0.5, 1, 3))
    assert len({(row.plan, row.epsilon) for row in rows}) == len(rows) == 7
    asked = rows[0]
    assert (asked.plan.steps, asked.plan.batch, asked.delta) == (36, 400, 1e-5)
    for row in rows:
        assert (
            epsilon_of(row.plan.events(row.noise_multiplier), 1e-5, discretization=1e-3)
            == row.epsilon
            <= 3
        )
        assert row.signal_ratio == signal_ratio(row.noise_multiplier, 900, row.plan.batch)
    by_epsilon = sorted(
        (row for row in rows if row.plan == asked.plan), key=lambda row: row.epsilon
    )
    assert [round(row.epsilon) for row in by_epsilon] == [0, 1, 3]
    assert (
        by_epsilon[0].noise_multiplier
        > by_epsilon[1].noise_multiplier
        > by_epsilon[2].noise_multiplier
    )
    halved, doubled = (next(row for row in rows if row.plan.rounds == rounds) for rounds in (5, 20))
    assert halved.noise_multiplier < asked.noise_multiplier < doubled.noise_multiplier


def test_releases_and_spending_cost_noise():
    plan = Plan(2000, 0.2, rounds=10)
    budget = PrivacyBudget(epsilon=2, delta=1e-5)
    alone = price(plan, budget)
    with_release = price(Plan(2000, 0.2, rounds=10, releases=[Gaussian(5.0)]), budget)
    later = price(plan, budget, spent=[Gaussian(3.0)], verify=1e-4)
    assert alone.noise_multiplier < with_release.noise_multiplier < later.noise_multiplier


def test_no_room_is_a_row_not_an_error():
    row = price(Plan(100, 0.5, rounds=1), BUDGET, spent=[Gaussian(0.1)])
    assert row.noise_multiplier == row.signal_ratio == math.inf
    assert row.epsilon > 8


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sample_rate": 2.0}, "sample_rate"),
        ({"rounds": 0}, "rounds"),
        ({"warm_up_steps": -1}, "warm_up_steps"),
        ({"records": 200_000}, "delta 1e-05 is not below 1/200000"),
    ],
)
def test_refused(changes, text):
    arguments = {"records": 2000, "rounds": 3, "sample_rate": 0.01} | changes
    with pytest.raises(ConfigurationError, match=text):
        plan_table(Plan(**arguments), BUDGET)


def test_another_epsilon_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="epsilon"):
        plan_table(Plan(2000, 0.01, rounds=3), BUDGET, epsilons=[-1])


def test_solves_for_each_unknown():
    budget, plan = (
        PrivacyBudget(epsilon=2, delta=1e-5),
        Plan(2000, 0.1, rounds=10, steps_per_round=2),
    )
    noise = solve("noise", plan, budget).noise_multiplier
    assert 1.99 <= solve("epsilon", plan, budget, noise_multiplier=noise).epsilon <= 2
    rounds = solve("rounds", plan, budget, noise_multiplier=noise * 1.001)
    assert rounds.plan.rounds == 10
    assert (
        rounds.epsilon
        <= 2
        < solve("epsilon", Plan(2000, 0.1, 11, 2), budget, noise_multiplier=noise * 1.001).epsilon
    )
    batch = solve("batch", plan, budget, noise_multiplier=noise * 1.001)
    assert batch.plan.batch == pytest.approx(200)
    everything = solve("batch", plan, budget, noise_multiplier=1000)
    assert everything.plan.batch == 2000


def test_spending_reduces_what_is_solved_for():
    budget, plan = PrivacyBudget(epsilon=2, delta=1e-5), Plan(2000, 0.1, rounds=1)
    free = solve("rounds", plan, budget, noise_multiplier=3).plan.rounds
    assert (
        free
        > solve("rounds", plan, budget, noise_multiplier=3, spent=[Gaussian(4)]).plan.rounds
        >= 1
    )
    with pytest.raises(BudgetExceeded, match="rounds 1 already reaches"):
        solve("rounds", plan, budget, noise_multiplier=3, spent=[Gaussian(1)])


def test_solve_refuses():
    plan = Plan(2000, 0.1, rounds=1)
    with pytest.raises(ConfigurationError, match="known: noise, epsilon, rounds, batch"):
        solve("delta", plan, BUDGET)
    for unknown, noise in (("noise", 1.0), ("rounds", None)):
        with pytest.raises(ConfigurationError, match="exactly when"):
            solve(unknown, plan, BUDGET, noise_multiplier=noise)
    with pytest.raises(ConfigurationError, match="above 0"):
        solve("rounds", plan, BUDGET, noise_multiplier=0)


def test_stages_are_scaled_with_the_rounds():
    head = PoissonGaussian(1.25, 0.1, 40)
    row = price(Plan(2000, 0.2, rounds=10, stages=[head]), BUDGET)
    expected = calibrate([PoissonGaussian(1.0, 0.2, 10), head], BUDGET, verify=None)
    assert row.noise_multiplier == expected[0].noise_multiplier
    assert row.plan.events(row.noise_multiplier) == expected
    assert row.noise_multiplier > price(Plan(2000, 0.2, rounds=10), BUDGET).noise_multiplier
    rounds = solve(
        "rounds", row.plan, BUDGET, noise_multiplier=row.noise_multiplier * 1.001
    ).plan.rounds
    assert rounds == 10


def test_a_sweep_changes_one_number_and_prices_it():
    plan, sigma = Plan(1000, 0.4, rounds=2, releases=[Gaussian(9.0)]), 2.0
    rows = sweep(plan, BUDGET, noise_multiplier=sigma)
    assert [row.plan.rounds for row in rows["rounds"]] == [1, 2, 4, 8]
    assert [row.plan.batch for row in rows["batch"]] == [100, 200, 400, 800, 1000]
    assert [row.noise_multiplier for row in rows["noise"]] == [0.5, 1, 2, 4, 8]
    for axis, falling in (("rounds", False), ("batch", False), ("noise", True)):
        found = [row.epsilon for row in rows[axis]]
        assert found == sorted(found, reverse=falling)
        assert len(set(found)) == len(found)
    for row in (row for found in rows.values() for row in found):
        assert row.epsilon == epsilon_of(
            row.plan.events(row.noise_multiplier), 1e-5, discretization=1e-3
        )


def test_a_sweep_refuses():
    plan = Plan(1000, 0.4, rounds=2)
    with pytest.raises(ConfigurationError, match="factors"):
        sweep(plan, BUDGET, noise_multiplier=1.0, factors=[0])
    with pytest.raises(ConfigurationError, match="noise_multiplier"):
        sweep(plan, BUDGET, noise_multiplier=0.0)
    with pytest.raises(ConfigurationError, match="not below 1/200000"):
        sweep(Plan(200_000, 0.4, rounds=2), BUDGET, noise_multiplier=1.0)


def test_only_the_grid_of_statements_may_refuse():
    """Half a million steps: the search's grid makes more than 8 of what is 7.998."""
    budget = PrivacyBudget(8, 1e-5)
    (event,) = calibrate([PoissonGaussian(1, 0.001, 500_000)], budget)
    exact = epsilon_of([event], 1e-5)
    assert exact <= 8 < epsilon_of([event], 1e-5, discretization=1e-3)
    plan = Plan(records=1000, sample_rate=0.001, rounds=1, steps_per_round=500_000)
    for unknown in ("epsilon", "rounds"):
        row = solve(unknown, plan, budget, noise_multiplier=event.noise_multiplier)
        assert (row.epsilon, row.plan.rounds) == (exact, 1)
    with pytest.raises(BudgetExceeded, match=r"already reaches epsilon 8\.0"):
        solve("rounds", plan, budget, noise_multiplier=0.999 * event.noise_multiplier)


@pytest.mark.parametrize("epsilon", [150.0, 1000.0])
def test_a_large_budget_is_planned_on_a_grid_of_its_size(monkeypatch, epsilon):
    """On the grid of small ones an epsilon of 1,000 takes a minute; looser ones only overstate."""
    grids = []

    def watched(events, delta, *, discretization):
        grids.append(discretization)
        return epsilon_of(events, delta, discretization=discretization)

    monkeypatch.setattr(calibration, "epsilon_of", watched)
    plan = Plan(records=60, sample_rate=0.5, rounds=1)
    row = price(plan, PrivacyBudget(epsilon, 1.1e-3))
    assert 0.7 * epsilon < row.epsilon <= epsilon
    assert min(grids) >= 1e-4 * epsilon
    assert len(grids) < 25
