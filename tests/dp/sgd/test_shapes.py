"""Fixed shapes: widths from a record's own length, uniformly random seats, public sizes."""

from __future__ import annotations

import dp_models as m
import numpy as np
import pytest
from dp_models import seats
from scipy import stats

from fedtree_dp import ConfigurationError
from fedtree_dp.sgd.shapes import DUMMY, SIZES, Buckets, PhysicalBatch, plan_slots, slots_for


def test_widths():
    assert Buckets.up_to(64).widths == (16, 24, 32, 48, 64)
    assert Buckets.up_to(40).widths == (16, 24, 32, 40)
    assert Buckets.up_to(16).widths == (16,)
    assert Buckets.up_to(1).widths == (1,)
    assert Buckets.up_to(200).widths == (16, 24, 32, 48, 64, 96, 128, 192, 200)
    buckets = Buckets.up_to(64)
    assert [buckets.width_of(n) for n in (0, 1, 16, 17, 24, 25, 63, 64)] == [
        *(16, 16, 16, 24, 24, 32, 64, 64)
    ]
    with pytest.raises(ConfigurationError, match="largest width, 64"):
        buckets.width_of(65)


@pytest.mark.parametrize("widths", [(), (0,), (4, 4), (8, 4), (1.5,), (True,)])
def test_bad_widths(widths):
    with pytest.raises(ConfigurationError, match="widths"):
        Buckets(widths)


def test_slots_are_a_function_of_public_numbers():
    assert [slots_for(n, 64) for n in (1, 63, 64, 128, 255, 256, 1023, 1e6)] == [
        *(9, 9, 17, 17, 17, 33, 33, 64)
    ]
    assert slots_for(1e6, 65) == 65
    assert slots_for(1e6, 20) == 20
    assert slots_for(1e6, 1) == 2


@pytest.mark.parametrize("expected", [8, 30, 64, 100, 255, 256, 800, 1023, 5000])
def test_no_other_size_has_fewer_dummies_in_one_width(expected):
    """On average over the numbers of records around the expected one."""
    dummies = {s: (s - 1) / 2 + expected / s for s in SIZES}
    chosen = slots_for(expected, 65) - 1
    assert dummies[chosen] <= min(dummies.values()) + 0.5


def test_everyone_sits_once_in_a_batch_of_the_own_width():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, size=500)
    drawn = np.flatnonzero(rng.random(500) < 0.3)
    plan = plan_slots(lengths, drawn, Buckets.up_to(64), 8, m.noise())
    found = seats(plan)
    assert sorted(found) == drawn.tolist()
    assert all(found[i][0] == Buckets.up_to(64).width_of(lengths[i]) for i in found)
    assert {len(p.rows) for p in plan} == {8}
    assert {p.rows[-1] for p in plan} == {DUMMY}  # always a padded row
    assert all(p.present.tolist() == [i != DUMMY for i in p.rows] for p in plan)
    for width in Buckets.up_to(64).widths:
        members = sum(w == width for w, _, _ in found.values())
        assert sum(p.width == width for p in plan) == -(-members // 7)
    assert plan_slots(lengths, [], Buckets.up_to(64), 8, m.noise()) == []
    assert "1" not in repr(PhysicalBatch(16, (1, DUMMY))).partition(" object at ")[0]


def test_hostile_a_record_takes_the_place_of_a_dummy_and_nobody_moves():
    """With one stream of seats for both data sets, whatever the new record is."""
    lengths = [10] * 9 + [20] * 5 + [10]
    for steps in range(50):
        one, two = (
            seats(plan_slots(lengths, range(n), Buckets.up_to(32), 8, m.noise(f"s{steps}")))
            for n in (14, 15)
        )
        assert {i: two[i] for i in one} == one
        assert two[14] not in one.values()


def test_seats_are_uniform_whatever_the_order():
    source, counts = m.noise("uniform"), np.zeros((3, 14), dtype=int)
    for _ in range(14_000):
        for index, (_, number, row) in seats(
            plan_slots([5] * 10, range(10), Buckets((16,)), 8, source)
        ).items():
            if index in (0, 4, 9):
                counts[(0, 4, 9).index(index), 7 * number + row] += 1
    for row in counts:
        assert stats.chisquare(row).pvalue > 1e-9
    assert stats.chisquare(counts[0] + 300 * (np.arange(14) == 0)).pvalue < 1e-9  # has power


@pytest.mark.parametrize("slots", [1, 0, 2.5, None])
def test_bad_slots(slots):
    with pytest.raises(ConfigurationError, match="slots"):
        plan_slots([1], [0], Buckets((16,)), slots, m.noise())
