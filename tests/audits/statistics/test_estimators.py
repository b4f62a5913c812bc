"""Estimators: valid where they promise it (coverage), sharp enough to be of use, clear about bad
input.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom, nct, norm

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics import estimators as est
from fedtree_dp import Gaussian, PoissonGaussian, epsilon_of

DELTA = 1e-5
RUNS = 400
# A bound with exactly 5% violations exceeds this count in 400 runs with probability 1e-6: the
# test's false-alarm rate.
MOST_VIOLATIONS = int(binom.isf(1e-6, RUNS, 0.05))


def draw(mu, canaries, seed):
    rng = np.random.default_rng([seed, canaries, round(100 * mu)])
    included = rng.random(canaries) < 0.5
    return est.scores(rng.normal(size=canaries) + mu * included, included), rng


def bounds(method, mu, canaries=400, runs=RUNS):
    return np.array([method(*draw(mu, canaries, seed)) for seed in range(runs)])


METHODS = {
    "one-run": lambda s, rng: est.one_run_epsilon(est.guess(s, 100, order=rng), DELTA),
    "one-run f-DP": lambda s, rng: est.one_run_fdp_epsilon(est.guess(s, 100, order=rng), DELTA),
    "clopper-pearson": lambda s, rng: est.clopper_pearson_epsilon(s, 1.5, DELTA),
    "gaussian": lambda s, rng: est.gaussian_epsilon_bound(s, DELTA),
    "fixed threshold": lambda s, rng: est.one_run_epsilon(est.guess_above(s, 1.0), DELTA),
    "hold-out": lambda s, rng: est.hold_out_epsilon(s, DELTA, order=rng),
    "dkw": lambda s, rng: est.dkw_epsilon(s, DELTA),
}


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("name", METHODS)
def test_a_95_percent_bound_is_violated_in_at_most_5_percent_of_runs(name, epsilon):
    mu = est.gaussian_mu(epsilon, DELTA) if epsilon else 0.0
    found = bounds(METHODS[name], mu)
    assert (found > epsilon).sum() <= MOST_VIOLATIONS, (found > epsilon).mean()


def test_the_coverage_test_has_power():
    """The number of guesses that looks best on the same scores, as a popular tool reports it, is
    caught.
    """

    def cheating(s, rng):
        counted = [est.guess(s, made, order=rng) for made in range(10, 400, 20)]
        return min(est.p_value(outcome, 0.0, 0.0) for outcome in counted)

    assert (bounds(cheating, 0.0) < 0.05).sum() > MOST_VIOLATIONS


@pytest.mark.parametrize(
    ("name", "least"), [("one-run", 0.2), ("one-run f-DP", 0.35), ("gaussian", 0.6)]
)
def test_bounds_are_sharp_enough(name, least):
    found = bounds(METHODS[name], est.gaussian_mu(4.0, DELTA), canaries=1000, runs=15)
    assert np.median(found) / 4.0 > least


def test_valid_thresholds_find_what_leaks():
    for name in ("hold-out", "dkw", "fixed threshold"):
        assert np.median(bounds(METHODS[name], 3.0, canaries=2000, runs=10)) > 1, name


@pytest.mark.parametrize(("count", "level"), [(50, 0.05), (400, 0.01)])
def test_the_dkw_band_is_left_as_rarely_as_massart_proves(count, level):
    margin, runs = est.dkw_margin(count, level), 4000
    drawn = np.sort(np.random.default_rng(count).random((runs, count)), axis=1)
    left = ((np.arange(1, count + 1) / count - drawn).max(axis=1) > margin).sum()
    assert (
        level * runs / 4 < left <= binom.isf(1e-6, runs, level)
    )  # valid, and not wide without need


def test_guesses_above_a_threshold_are_counted():
    s = est.scores(np.arange(40.0), np.arange(40) % 4 == 0)
    assert est.guess_above(s, 30.0) == est.Guesses(40, 10, 2)


@pytest.mark.parametrize(
    "guesses", [(1000, 100, 83), (10_000, 1000, 889), (10_000, 5000, 2946), (400, 400, 400)]
)
def test_one_run_bounds_are_the_last_values_that_the_theorem_refutes(guesses):
    outcome = est.Guesses(*guesses)
    found = est.one_run_epsilon(outcome, DELTA)
    assert est.p_value(outcome, found, DELTA) < 0.05 <= est.p_value(outcome, found + 1e-4, DELTA)
    mu = est.gaussian_mu(est.one_run_fdp_epsilon(outcome, DELTA), DELTA)
    at, above = (lambda y, m=m: norm.cdf(norm.ppf(y) - m) for m in (mu, mu + 1e-4))
    assert est.refutes(outcome, at)
    assert not est.refutes(outcome, above)


def test_the_one_run_p_value_is_the_theorem_written_out():
    m, r, v, eps = 60, 40, 33, 1.1
    q = 1 / (1 + math.exp(-eps))
    best = max((binom.cdf(v - 1, r, q) - binom.cdf(v - i - 1, r, q)) / i for i in range(1, v + 1))
    assert est.p_value(est.Guesses(m, r, v), eps, 1e-4) == pytest.approx(
        binom.sf(v - 1, r, q) + 2 * m * 1e-4 * best
    )


def test_pure_dp_reduces_to_a_binomial_interval():
    eps = est.one_run_epsilon(est.Guesses(500, 500, 400), 0.0)
    assert binom.sf(399, 500, 1 / (1 + math.exp(-eps))) == pytest.approx(0.05, abs=1e-5)


def test_the_one_run_bound_is_capped_as_known():
    """With every one of r guesses right, pure epsilon is at most about ln(r / 3) (AUDITS.md)."""
    assert est.one_run_epsilon(est.Guesses(1000, 1000, 1000), 0.0) == pytest.approx(
        math.log(1000 / 3), abs=0.02
    )


def test_the_accountants_profile_refutes_what_leaks_more_and_nothing_else():
    claim = [Gaussian(2.0)]
    inverse = est.profile_inverse(est.accountant_points(claim, np.linspace(0, 6, 61)))
    honest = [
        est.refutes(est.guess(s, 300, order=rng), inverse)
        for s, rng in (draw(0.5, 2000, i) for i in range(60))
    ]
    leaky = [
        est.refutes(est.guess(s, 300, order=rng), inverse)
        for s, rng in (draw(2.0, 2000, i) for i in range(10))
    ]
    assert sum(honest) <= binom.isf(1e-6, 60, 0.05)
    assert all(leaky)


def test_a_profile_of_points_never_exceeds_the_exact_curve():
    mu, y = 1.3, np.linspace(0.001, 0.999, 50)
    points = [(eps, est.gaussian_delta(mu, eps)) for eps in np.linspace(0, 8, 200)]
    exact = norm.cdf(norm.ppf(y) - mu)
    given = est.profile_inverse(points)(y)
    assert (given <= exact + 1e-12).all()
    assert np.abs(given - exact).max() < 1e-3


@pytest.mark.parametrize("noise", [0.6, 1.0, 3.0])
def test_gaussian_epsilon_rounds_down_and_agrees_with_the_accountant(noise):
    exact = est.gaussian_epsilon(1 / noise, DELTA)
    assert est.gaussian_delta(1 / noise, exact) >= DELTA
    assert exact <= epsilon_of([Gaussian(noise)], DELTA) <= exact + 2e-3
    assert est.gaussian_mu(exact, DELTA) == pytest.approx(1 / noise, rel=1e-6)


def test_zero_leakage_is_zero_epsilon():
    assert est.gaussian_epsilon(0.0, DELTA) == 0.0  # jax-privacy 2.0.0 said 4.2 to 7.7


@pytest.mark.parametrize("count", [1500, 5000])
def test_the_noncentral_interval_is_exact_or_below(count):
    s, _ = draw(1.0, count, 1)
    unit = math.sqrt(1 / len(s.members) + 1 / len(s.others))
    gap = s.members.mean() - s.others.mean()
    spread = ((s.members - s.members.mean()) ** 2).sum() + ((s.others - s.others.mean()) ** 2).sum()
    statistic = gap / math.sqrt(spread / (count - 2)) / unit
    assert nct.sf(statistic, count - 2, est.mu_lower_bound(s) / unit) == pytest.approx(
        0.05, abs=2e-3
    )


def test_per_step_scores_come_close_to_the_claim():
    event = PoissonGaussian(1.0, 0.1, 60)
    rng = np.random.default_rng(3)
    included = rng.random(60_000) < 0.1
    s = est.scores(rng.normal(size=60_000) + included / 1.0, included)
    claim = epsilon_of([event], DELTA)
    found = est.per_step_epsilon(s, event, DELTA)
    assert 0.9 * claim < found < claim


@pytest.mark.parametrize(
    ("values", "included", "words"),
    [
        ([1.0, math.nan] * 20, [True, False] * 20, "not finite"),
        ([1.0] * 40, [True, False] * 20, "all 40 scores are equal"),
        (np.arange(40), [True] * 40, "all 40 canaries are members"),
        (np.arange(4), [True, False] * 2, "too few"),
        (np.arange(40), [1, 0] * 20, "booleans"),
        (np.arange(40), [True, False], "one length"),
    ],
)
def test_bad_scores_are_refused_with_a_reason(values, included, words):
    with pytest.raises(ScoresError, match=words):
        est.scores(values, included)


def test_bad_settings_are_refused():
    s, rng = draw(0.0, 40, 0)
    for call in (
        lambda: est.guess(s, 41, order=rng),
        lambda: est.Guesses(10, 5, 6),
        lambda: est.one_run_epsilon(est.Guesses(10, 5, 5), 1.0),
        lambda: est.clopper_pearson_epsilon(s, math.nan, DELTA),
        lambda: est.hold_out(s, 1.0, order=rng),
        lambda: est.guess_above(s, 1e9),
        lambda: est.guess_above(s, math.nan),
        lambda: est.dkw_epsilon(s, DELTA, confidence=1.0),
        lambda: est.dkw_margin(0, 0.05),
        lambda: est.dkw_margin(10, 0.6),
        lambda: est.gaussian_epsilon(-1.0, DELTA),
        lambda: est.mu_lower_bound(
            est.Scores(np.array([0.0, 0, 1, 1]), np.array([False, False, True, True]))
        ),
    ):
        with pytest.raises(ScoresError):
            call()


def test_ties_are_broken_without_looking_at_membership():
    included = np.arange(4000) < 2000
    s = est.scores(np.r_[np.zeros(3999), 1.0], included)
    found = [est.guess(s, 1000, order=np.random.default_rng(i)).correct for i in range(20)]
    assert 480 < np.mean(found) < 520


def test_the_example_in_the_docstring():
    import doctest

    assert doctest.testmod(est) == (0, 2)
