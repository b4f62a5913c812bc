"""`gate`: each exit code from a real run, and nothing that cannot be read is a pass."""

import json
import shutil

import pytest
from small_jobs import federation, make_clients

from fedtree_audits import audit
from fedtree_secure.cli.evidence import _identities
from fedtree_secure.errors import ConfigurationError, RunStopped
from fedtree_secure.report.evidence import write_report
from fedtree_secure.report.exit_codes import SEVERITY, Exit, worst
from fedtree_secure.report.gate import Limits, RequiredAudits, decide, read_required
from fedtree_secure.report.manifest import write_manifest

LEDGER = RequiredAudits(("ledger",))


def sign(folder):
    write_report(folder, _identities(folder))


def resign(folder):
    run = json.loads((folder / "job.json").read_text())["run"]
    write_manifest(folder, run, _identities(folder))


def edit_json(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def gravest(folder, limits):
    found = decide(folder, limits)
    return found.code, found.troubles[0].said if found.troubles else ""


def test_a_run_within_its_limits_passes(finished):
    found = decide(finished, Limits(max_epsilon=8, max_delta=1e-3))
    assert found.code is Exit.OK == 0
    assert found.troubles == ()
    claimed = json.loads((finished / "summary.json").read_text())["clients"]
    assert found.epsilon.keys() == claimed.keys()
    for name, epsilon in found.epsilon.items():
        assert epsilon == pytest.approx(claimed[name]["epsilon_spent"], abs=1e-3)


def test_codes_are_those_that_pipelines_know():
    codes = {code.name: int(code) for code in Exit}
    assert codes == {
        "OK": 0,
        "USAGE": 2,
        "BUDGET": 10,
        "AUDIT": 11,
        "SIGNATURE": 12,
        "PROTOCOL": 13,
        "INCONCLUSIVE": 14,
    }
    assert set(SEVERITY) == set(Exit) - {Exit.OK, Exit.USAGE}
    assert worst([]) is Exit.OK
    assert worst([Exit.INCONCLUSIVE, Exit.AUDIT, Exit.SIGNATURE]) is Exit.SIGNATURE


def test_10_epsilon_above_what_is_allowed(finished):
    code, said = gravest(finished, Limits(max_epsilon=7.9))
    assert code is Exit.BUDGET
    assert "above 7.9, max-epsilon" in said


def test_10_delta_above_what_is_allowed(finished):
    code, said = gravest(finished, Limits(max_epsilon=8, max_delta=9e-4))
    assert code is Exit.BUDGET
    assert "delta is 0.001, above 0.0009" in said


def test_10_a_delta_that_publishes_a_record(run):
    edit_json(run / "job.json", lambda job: job["clients"]["t0-c0"].update(records=1000))
    resign(run)
    code, said = gravest(run, Limits(max_epsilon=8))
    assert code is Exit.BUDGET
    assert "not below 1/1000" in said


def test_11_an_audit_that_fails_though_nobody_required_it(audited, run):
    other = shutil.copytree(run, run.parent / "other")
    edit_json(
        other / "summary.json", lambda found: found["clients"]["t0-c0"].update(epsilon_spent=1.0)
    )
    assert audit(other, "ledger").verdict == "FAIL"
    shutil.copytree(other / "audits", run / "audits")
    sign(run)
    code, said = gravest(run, Limits(max_epsilon=8))
    assert code is Exit.AUDIT
    assert "claimed 1.0000" in said


def test_12_a_changed_file(run):
    path = run / "adapters" / "t0-c0" / "fedtree.json"
    path.write_text(path.read_text().replace("class-0", "class-9"))
    code, said = gravest(run, Limits(max_epsilon=1))  # the budget is exceeded, too
    assert code is Exit.SIGNATURE
    assert said.startswith("adapters/t0-c0/fedtree.json")


def test_12_a_summary_that_claims_less_than_its_ledger(run):
    edit_json(
        run / "summary.json", lambda found: found["clients"]["t0-c0"].update(epsilon_spent=1.0)
    )
    resign(run)
    code, said = gravest(run, Limits(max_epsilon=8))
    assert code is Exit.SIGNATURE
    assert "t0-c0: epsilon by its ledger is 7.99" in said


def test_12_a_required_audit_that_nobody_signed(audited_run):
    code, said = gravest(audited_run, Limits(max_epsilon=8, audits=LEDGER))
    assert code is Exit.SIGNATURE
    assert "nobody signed it" in said
    sign(audited_run)
    assert decide(audited_run, Limits(max_epsilon=8, audits=LEDGER)).code is Exit.OK


def test_12_a_ledger_that_is_gone(run):
    (run / "ledgers" / "t0-c1.sqlite").unlink()
    resign(run)
    assert decide(run, Limits(max_epsilon=8)).code is Exit.SIGNATURE


def test_13_a_run_that_was_stopped(tiny_bert, tmp_path):
    class Stopping:
        def __init__(self, inner):
            self.inner = inner

        def exchange(self, stage, requests):
            if stage == "tree":
                raise RunStopped("by the test")
            return self.inner.exchange(stage, requests)

    with pytest.raises(RunStopped):
        federation(tiny_bert, rounds=1).run(
            make_clients(tasks=1), tmp_path / "run", wrap_transport=Stopping
        )
    code, said = gravest(tmp_path / "run", Limits(max_epsilon=8))
    assert code is Exit.PROTOCOL
    assert "not finished" in said


def test_13_a_simulation_unless_it_is_allowed(run):
    edit_json(run / "job.json", lambda job: job.update(simulate=True))
    resign(run)
    code, said = gravest(run, Limits(max_epsilon=8))
    assert code is Exit.PROTOCOL
    assert "simulation" in said
    assert decide(run, Limits(max_epsilon=8, simulations=True)).code is Exit.OK


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda found: found["rounds"][-1]["opened"].update(node=["t0-c0", "t0-c1"]),
            "opened a sum over 2 clients",
        ),
        (
            lambda found: found["layers"][0]["released"].append(["t0-c0"]),
            "has an opened group of 1",
        ),
        (lambda found: found["rounds"].clear(), "0 of 1 rounds"),
        (lambda found: found.pop("layers"), "cannot be read as a run's"),
    ],
)
def test_13_what_no_honest_run_leaves_behind(run, change, told):
    edit_json(run / "summary.json", change)
    resign(run)
    code, said = gravest(run, Limits(max_epsilon=8))
    assert code is Exit.PROTOCOL
    assert told in said


