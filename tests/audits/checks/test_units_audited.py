"""Audits of a job that protects units: a whole unit is planted, and a clip a record is caught."""

import numpy as np
import pytest

from fedtree_audits.checks import canary_whitebox, components
from fedtree_audits.rigs.broken import OF_UNITS
from fedtree_audits.rigs.engines import Build, clipped_sum, of_units, records, releases
from fedtree_audits.rigs.lora_host import host
from fedtree_audits.statistics.verdict import Verdict
from fedtree_dp import PoissonGaussian, PrivacyUnit
from fedtree_secure import Lora

PATIENT = PrivacyUnit("patient", 4)
EVENT = PoissonGaussian(1.1, 0.1, 20)


def failing(result):
    return {check.name for check in result.checks if not check.holds}


def test_units_of_the_shipped_engine_pass_components():
    result = components.audit_build(Build(), EVENT, 1e-5, b"k" * 32, unit=PATIENT)
    assert result.verdict is Verdict.PASS
    assert "one patient moves by at most one" in result.claim
    assert any("one patient moves the sum" in check.detail for check in result.checks)


def test_records_clipped_one_by_one_are_not_passed_off_as_units():
    (build,) = OF_UNITS.values()
    result = components.audit_build(build, EVENT, 1e-5, b"k" * 32, unit=PATIENT)
    assert failing(result) >= {"sensitivity"}
    # as a mechanism for records it is sound
    assert components.audit_build(build, EVENT, 1e-5, b"k" * 32).verdict is Verdict.PASS


@pytest.mark.parametrize("size", [2, 4])
def test_units_of_the_reference_are_those_of_the_engine(size):
    batch = of_units(records(11), size)
    assert np.bincount(batch["unit"].numpy()).max() == size
    assert int(batch["last"].sum()) == int(batch["unit"].max()) + 1
    (seen,) = releases(Build(), bytes(32), [batch], noise_multiplier=0.0)
    assert np.abs(seen - clipped_sum(batch)).max() < 1e-5


def test_a_planted_unit_is_seen_as_one_clip_or_as_many():
    place = host(40, Lora())
    batch = place.units(np.array([3, 7]), 4)
    assert batch["unit"].tolist() == [0, 1] * 4
    assert batch["last"].tolist() == [False] * 6 + [True] * 2
    canary = canary_whitebox.Canary(unit=PrivacyUnit("patient", 3))
    (build,) = OF_UNITS.values()
    sums = {
        name: canary_whitebox.train(
            made, PoissonGaussian(1e-6, 0.5, 2), bytes(32), 40, canary.lora, canary.records
        )
        for name, made in (("shipped", Build()), ("broken", build))
    }
    for name, most in (("shipped", 1.0), ("broken", 3.0)):
        drawn = sums[name].sums[sums[name].drawn]
        assert np.allclose(drawn, most, atol=1e-3)
