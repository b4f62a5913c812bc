"""Units of many records: one clip a unit, whatever batches its records sit in."""

from __future__ import annotations

import math

import dp_models as m
import pytest
import torch
from engine_case import clipped_sum, engine, trainer  # noqa: F401
from hostile_models import HOSTILE, collate, hostile, records

from fedtree_dp import ConfigurationError
from fedtree_dp.sgd.shapes import DUMMY, Buckets
from fedtree_dp.sgd.units import UnitSums, plan_units

SLOTS = 5


def named(data, units):
    """A batch whose rows belong to these units."""
    last = [unit not in units[i + 1 :] for i, unit in enumerate(units)]
    return {**data, "unit": torch.tensor(units), "last": torch.tensor(last)}


def loop(model, loss, data, units, bound):
    """The definition: a unit at a time, plain autograd on all its records, one norm, the sum."""
    params = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in params]
    model.eval()
    for unit in sorted(set(units)):
        mine = [i for i, u in enumerate(units) if u == unit]
        model.zero_grad()
        for i in mine:
            loss(model, {k: v[i : i + 1] for k, v in data.items()}).sum().backward()
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for t, p in zip(total, params, strict=True):
            t.add_(p.grad * min(1.0, bound / float(norm)))
    model.zero_grad()
    return total


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e3])
@pytest.mark.parametrize("limit", [2, 64])
def test_clipped_sums_of_units_equal_a_loop_over_units(kind, bound, limit):
    model, data, units = m.lora(kind), m.batch(kind), [0, 1, 0, 2, 1, 0, 3]
    expected = loop(model, m.loss, data, units, bound)
    got, report = clipped_sum(model, m.loss, named(data, units), bound, physical_batch_size=limit)
    assert m.gap(got, expected) < 1e-6
    assert report.records == 4
    assert (report.dropped_nonfinite, report.failed) == (0, False)
    assert report.clipped_fraction == {0.05: 1.0, 1e3: 0.0}.get(bound, report.clipped_fraction)
    alone, _ = clipped_sum(model, m.loss, data, bound)
    if bound == 0.05:  # what a clip a record would have given
        assert m.gap(alone, expected) > 0.05


def test_mixing_scalar_and_head_of_units_are_clipped_together():
    model, data, units = m.mixed(), m.mixed_batch(), [4, 4, 9, 4, 2, 2, 9, 4, 7]
    expected = loop(model, m.mixed_loss, data, units, 0.5)
    got, _ = clipped_sum(model, m.mixed_loss, named(data, units), 0.5, physical_batch_size=4)
    assert all(m.gap([a], [b]) < 1e-6 for a, b in zip(got, expected, strict=True))


def test_units_of_one_record_are_records():
    data = m.batch("bert")
    got, _ = clipped_sum(m.lora("bert"), m.loss, named(data, [3, 0, 6, 1, 2, 5, 4]), 0.3)
    expected, _ = clipped_sum(m.lora("bert"), m.loss, data, 0.3)
    assert m.gap(got, expected) < 1e-12


def test_a_whole_unit_moves_the_sum_by_at_most_the_bound():
    data, units = m.mixed_batch(), [0, 0, 0, 1, 1, 1, 1, 2, 2]
    full, _ = clipped_sum(m.mixed(), m.mixed_loss, named(data, units), 0.5)
    for unit in range(3):
        rest = [i for i, u in enumerate(units) if u != unit]
        less = named({k: v[rest] for k, v in data.items()}, [units[i] for i in rest])
        without, _ = clipped_sum(m.mixed(), m.mixed_loss, less, 0.5)
        moved = torch.stack([(a - b).norm() for a, b in zip(full, without, strict=True)]).norm()
        assert moved <= 0.5 * (1 + 1e-12)
    plain, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    without, _ = clipped_sum(m.mixed(), m.mixed_loss, {k: v[7:] for k, v in data.items()}, 0.5)
    moved = torch.stack([(a - b).norm() for a, b in zip(plain, without, strict=True)]).norm()
    assert moved > 1.0  # seven records with a clip each


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_record_contributes_zero_to_its_unit(bad):
    data, units = m.mixed_batch(), [0, 1, 1, 1, 2, 2, 0, 2, 3]
    poisoned = {**data, "x": data["x"].clone()}
    poisoned["x"][3, 0, 0] = bad
    rest = [0, 1, 2, 4, 5, 6, 7, 8]
    clean = named({k: v[rest] for k, v in data.items()}, [units[i] for i in rest])
    got, report = clipped_sum(m.mixed(), m.mixed_loss, named(poisoned, units), 0.5, dummies=data)
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, clean, 0.5)
    assert m.gap(got, expected) < 1e-12
    assert (report.records, report.dropped_nonfinite) == (4, 1)