def test_14_a_required_audit_that_did_not_run(finished):
    code, said = gravest(finished, Limits(max_epsilon=8, audits=LEDGER))
    assert code is Exit.INCONCLUSIVE
    assert said == "audit ledger is required and did not run"


def test_14_a_required_audit_that_lacked_evidence(run):
    other = shutil.copytree(run, run.parent / "other")
    (other / "ledgers" / "t0-c0.sqlite").unlink()
    assert audit(other, "ledger").verdict == "INCONCLUSIVE"
    shutil.copytree(other / "audits", run / "audits")
    sign(run)
    code, said = gravest(run, Limits(max_epsilon=8, audits=LEDGER))
    assert code is Exit.INCONCLUSIVE
    assert "there is no ledger here" in said
    assert decide(run, Limits(max_epsilon=8)).code is Exit.OK  # nobody asked for it


def test_14_a_pass_that_belongs_to_other_files(audited_run):
    edit_json(audited_run / "summary.json", lambda found: found.update(device="another"))
    resign(audited_run)
    sign(audited_run)
    code, said = gravest(audited_run, Limits(max_epsilon=8, audits=LEDGER))
    assert code is Exit.INCONCLUSIVE
    assert said == "audit ledger looked at other files than those here: summary.json"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found.update(hashes={}), "does not say which files it read"),
        (
            lambda found: found.update(
                power={"claim": 8.0, "detected": 20.0, "quantity": "epsilon"}
            ),
            "could not have seen enough",
        ),
        (
            lambda found: found.update(
                power={"claim": 8.0, "detected": None, "quantity": "epsilon"}
            ),
            "could not have seen enough",
        ),
    ],
)
def test_14_an_audit_that_proves_too_little(audited_run, change, told):
    edit_json(audited_run / "audits" / "ledger.json", change)
    sign(audited_run)
    wanted = RequiredAudits(("ledger",), {"ledger": 16.0})
    code, said = gravest(audited_run, Limits(max_epsilon=8, audits=wanted))
    assert code is Exit.INCONCLUSIVE
    assert told in said


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 9, "verdict": "PASS"}'])
def test_14_an_audit_that_cannot_be_read(run, text):
    (run / "audits").mkdir()
    (run / "audits" / "ledger.json").write_text(text)
    assert decide(run, Limits(max_epsilon=8)).code is Exit.INCONCLUSIVE


def test_a_decision_is_json(run):
    found = json.loads(json.dumps(decide(run, Limits(max_epsilon=1)).to_dict(), allow_nan=False))
    assert found["exit_code"] == 10
    assert not found["passed"]
    assert found["troubles"][0]["kind"] == "budget"


def test_required_audits_come_from_a_file(tmp_path):
    path = tmp_path / "required.toml"
    path.write_text('required = ["ledger", "lattice"]\n[detected]\nlattice = 4\n')
    assert read_required(path) == RequiredAudits(("ledger", "lattice"), {"lattice": 4})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('requird = ["ledger"]', "did you mean 'required'"),
        ("required = []", "must be a list of audits"),
        ('required = "ledger"', "must be a list of audits"),
        ("required = [1]", "must be a list of audits"),
        ('required = ["a"]\ndetected = {b = 1}', "for required audits"),
        ('required = ["a"]\ndetected = {a = true}', "table of numbers"),
        ("required", "cannot be read"),
    ],
)
def test_a_file_of_audits_that_says_something_else_is_refused(tmp_path, text, told):
    path = tmp_path / "required.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_required(path)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_limits_that_limit_nothing_are_refused(value):
    with pytest.raises(ConfigurationError, match="max-epsilon"):
        Limits(max_epsilon=value)
    with pytest.raises(ConfigurationError, match="max-delta"):
        Limits(max_epsilon=8, max_delta=value)
