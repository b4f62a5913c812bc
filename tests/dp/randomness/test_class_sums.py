"""class_sums: what one record or unit moves, to the bit; noise of the stated scale; refusals."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource, class_sums
from fedtree_dp.randomness import class_sums as module
from fedtree_dp.randomness.class_sums import GRID

KEY = bytes(range(32))
SHARE = 0.25
ONE = round(1 / GRID)  # a norm of 1, in steps of the grid


def released(vectors, labels, classes=3, *, units=None, noise_multiplier=0.0, **more):
    return class_sums(
        np.asarray(vectors),
        np.asarray(labels),
        classes,
        **{
            "count_share": SHARE,
            "noise_multiplier": noise_multiplier,
            "noise": NoiseSource(KEY),
            "units": units,
            **more,
        },
    )


def whole(values):
    """The same in steps of the grid, as Python's integers."""
    steps = values / GRID
    assert np.array_equal(steps, np.rint(steps))
    return steps.astype(np.int64).astype(object)


def moved(one, other):
    """Square of the distance, in steps of the grid, exactly."""
    return int(((whole(one) - whole(other)) ** 2).sum())


def rows(count=60, width=7, seed=0):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 4, (count, 1))
    return rng.standard_normal((count, width)) * scale, rng.integers(3, size=count)


def test_sums_and_numbers_by_class():
    vectors, labels = rows()
    found = released(vectors, labels)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for label in range(3):
        own = unit[labels == label]
        expected = math.sqrt(1 - SHARE**2) * own.sum(axis=0)
        np.testing.assert_allclose(found[label, :-1], expected, atol=60 * 2 * GRID)
        assert found[label, -1] == pytest.approx(SHARE * len(own), abs=60 * 2 * GRID)


def test_one_record_moves_the_sums_by_at_most_one_to_the_bit():
    vectors, labels = rows()
    vectors[0] = [1.0, *np.zeros(6)]  # whole numbers of steps: nothing is cut off
    every = released(vectors, labels)
    squares = [
        moved(every, released(np.delete(vectors, i, axis=0), np.delete(labels, i)))
        for i in range(len(labels))
    ]
    assert max(squares) <= ONE**2
    assert min(squares) > 0.99 * ONE**2  # and each by all that it may


def test_one_record_moves_the_sums_by_the_same_bits_whoever_else_is_there():
    vectors, labels = rows()
    alone = released(vectors[5:6], labels[5:6])
    for others in (slice(0, 5), slice(6, 60), slice(20, 21)):
        with_it = released(
            np.concatenate([vectors[others], vectors[5:6]]),
            np.concatenate([labels[others], labels[5:6]]),
        )
        without = released(vectors[others], labels[others])
        assert np.array_equal(whole(with_it) - whole(without), whole(alone))


@pytest.mark.parametrize("mixed", [False, True])
def test_one_unit_moves_the_sums_by_at_most_one_to_the_bit(mixed):
    """The worst case: a unit of many records that all say the same; and one of several classes."""
    vectors, labels = rows()
    units = np.random.default_rng(1).integers(12, size=len(labels))
    units[:20], vectors[:20] = 3, vectors[0]
    labels[:20] = labels[:20] if mixed else 1
    every = released(vectors, labels, units=units)
    for unit in np.unique(units):
        kept = units != unit
        less = released(vectors[kept], labels[kept], units=units[kept])
        assert 0.5 * ONE**2 < moved(every, less) <= ONE**2
    kept = units != 3
    by_rows = moved(released(vectors, labels), released(vectors[kept], labels[kept]))
    assert by_rows > 100 * ONE**2  # what it would move without units


def test_blocks_of_rows_change_nothing(monkeypatch):
    vectors, labels = rows()
    units = np.random.default_rng(1).integers(12, size=len(labels))
    whole_units, whole_rows = released(vectors, labels, units=units), released(vectors, labels)
    monkeypatch.setattr(module, "_BLOCK", 3)
    assert np.array_equal(released(vectors, labels, units=units), whole_units)
    assert np.array_equal(released(vectors, labels), whole_rows)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_record_that_is_not_finite_counts_as_nothing(bad):
    vectors, labels = rows(5)
    less = released(vectors[1:], labels[1:])
    vectors[0, 2] = bad
    assert np.array_equal(released(vectors, labels), less)
    units = np.array([0, 0, 1, 1, 1])
    assert np.array_equal(
        released(vectors, labels, units=units), released(vectors[1:], labels[1:], units=units[1:])
    )


def test_huge_tiny_and_zero_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = released([[1e308, 1e308], [1e-300, 0.0], [0.0, 0.0]], [0, 1, 2])
    long = math.sqrt(1 - SHARE**2)
    expected = [[long / 2**0.5, long / 2**0.5, SHARE], [long, 0, SHARE], [0, 0, SHARE]]
    np.testing.assert_allclose(found, expected, atol=2 * GRID)
    assert released(np.zeros((0, 4)), np.zeros(0, dtype=int)).tolist() == [[0.0] * 5] * 3


def test_noise_has_the_stated_scale_in_every_value():
    found = released(np.zeros((0, 199)), np.zeros(0, dtype=int), classes=50, noise_multiplier=3.7)
    for values in (found.reshape(-1), found[:, -1]):
        square = float((values**2).sum())

        def p(deviation, square=square, count=values.size):
            q = square / deviation**2
            return 2 * min(stats.chi2.cdf(q, count), stats.chi2.sf(q, count))

        assert p(3.7) > 1e-9  # the false-alarm rate
        if values.size > 1000:
            assert p(0.7 * 3.7) < 1e-20
            assert p(1.3 * 3.7) < 1e-20
    whole(found)  # on the grid


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0, 3]}, "labels must be from 0 to 2"),
        ({"labels": [0, -1]}, "labels must be from 0 to 2"),
        ({"labels": [0]}, "vectors of the shape"),
        ({"vectors": [1.0, 2.0]}, "vectors of the shape"),
        ({"classes": 0}, "classes"),
        ({"count_share": 0.0}, "count_share"),
        ({"count_share": 1.0}, "count_share"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": 1e-4}, "noise_multiplier is 0.0001; allowed: 0, or at least"),
        ({"units": np.array([0])}, "units of the shape"),
    ],
)
def test_bad_input(change, said):
    given = {"vectors": [[1.0, 0.0], [0.0, 1.0]], "labels": [0, 1], **change}
    with pytest.raises(ConfigurationError, match=said):
        released(given.pop("vectors"), given.pop("labels"), **given)