def test_a_unit_of_which_no_record_can_be_used_contributes_zero_and_is_counted():
    data, units = m.mixed_batch(), [0, 1, 1, 1, 0, 0, 0, 0, 0]
    poisoned = {**data, "x": data["x"].clone()}
    poisoned["x"][1:4] = math.nan
    got, report = clipped_sum(m.mixed(), m.mixed_loss, named(poisoned, units), 0.5, dummies=data)
    mine = {k: v[[0, 4, 5, 6, 7, 8]] for k, v in data.items()}
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, named(mine, [0] * 6), 0.5)
    assert m.gap(got, expected) < 1e-12
    assert report.records == 2


def test_records_of_units_with_an_infinite_loss_contribute_zero():
    def loss(model, part):
        return m.mixed_loss(model, part) + part["added"]

    data, units = m.mixed_batch(), [0, 1, 1, 1, 2, 2, 0, 2, 3]
    none = {**data, "added": torch.zeros(9)}
    added = torch.where(torch.arange(9) == 3, math.inf, 0.0)
    got, report = clipped_sum(
        m.mixed(), loss, named({**data, "added": added}, units), 0.5, dummies=none
    )
    rest = [0, 1, 2, 4, 5, 6, 7, 8]
    clean = named({k: v[rest] for k, v in data.items()}, [units[i] for i in rest])
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, clean, 0.5)
    assert m.gap(got, expected) < 1e-12
    assert report.dropped_nonfinite == 1


def test_records_of_units_without_a_finite_gradient_contribute_zero():
    def loss(model, part):
        nothing = model(part["x"]).sum(1) * 0
        return m.mixed_loss(model, part) + torch.sqrt(nothing**2 + part["good"])  # sqrt at 0

    data, units = {**m.mixed_batch(), "good": torch.ones(9)}, [0, 1, 1, 1, 2, 2, 0, 2, 3]
    bad = {**data, "good": (torch.arange(9) != 3).double()}
    got, report = clipped_sum(m.mixed(), loss, named(bad, units), 0.5, dummies=data)
    rest = [0, 1, 2, 4, 5, 6, 7, 8]
    clean = named({k: v[rest] for k, v in data.items()}, [units[i] for i in rest])
    expected, _ = clipped_sum(m.mixed(), loss, clean, 0.5)
    assert m.gap(got, expected) < 1e-12
    assert (report.records, report.dropped_nonfinite) == (4, 1)
    assert math.isfinite(report.mean_loss)


def test_rows_of_units_that_were_closed_are_left_out():
    """A unit that is marked as done too early would have a second clip."""
    data, units = m.mixed_batch(), [0, 1, 0, 1, 0, 1, 0, 1, 0]
    early = named(data, units)
    early["last"][0] = True
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, named(data, units), 0.5)
    got, report = clipped_sum(m.mixed(), m.mixed_loss, early, 0.5, dummies=data)
    assert m.gap(got, expected) < 1e-12  # one batch: the mark is looked at when it was added
    got, report = clipped_sum(
        m.mixed(), m.mixed_loss, early, 0.5, dummies=data, physical_batch_size=2
    )
    mine = [0, 1, 3, 5, 7]
    cut = named({k: v[mine] for k, v in data.items()}, [0, 1, 1, 1, 1])
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, cut, 0.5)
    assert m.gap(got, expected) < 1e-12
    assert (report.records, report.dropped_nonfinite) == (2, 4)


