"""The unit of a data set: named before the first charge, once, and never mixed with another."""

from __future__ import annotations

import json
import math

import pytest
import rfc8785

from fedtree_dp import (
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerTampered,
    PoissonGaussian,
    PrivacyBudget,
    PrivacyUnit,
    TruncatedPoissonGaussian,
    statement,
)
from fedtree_dp.ledger.entries import digest, read_lines

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)
PATIENT = PrivacyUnit("patient_id", 20)
EVENT = Gaussian(20.0)


def opened(path, **changes):
    return Ledger.open(path, **{"dataset": "clinic", "budget": BUDGET, **changes})


def test_units_are_recorded_before_the_first_charge(tmp_path):
    with opened(tmp_path / "a") as ledger:
        assert ledger.unit is None
        ledger.use_unit(PATIENT)
        ledger.use_unit(PATIENT)  # a resumed run says it again
        ledger.charge(EVENT, job="j", purpose="p")
        assert [e.kind for e in ledger.entries()] == ["opened", "unit", "charge"]
        ledger.export(tmp_path / "lines")
        ledger.snapshot(tmp_path / "copy")
    with Ledger.inspect(tmp_path / "copy") as copy:
        assert copy.unit == PATIENT
    (_, line, _) = read_lines((tmp_path / "lines").read_text().splitlines())
    assert line.unit == PATIENT


@pytest.mark.parametrize("other", [None, PrivacyUnit("patient_id", 21), PrivacyUnit("stay", 20)])
def test_other_units_are_refused_on_one_data_set(tmp_path, other):
    with opened(tmp_path / "a") as ledger:
        ledger.use_unit(PATIENT)
        ledger.charge(EVENT, job="j", purpose="p")
    with opened(tmp_path / "a") as ledger:
        before = ledger.entries()
        with pytest.raises(LedgerError, match=r"protect one patient_id \(at most 20 records\)"):
            ledger.use_unit(other)
        # not even by who says nothing of units: what it charges would be for records
        with pytest.raises(LedgerError, match="the job's would protect one record"):
            ledger.charge(EVENT, job="j", purpose="p")
        with (
            pytest.raises(LedgerError, match="would protect one record"),
            ledger.transaction() as current,
        ):
            current.charge(EVENT, job="j", purpose="p")
        assert ledger.entries() == before


def test_units_are_refused_where_records_were_charged(tmp_path):
    with opened(tmp_path / "a") as ledger:
        ledger.charge(EVENT, job="j", purpose="p")
        with pytest.raises(LedgerError, match="protect one record, the job's would protect one pa"):
            ledger.use_unit(PATIENT)
        ledger.use_unit(None)
        ledger.charge(EVENT, job="j", purpose="p")


def test_units_named_by_another_process_meanwhile_are_seen(tmp_path):
    with opened(tmp_path / "a") as one, opened(tmp_path / "a") as two:
        one.use_unit(None)
        two.use_unit(PATIENT)
        with pytest.raises(LedgerError, match="units are not mixed"):
            one.charge(EVENT, job="j", purpose="p")
        assert one.unit == PATIENT


def chain(*bodies):
    lines, last = [], "0" * 64
    for number, body in enumerate(bodies):
        fields = {**body, "sequence": number, "previous": last, "time": "2026-01-01T00:00:00+00:00"}
        last = digest(rfc8785.dumps(fields)).hex()
        lines.append(json.dumps(fields | {"hash": last}))
    return lines


OPENED = {
    "kind": "opened",
    "dataset": "clinic",
    "ledger": "0" * 32,
    "budget": {"epsilon": 8, "delta": 1e-5},
}
NAMED = {"kind": "unit", "unit": {"at_most": 20, "name": "patient_id"}}
CHARGE = {"kind": "charge", "event": EVENT.to_dict(), "job": "j", "purpose": "p"}


@pytest.mark.parametrize(
    "bodies",
    [
        (OPENED, CHARGE, NAMED),
        (OPENED, NAMED, NAMED),
        (OPENED, NAMED | {"unit": {"at_most": 0, "name": "patient_id"}}),
        (OPENED, NAMED | {"unit": {"at_most": 20, "name": ""}}),
        (OPENED, NAMED | {"unit": {"at_most": 20}}),
        (NAMED,),
    ],
)
def test_lines_of_units_elsewhere_or_of_another_form_are_refused(bodies):
    assert len(read_lines(chain(OPENED, NAMED, CHARGE))) == 3
    with pytest.raises(LedgerTampered):
        read_lines(chain(*bodies))


@pytest.mark.parametrize(
    "given", [("", 1), ("a\nb", 1), ("p", 0), ("p", 2.0), ("p", True), (7, 1), ("p", 10**7)]
)
def test_bad_units(given):
    with pytest.raises(ConfigurationError, match="unit"):
        PrivacyUnit(*given)


def test_statements_say_the_units(tmp_path):
    found = statement([PoissonGaussian(4.0, 0.5, 3)], 1e-5, prv=False, unit=PATIENT)
    assert found.neighbours == "add or remove one patient_id (at most 20 records)"
    assert found.unit.startswith("one patient_id (all its records")
    assert any("coin per patient_id" in line for line in found.assumptions)
    plain = statement([PoissonGaussian(4.0, 0.5, 3)], 1e-5, prv=False)
    assert (plain.unit, plain.neighbours) == (
        "one record (one training example) of one client",
        "add or remove one record",
    )
    assert any("coin per record" in line for line in plain.assumptions)
    cut = TruncatedPoissonGaussian(4.0, 0.5, 3, records=100, cap=60)
    with pytest.raises(ConfigurationError, match="truncated batches"):
        statement([cut], 1e-5, prv=False, unit=PATIENT)


def test_epsilon_for_units_is_that_of_an_independent_computation(tmp_path):
    """From the lines alone: Gaussian composition by hand, the exact curve of Balle and Wang."""
    with opened(tmp_path / "a") as ledger:
        ledger.use_unit(PATIENT)
        for event in (EVENT, PoissonGaussian(9.0, 1.0, 30), PoissonGaussian(11.0, 1.0, 7)):
            ledger.charge(event, job="j", purpose="p")
        claimed = ledger.spent()
        ledger.export(tmp_path / "lines")
    events = [
        line["event"]
        for line in map(json.loads, (tmp_path / "lines").read_text().splitlines())
        if line["kind"] == "charge"
    ]
    precision = sum(e.get("steps", 1) / e["noise_multiplier"] ** 2 for e in events)
    assert all(e.get("sample_rate", 1) == 1 for e in events)

    mu = math.sqrt(precision)

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta(epsilon):
        left, right = -epsilon / mu + mu / 2, -epsilon / mu - mu / 2
        return phi(left) - math.exp(epsilon) * phi(right)

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-5 else (low, middle)
    assert claimed == pytest.approx(high, rel=1e-3)
    assert claimed >= high
