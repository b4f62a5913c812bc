"""The discrete Gaussian: its exact probabilities, coins decided beyond float64, and OpenDP as a
second opinion.
"""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource, discrete_gaussian
from fedtree_dp.randomness import discrete as module

KEY = bytes(range(32))
SAMPLES = 100_000
# the false-alarm rate of every test below; keys are fixed, and 0.7 and 1.3 times sigma must be
# rejected
ALARM = 1e-9


def probabilities(sigma, reach):
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2.0 * sigma**2))
    return weights / weights.sum()


def fit(draws, sigma):
    """p-value of Pearson's test against the exact probabilities, tails pooled where fewer than 10
    are expected.
    """
    reach = int(12 * sigma) + 3
    p = probabilities(sigma, reach)
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    expected = p * len(draws)
    common = expected >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], max(expected[~common].sum(), 1e-3))
    return stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.0, 3.7, 25.0])
def test_exact_probabilities_and_power(sigma):
    draws = discrete_gaussian(SAMPLES, sigma, NoiseSource(KEY))
    assert draws.dtype == np.int64
    assert fit(draws, sigma) > ALARM
    for wrong in (0.7, 1.3):
        assert fit(draws, wrong * sigma) < 1e-20


@pytest.mark.parametrize("sigma", [1e4, 2.0**26, 2.0**40])
def test_wide_noise_is_a_gaussian_and_its_low_bits_are_uniform(sigma):
    draws = discrete_gaussian(SAMPLES, sigma, NoiseSource(KEY))
    assert stats.kstest(draws / sigma, "norm").pvalue > ALARM
    assert stats.kstest(draws / (0.7 * sigma), "norm").pvalue < 1e-20
    assert stats.chisquare(np.bincount(draws & 15, minlength=16)).pvalue > ALARM


def test_independent_of_its_order():
    draws = discrete_gaussian(SAMPLES, 5.0, NoiseSource(KEY)).astype(float)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) * math.sqrt(SAMPLES) < 6.2


def test_coins_that_float64_cannot_decide(monkeypatch):
    """With every coin in doubt, all are decided exactly; the distribution must be the same."""
    monkeypatch.setattr(module, "_DOUBT", 2.0)
    draws = discrete_gaussian(2000, 2.5, NoiseSource(KEY))
    assert fit(draws, 2.5) > 1e-6
    monkeypatch.undo()
    assert np.array_equal(draws, discrete_gaussian(2000, 2.5, NoiseSource(KEY)))


def test_a_coin_is_decided_by_as_many_bits_as_it_needs():
    with decimal.localcontext() as context:
        context.prec = 80
        first = int(decimal.Decimal(-1).exp() * 2**64)
    source = NoiseSource(KEY)
    outcomes = {module._decide(first, Fraction(1), source) for _ in range(200)}
    assert outcomes == {True, False}
    assert module._decide(first - 2, Fraction(1), source)
    assert not module._decide(first + 2, Fraction(1), source)
    share = np.mean([module._decide(first, Fraction(1), source) for _ in range(3000)])
    with decimal.localcontext() as context:
        context.prec = 80
        rest = float(decimal.Decimal(-1).exp() * 2**64 - first)
    assert abs(share - rest) < 6.2 * math.sqrt(0.25 / 3000)


def test_uniform_below_a_limit_has_no_bias():
    class Words(NoiseSource):
        def integers(self, n):
            return np.array([0, 2**64 - 1, 2**64 - 2, 5], dtype=np.uint64)

    assert list(module._below(4, 3, Words(KEY))) == [
        0,
        2,
        2,
    ]  # 2^64 - 1 starts an incomplete block of three
    assert list(module._below(4, 4, Words(KEY))) == [0, 3, 2, 1]


def test_edges():
    assert len(discrete_gaussian(0, 1.0, NoiseSource(KEY))) == 0
    assert not discrete_gaussian(100, 1e-3, NoiseSource(KEY)).any()
    assert len(discrete_gaussian(1, 1.0, NoiseSource(KEY))) == 1


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, 2.0**41, None, True])
def test_bad_sigma(sigma):
    with pytest.raises(ConfigurationError, match="sigma"):
        discrete_gaussian(3, sigma, NoiseSource(KEY))


@pytest.mark.parametrize("n", [-1, 2.5, None])
def test_bad_count(n):
    with pytest.raises(ConfigurationError, match="n must"):
        discrete_gaussian(n, 1.0, NoiseSource(KEY))


def test_opendp_agrees():
    dp = pytest.importorskip(
        "opendp.prelude", reason="a second opinion; the exact probabilities above are the oracle"
    )
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    theirs = np.array(dp.m.make_gaussian(*space, scale=3.7)([0] * 20_000))
    ours = discrete_gaussian(20_000, 3.7, NoiseSource(KEY))
    assert fit(theirs, 3.7) > ALARM
    both = [np.bincount(np.clip(x, -15, 15) + 15, minlength=31) for x in (ours, theirs)]
    assert stats.chi2_contingency(np.array(both) + 1).pvalue > ALARM
