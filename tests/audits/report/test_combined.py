"""The page that combines all audits, its list of attack classes, and the published schemas."""

import json

import msgspec
import pytest

from fedtree_audits.command import NAMES
from fedtree_audits.report import combined, schema
from fedtree_audits.report.page import write
from fedtree_audits.statistics.verdict import Check, Power, Result

GOOD = Check("c", holds=True, detail="fine", p_value=0.5)
BAD = Check("c", holds=False, detail="leaks | much")
EDPB = {
    "membership inference",
    "attribute inference",
    "exfiltration",
    "regurgitation of training data",
    "model inversion",
    "reconstruction attacks",
}


def result(name="ledger", **changes):
    given = {
        "audit": name,
        "question": "Does it?",
        "claim": "epsilon 2",
        "adversary": "server",
        "assumptions": ("a",),
        "checks": (GOOD,),
        "hashes": {"job.json": "00", "key commitment": "11"},
    }
    return Result(**{**given, **changes})


def combine(*results):
    return combined.combine({r.audit: r.to_dict() for r in results}, {}, "run")


def statuses(data):
    return {item["attack"]: item["status"] for item in data["attack_classes"]}


def test_every_class_of_the_opinion_is_listed_once():
    assert {item.attack for item in combined.ATTACK_CLASSES} == EDPB
    assert len(combined.ATTACK_CLASSES) == len(EDPB)


def test_a_class_is_executed_when_an_audit_that_stands_for_it_gave_an_answer():
    assert set(statuses(combine()).values()) == {"not run", "out of scope"}
    data = combine(
        result("canary_whitebox"), result("disclosure", missing=("summary.json",), checks=())
    )
    assert statuses(data)["membership inference"] == "executed"
    assert statuses(data)["reconstruction attacks"] == "not run"  # its audit was inconclusive
    assert (
        statuses(combine(result("disclosure", checks=(BAD,))))["reconstruction attacks"]
        == "executed"
    )
    assert statuses(combine(*(result(name) for name in NAMES)))["exfiltration"] == "out of scope"


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ((), 2),
        ((result("a"), result("b")), 0),
        ((result("a"), result("b", checks=())), 2),
        ((result("a", checks=(BAD,)), result("b", checks=())), 1),
    ],
)
def test_the_worst_verdict_is_that_of_all(results, code):
    data = combine(*results)
    assert data["exit_code"] == code
    schema.check(data, schema.Combined)


def test_the_page_says_claim_power_failures_and_what_is_missing():
    power = Power(2.0, 3.0, "simulated", limit=4.0, quantity="bias")
    page = combined.markdown(
        combine(result("a", power=power), result("b", checks=(BAD,), missing=("no ledger",)))
    )
    for words in (
        "# Audits of run run: FAIL",
        "[a](a.md)",
        "epsilon 2",
        "a bias of 3 would have been noticed",
        "b: c: leaks",
        "b: no ledger",
        "| membership inference | not run |",
    ):
        assert words in page
    assert "anonym" not in page.lower()


def test_reports_in_a_folder_become_one_page(tmp_path):
    for made in (result("a"), result("b", power=Power(1.0, float("inf"), "none"))):
        write(made, tmp_path / "audits")
    write(result("older", checks=(BAD,)), tmp_path / "audits")
    verdict, code, page = combined.write_combined(tmp_path, ["a", "b"])
    assert (verdict, code) == ("INCONCLUSIVE", 2)
    assert "nothing would have been noticed" in page.read_text()
    data = json.loads((tmp_path / "audits" / "all.json").read_text())
    schema.check(data, schema.Combined)
    assert [item["audit"] for item in data["audits"]] == ["a", "b"]


def test_the_published_schemas_are_those_of_the_types():
    for name in schema.PUBLISHED:
        assert json.loads((schema.FOLDER / f"{name}.json").read_text()) == schema.document(name), (
            "run -m ...schema"
        )


def test_a_schema_notices_what_is_missing_unknown_or_of_another_type():
    data = result(power=Power(1.0, 2.0, "how"), figures={"x": float("nan"), "y": (1, 2)}).to_dict()
    schema.check(data)
    assert data["figures"] == {"x": None, "y": [1, 2]}
    for broken in (
        {**data, "schema": 2},
        {**data, "verdict": "PASSED"},
        {**data, "more": 1},
        {key: value for key, value in data.items() if key != "claim"},
        {**data, "checks": [{"name": "c", "holds": 1, "detail": "", "p_value": None}]},
    ):
        with pytest.raises(msgspec.ValidationError):
            schema.check(broken)


def test_figures_of_numpy_become_json():
    import numpy as np

    data = result(
        figures={"a": np.float64(1.5), "b": np.arange(2), "c": np.bool_(True), "d": {1: np.inf}}
    ).to_dict()
    assert data["figures"] == {"a": 1.5, "b": [0, 1], "c": True, "d": {"1": None}}
