"""Poisson sampling: each record independently, at exactly the public rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource, PoissonSampler

KEY = bytes(range(32))
ALARM = 1e-9  # probability of a false alarm of each check; keys are fixed


def draws(size, rate, steps):
    sampler = PoissonSampler(size, rate, NoiseSource(KEY))
    picked = np.zeros((steps, size), dtype=bool)
    for row in picked:
        row[sampler.draw()] = True
    return picked


def test_rate_independence_and_batch_sizes():
    rate, size, steps = 0.05, 400, 2000
    picked = draws(size, rate, steps)
    total = int(picked.sum())
    assert stats.binomtest(total, size * steps, rate).pvalue > ALARM
    for wrong in (0.7, 1.3):
        assert stats.binomtest(total, size * steps, wrong * rate).pvalue < 1e-20
    sizes = picked.sum(axis=1)  # binomial, not constant as with shuffling
    dispersion = float(((sizes - size * rate) ** 2).sum() / (size * rate * (1 - rate)))
    assert 2 * min(stats.chi2.cdf(dispersion, steps), stats.chi2.sf(dispersion, steps)) > ALARM
    per_record = picked.sum(axis=0)
    assert stats.binom.sf(per_record.max() - 1, steps, rate) * size > 1e-6
    assert stats.binom.cdf(per_record.min(), steps, rate) * size > 1e-6
    neighbours = (picked[:, :-1] & picked[:, 1:]).sum()
    assert stats.binomtest(int(neighbours), steps * (size - 1), rate**2).pvalue > 1e-6
    again = (picked[:-1] & picked[1:]).sum()  # a record may come again in the next step
    assert stats.binomtest(int(again), (steps - 1) * size, rate**2).pvalue > 1e-6


def test_empty_batches_happen_at_their_rate():
    empty = int((draws(8, 0.1, 3000).sum(axis=1) == 0).sum())
    assert stats.binomtest(empty, 3000, 0.9**8).pvalue > ALARM


def test_indices_are_ascending_and_distinct():
    batch = PoissonSampler(1000, 0.3, NoiseSource(KEY)).draw()
    assert (np.diff(batch) > 0).all()
    assert batch.dtype == np.int64


def test_a_capped_batch_keeps_a_uniform_part():
    free, capped = (PoissonSampler(50, 0.2, NoiseSource(KEY), cap=cap) for cap in (50, 8))
    counts = np.zeros(50, dtype=int)
    for _ in range(4000):
        batch = capped.draw()
        assert len(batch) <= 8
        assert (np.diff(batch) > 0).all()
        counts[batch] += 1
        assert len(free.draw()) <= 50
    assert (
        stats.chisquare(counts).pvalue > ALARM
    )  # negatively correlated, so the test is conservative
    assert len(PoissonSampler(10, 1, NoiseSource(KEY), cap=3).draw()) == 3
    for cap in (0, -1, 2.5, True):
        with pytest.raises(ConfigurationError, match="cap"):
            PoissonSampler(10, 0.1, NoiseSource(KEY), cap=cap)


def test_edges():
    assert len(PoissonSampler(0, 0.5, NoiseSource(KEY)).draw()) == 0
    assert list(PoissonSampler(3, 1, NoiseSource(KEY)).draw()) == [0, 1, 2]
    assert len(PoissonSampler(1000, 5e-324, NoiseSource(KEY)).draw()) == 0
    assert "sample_rate=0.5" in repr(PoissonSampler(123456, 0.5, NoiseSource(KEY)))
    assert "123456" not in repr(
        PoissonSampler(123456, 0.5, NoiseSource(KEY))
    )  # the size is private


@pytest.mark.parametrize(
    "rate", [0, -0.1, 1.0001, math.nan, math.inf, True, None, np.ones(3), "0.1"]
)
def test_bad_rates_and_weights(rate):
    with pytest.raises(ConfigurationError, match="sample_rate"):
        PoissonSampler(10, rate, NoiseSource(KEY))


@pytest.mark.parametrize("size", [-1, 2.5, True, None])
def test_bad_sizes(size):
    with pytest.raises(ConfigurationError, match="size"):
        PoissonSampler(size, 0.1, NoiseSource(KEY))


@pytest.mark.parametrize("source", [None, 42, np.random.default_rng(0)])
def test_other_randomness_is_refused(source):
    with pytest.raises(ConfigurationError, match="NoiseSource"):
        PoissonSampler(10, 0.1, source)
