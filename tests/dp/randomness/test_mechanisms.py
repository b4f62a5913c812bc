"""gaussian_mean: clipping rows, robust to anything in them, noise of the stated scale, a public
divisor.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource, gaussian_mean

KEY = bytes(range(32))


def mean(vectors, *, max_norm=1.0, divisor=1.0, noise_multiplier=0.0, **more):
    return gaussian_mean(
        vectors,
        max_norm=max_norm,
        divisor=divisor,
        noise_multiplier=noise_multiplier,
        noise=NoiseSource(KEY),
        **more,
    )


def test_rows_are_clipped_and_summed():
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(
        mean(rows, divisor=2.0), [(0.6 + 0.3) / 2, (0.8 + 0.4) / 2], rtol=1e-12
    )
    np.testing.assert_allclose(mean(rows, normalise=True), [1.2, 1.6], rtol=1e-12)
    np.testing.assert_allclose(
        mean(torch.tensor(rows, dtype=torch.bfloat16), max_norm=10.0), [3.3, 4.4], rtol=1e-2
    )
    assert rows[0, 0] == 3.0  # the caller's rows stay


def test_one_record_moves_the_sum_by_at_most_the_bound():
    rows = np.random.default_rng(0).standard_normal((200, 7)) * 10.0 ** np.random.default_rng(
        1
    ).integers(-3, 4, (200, 1))
    total = mean(rows)
    for i in range(200):
        assert np.linalg.norm(total - mean(np.delete(rows, i, axis=0))) <= 1 + 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_nonfinite_row_is_zero(bad, normalise):
    rows = np.array([[0.1, 0.2], [bad, 1.0]])
    np.testing.assert_array_equal(
        mean(rows, normalise=normalise), mean(rows[:1], normalise=normalise)
    )


def test_huge_and_tiny_rows_do_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(mean(np.array([[1e308, 1e308]])), [math.sqrt(0.5)] * 2)
        np.testing.assert_allclose(mean(np.array([[1e-300, 0.0]]), normalise=True), [1.0, 0.0])


def test_noise_has_the_stated_scale():
    x = mean(np.zeros((0, 100_000)), max_norm=3.0, divisor=2.0, noise_multiplier=0.5) * 2.0
    q = lambda std: float((x**2).sum() / std**2)  # noqa: E731
    p = lambda std: 2 * min(stats.chi2.cdf(q(std), len(x)), stats.chi2.sf(q(std), len(x)))  # noqa: E731
    assert p(1.5) > 1e-9  # the false-alarm rate
    assert p(0.7 * 1.5) < 1e-20
    assert p(1.3 * 1.5) < 1e-20


@pytest.mark.parametrize("name", ["max_norm", "divisor", "noise_multiplier"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, None, True])
def test_bad_numbers(name, value):
    with pytest.raises(ConfigurationError, match=name):
        mean(np.zeros((2, 2)), **{name: value})


@pytest.mark.parametrize("name", ["max_norm", "divisor"])
def test_zero_is_refused_where_it_would_divide(name):
    with pytest.raises(ConfigurationError, match=name):
        mean(np.zeros((2, 2)), **{name: 0})


def test_bad_shape():
    with pytest.raises(ConfigurationError, match="shape"):
        mean(np.zeros(3))