def test_slots_are_given_away_empty_to_other_units():
    data = m.mixed_batch()
    parts = [named({k: v[i : i + 3] for k, v in data.items()}, [i] * 3) for i in (0, 3, 6)]
    got, report = clipped_sum(m.mixed(), m.mixed_loss, parts, 0.5, dummies=data)
    expected = loop(m.mixed(), m.mixed_loss, data, [0] * 3 + [3] * 3 + [6] * 3, 0.5)
    assert m.gap(got, expected) < 1e-6
    assert report.records == 3


def test_a_row_that_breaks_the_pass_takes_its_own_share_out_of_its_unit():
    calls = []

    def fragile(model, part):
        calls.append(len(part["y"]))
        if len(calls) > 2 and (part["x"] == 77.0).any():
            raise MemoryError("planted")
        return m.mixed_loss(model, part)

    data, units = m.mixed_batch(), [0, 1, 1, 1, 2, 2, 0, 2, 1]
    broken = {**data, "x": data["x"].clone()}
    broken["x"][8] = 77.0  # the last row of its unit, so nothing closes the unit
    got, report = clipped_sum(m.mixed(), fragile, named(broken, units), 0.5, dummies=data)
    rest = {k: v[:8] for k, v in data.items()}
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, named(rest, units[:8]), 0.5)
    assert report.failed
    assert m.gap(got, expected) < 1e-12
    assert report.records == 3


def test_a_step_of_records_after_one_of_units_starts_empty():
    data = m.mixed_batch()
    with trainer(m.mixed(), m.mixed_loss, dummies=data) as t:
        t.step(named(data, [0] * 9))
        assert len(t._units) == 0
        open_still = named(data, [1] * 9) | {"last": torch.zeros(9, dtype=torch.bool)}
        with pytest.raises(ConfigurationError, match="some batches of this step name units"):
            t.step([open_still, data])
        assert len(t._units) == 0
        assert t.step(named(data, [0] * 9)).dropped_nonfinite == 0  # unit 0 is open again


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"last": None}, "or neither"),
        ({"unit": torch.zeros(9)}, "must be int64"),
        ({"last": torch.zeros(9)}, "must be int64"),
        ({"unit": torch.zeros(9, 1, dtype=torch.int64)}, "one value for each row"),
        ({"unit": torch.zeros(8, dtype=torch.int64)}, "different numbers of rows"),
    ],
)
def test_units_of_another_form_are_refused(change, said):
    data = {**named(m.mixed_batch(), [0] * 9), **change}
    with (
        trainer(m.mixed(), m.mixed_loss, dummies=m.mixed_batch()) as t,
        pytest.raises(ConfigurationError, match=said),
    ):
        t.step({k: v for k, v in data.items() if v is not None})


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("value", [1.0, *HOSTILE])
def test_hostile_an_added_unit_changes_no_other_sum_by_one_bit(kind, value, monkeypatch):
    """Whatever the weights: a unit's sum is a function of its own records."""
    found = records(kind, [6, 7, 5, 9, 8, 6, 20, 4, 21])
    lengths = [r["input_ids"].shape[1] for r in found]
    members = [[0, 6, 1], [2, 3], [4, 5, 8], [7]]
    sums: list[dict[int, bytes]] = []
    shipped = UnitSums.close

    def seen(self, units=None):
        closing = [u for u in (list(self._slots) if units is None else units) if u != DUMMY]
        given = shipped(self, units)
        for at, unit in enumerate(closing):
            sums[-1][unit] = b"".join(g[at].numpy().tobytes() for g in given)
        return given

    monkeypatch.setattr(UnitSums, "close", seen)
    for drawn in ([0, 1, 3], [0, 1, 2, 3], [1], [0, 3]):
        sums.append({})
        model, tag = hostile(kind, value), m.noise(f"{len(drawn)}")
        plan = plan_units(lengths, members, drawn, Buckets.up_to(32), SLOTS, tag, at_once=64)
        with trainer(model) as t:
            t._rehearsed = True
            t.step(
                {
                    **collate(kind, p.rows, p.width, found),
                    "unit": torch.tensor(p.units),
                    "last": torch.tensor(p.last),
                }
                for p in plan
            )
    for other in sums[1:]:
        shared = other.keys() & sums[0].keys()
        assert shared
        assert all(other[u] == sums[0][u] for u in shared)
