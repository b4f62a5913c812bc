"""The rule that decides, and what pages say."""

import math

import pytest

from fedtree_audits.report.page import markdown
from fedtree_audits.statistics.verdict import Check, Power, Result, Verdict, holm, overall


def result(**changes):
    given = {
        "audit": "x",
        "question": "Does it?",
        "claim": "epsilon 2",
        "adversary": "server",
        "assumptions": ("a",),
        "checks": (Check("c", holds=True, detail="fine"),),
    }
    return Result(**{**given, **changes})


BAD = Check("c", holds=False, detail="leaks")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.PASS),
        ({"checks": (BAD,)}, Verdict.FAIL),
        ({"checks": (BAD,), "missing": ("m",)}, Verdict.FAIL),
        ({"missing": ("no ledger",)}, Verdict.INCONCLUSIVE),
        ({"checks": ()}, Verdict.INCONCLUSIVE),
        ({"controls": {"no noise": False}}, Verdict.INCONCLUSIVE),
        ({"controls": {"no noise": True}}, Verdict.PASS),
        ({"power": Power(2.0, 4.0, "")}, Verdict.PASS),
        ({"power": Power(2.0, 4.1, "")}, Verdict.INCONCLUSIVE),
        ({"power": Power(math.inf, math.inf, "")}, Verdict.INCONCLUSIVE),
    ],
)
def test_the_rule(changes, verdict):
    assert result(**changes).verdict is verdict


def test_exit_codes():
    assert [v.exit_code for v in (Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE)] == [0, 1, 2]


def test_p_values_decide_at_one_in_a_million():
    assert Check.test("t", 1.1e-6, "").holds
    assert not Check.test("t", 0.9e-6, "").holds
    assert not Check.test("t", math.nan, "").holds


def test_the_worst_verdict_is_the_overall_one():
    fail, unsure, good = result(checks=(BAD,)), result(missing=("m",)), result()
    assert overall([good, unsure, fail]) is Verdict.FAIL
    assert overall([good, unsure]) is Verdict.INCONCLUSIVE
    assert overall([good]) is Verdict.PASS
    assert overall([]) is Verdict.INCONCLUSIVE


def test_holm_stops_at_the_first_that_holds():
    assert holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a": True, "b": False, "c": False}
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a": True, "b": True, "c": True}


def test_the_page_says_claim_missing_power_and_failures():
    page = markdown(
        result(checks=(BAD,), missing=("no ledger",), power=Power(2.0, 3.0, "simulated"))
    )
    for words in ("FAIL", "epsilon 2", "no ledger", "epsilon of 3", "| c | NO | exact | leaks |"):
        assert words in page
