"""Sites whose data sets have units: approved in words, admitted, and never mixed."""

import csv
import dataclasses
import logging

import pytest
from organisations import ONE, Organisations
from unit_rows import UNIT, patients

from fedtree_dp import Gaussian, Ledger, LedgerError, PrivacyUnit
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.site.approval import plan_for, statement_of
from fedtree_secure.site.check import check_site
from fedtree_secure.site.settings import load_site
from fedtree_secure.site.site import Site

NAME, PATIENT = "t0-c0", PrivacyUnit("patient_id", 4)


def write(path, given, names):
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label", *names])
        writer.writerows(zip(given["text"], given["label"], given["patient_id"], strict=True))


@pytest.fixture
def made(tmp_path, tiny_bert, backbone):
    """Return what makes three organisations, of which the first has units in a column."""

    def make(*, column="pid", **changes):
        training = dataclasses.replace(ONE["training"], records=20)
        found = Organisations(
            tmp_path / "made", tiny_bert, tasks=1, **{**ONE, "training": training, **changes}
        )
        place = found.site(NAME)
        for split, seed, first in (("train", 0, 0), ("test", 100, 500)):
            write(place / f"{split}.csv", patients(0, seed, first=first), [column])
        found.write_site(NAME, records=20, unit="pid")
        unit = changes.get("unit", "record")
        found.policies(backbone.frozen_digest.hex(), unit=unit)
        found.make_store(NAME)
        return found

    return make


def ledger_of(found):
    return Ledger.inspect(found.site(NAME) / "state" / NAME / "store.sqlite")


def joined(found, backbone, run="run-1"):
    message = wire.encode(wire.Join(found.terms(run).digest, backbone.digest))
    with Site.open(found.site(NAME)) as site:
        return site.handle(run, seal(found.server, run, NAME, 1, 0, message))


def test_a_job_with_units_is_approved_in_words_and_admitted(made, backbone):
    found = made(**UNIT)
    roster = found.roster
    with ledger_of(found) as ledger:
        plan = plan_for("t0-c0", found.job, ledger)
        said = " ".join(statement_of(NAME, found.job, roster, ledger, plan))
    assert "each patient_id of this site's training data with all its rows" in said
    assert "at most 4 are used" in said
    assert "declared number of patient_ids" in said
    ticked = {t.what: t for t in check_site(load_site(found.site(NAME)))}
    assert "declared as 20 units (column 'pid')" in ticked["rows"].detail
    found.approve(NAME)
    assert isinstance(wire.decode_reply(joined(found, backbone)), wire.Joined)
    with ledger_of(found) as ledger:
        assert ledger.unit == PATIENT
        assert ledger.events() == ()
    # started again, it says once more what it charges for
    with Site.open(found.site(NAME)) as site:
        site._admit("run-1", seal(found.server, "run-1", NAME, 2, 0, wire.encode(_join(found))))
        site.ledger.charge(Gaussian(90.0), job="run-1", purpose="a round")


def _join(found):
    return wire.Join(found.terms("run-1").digest, b"m" * 32)


@pytest.mark.parametrize(
    ("changes", "column", "said"),
    [
        ({}, "pid", "the job protects single records; set unit and max_per_unit in the job"),
        (UNIT, "patient", "train has no column 'pid'"),
    ],
)
def test_jobs_without_the_site_s_units_are_refused_and_leave_no_trace(
    made, backbone, caplog, changes, column, said
):
    found = made(column=column, **changes)
    found.approve(NAME)
    with caplog.at_level(logging.WARNING):
        reply = joined(found, backbone)
    assert wire.decode_reply(reply) == wire.Refused("policy")
    assert said in caplog.text
    with ledger_of(found) as ledger:
        assert [line.kind for line in ledger.entries()] == ["opened"]
        assert ledger.names("site/approved") == ()


def test_other_units_than_the_data_set_s_are_not_approved(made):
    found = made(**UNIT)
    path = found.site(NAME) / "state" / NAME / "store.sqlite"
    head = found.site(NAME) / "heads" / f"{NAME}.json"
    with Ledger.open(path, dataset=NAME, head=head) as ledger:
        ledger.use_unit(PrivacyUnit("stay_id", 4))
        with pytest.raises(LedgerError, match="units are not mixed on one data set"):
            plan_for("t0-c0", found.job, ledger)
