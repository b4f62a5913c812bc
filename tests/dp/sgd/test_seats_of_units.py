"""Seats of units: all their records, in their own order, and nobody moves for an added unit."""

from __future__ import annotations

import dp_models as m
import numpy as np
from dp_models import seats
from scipy import stats

from fedtree_dp.sgd.shapes import DUMMY, Buckets, plan_slots
from fedtree_dp.sgd.units import plan_units, units_at_once


def test_all_records_of_drawn_units_sit_once_in_the_own_order():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, size=300).tolist()
    units = rng.integers(0, 60, size=300)
    members = [np.flatnonzero(units == u).tolist() for u in range(60)]
    drawn, buckets = np.flatnonzero(rng.random(60) < 0.5), Buckets.up_to(64)
    plan = plan_units(lengths, members, drawn, buckets, 8, m.noise(), at_once=9)
    found = seats(plan)
    assert sorted(found) == sorted(i for u in drawn for i in members[u])
    assert all(found[i][0] == buckets.width_of(lengths[i]) for i in found)
    assert {len(p.rows) for p in plan} == {8}
    assert {p.rows[-1] for p in plan} == {DUMMY}
    seen = dict.fromkeys(drawn.tolist(), 0)
    for p in plan:
        for record, unit, last in zip(p.rows, p.units, p.last, strict=True):
            assert (unit == DUMMY) == (record == DUMMY)
            if record == DUMMY:
                assert not last
                continue
            seen[unit] += 1
            assert units[record] == unit
            assert last == (seen[unit] == len(members[unit]))
    for u in drawn:
        for width in buckets.widths:
            own = [i for i in members[u] if buckets.width_of(lengths[i]) == width]
            assert own == sorted(own, key=lambda i: found[i])
    assert plan_units(lengths, members, [], buckets, 8, m.noise(), at_once=9) == []


def test_wards_bound_how_many_sums_are_open():
    members = [[4 * u + j for j in range(4)] for u in range(30)]
    plan = plan_units([5] * 120, members, range(30), Buckets((16,)), 8, m.noise(), at_once=7)
    most, open_units = 0, set()
    for p in plan:
        for unit, last in zip(p.units, p.last, strict=True):
            open_units |= {unit} - {DUMMY}
            most = max(most, len(open_units))
            open_units -= {unit} if last else set()
    assert most <= 7
    assert not open_units
    assert units_at_once(36_864) > 1000 > units_at_once(10**9) == 64


def test_hostile_an_added_unit_takes_the_place_of_dummies_and_nobody_moves():
    """With one stream of seats for both data sets."""
    lengths = [10] * 9 + [20] * 5 + [10, 20]
    members = [[0, 9, 1], [2], [3, 4, 10, 5], [6, 7, 11], [8], [12, 13], [14, 15]]
    for steps in range(50):
        one, two = (
            seats(
                plan_units(
                    *(lengths, members, range(n), Buckets.up_to(32), 8),
                    m.noise(f"s{steps}"),
                    at_once=64,
                )
            )
            for n in (6, 7)
        )
        assert {i: two[i] for i in one} == one
        assert not {two[14], two[15]} & set(one.values())


def test_places_of_units_are_uniform_whatever_the_order():
    source, counts = m.noise("uniform units"), np.zeros((3, 14), dtype=int)
    members = [[0], [1, 2, 3], [4, 5], [6], [7, 8, 9]]
    for _ in range(8_000):
        plan = plan_units([5] * 10, members, range(5), Buckets((16,)), 8, source, at_once=64)
        for index, (_, number, row) in seats(plan).items():
            if index in (0, 6):
                counts[(0, 6).index(index), 7 * number + row] += 1
            if index in (4, 5):  # the places of a unit, not of its first record
                counts[2, 7 * number + row] += 1
    for row in counts:
        assert stats.chisquare(row).pvalue > 1e-9


def test_units_cost_as_many_physical_batches_as_records():
    lengths = np.random.default_rng(3).integers(1, 33, size=200).tolist()
    members = [list(range(i, min(i + 1 + i % 7, 200))) for i in range(0, 200, 7)]
    every = [i for unit in members for i in unit]
    args = Buckets.up_to(32), 17, m.noise()
    by_unit = plan_units(lengths, members, range(len(members)), *args, at_once=1000)
    by_record = plan_slots(lengths, every, *args)
    assert [p.width for p in by_unit] == [p.width for p in by_record]
