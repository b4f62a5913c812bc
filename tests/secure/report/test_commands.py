"""`report`, `verify`, `gate` and `ledger` as they are typed, and the examples for pipelines."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedtree_dp import Gaussian, Ledger, PrivacyBudget
from fedtree_secure.cli.app import main
from fedtree_secure.client.data_sets import DataSets

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "ci"
pytest_plugins = ["fedtree_secure.report.pytest_gate"]


@pytest.fixture
def call(capsys):
    """Run a command; return its exit code and what it printed, errors included."""

    def run_command(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return stopped.value.code, shown.out + shown.err

    return run_command


def pem(path, key):
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


@pytest.fixture
def officer(tmp_path):
    return pem(tmp_path / "officer.pem", Ed25519PrivateKey.generate())


@pytest.fixture
def store(stores, tmp_path):
    """A data set's store, as an earlier run left it."""
    sets = DataSets(stores, tmp_path / "heads")
    with sets.opened("clinic", PrivacyBudget(8, 1e-5), ["a text"]) as ledger:
        ledger.charge(Gaussian(5.0), job="j", purpose="p")
    return sets.store_of("clinic")


@pytest.fixture
def shell(tmp_path):
    """Environment of a shell that finds our command."""
    command = tmp_path / "bin" / "fedtree-secure"
    command.parent.mkdir()
    command.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from fedtree_secure.cli.app import main; main()' "
        '"$@"\n'
    )
    command.chmod(0o700)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# --- verify, report, gate -------------------------------------------------------------------------


def test_verify_says_who_signed_and_what_changed(run, call):
    code, said = call("verify", run)
    assert code == 0
    assert "as 3 clients signed them" in said
    (digest,) = re.findall(r"[0-9a-f]{64}", said)
    assert call("verify", run, "--expect", digest)[0] == 0
    assert call("verify", run, "--expect", "0" * 64)[0] == 12
    (run / "summary.json").write_text("{}")
    code, said = call("verify", run)
    assert code == 12
    assert "changed: summary.json" in said


def test_verify_answers_in_json(run, call):
    code, said = call("verify", run, "--json")
    found = json.loads(said)
    assert (code, found["holds"], found["exit_code"]) == (0, True, 0)
    assert found["signers"] == ["t0-c0", "t0-c1", "t0-c2"]
    (run / "tree.png").unlink()
    code, said = call("verify", run, "--json")
    assert code == json.loads(said)["exit_code"] == 12
    assert json.loads(said)["findings"] == [
        {"file": "tree.png", "problem": "it was delivered and is gone"}
    ]


def test_audits_are_signed_by_a_report_and_then_the_gate_opens(audited_run, call, tmp_path):
    required = tmp_path / "required.toml"
    required.write_text('required = ["ledger", "artefacts"]')
    asked = ("gate", audited_run, "--max-epsilon", 8, "--audits", required)
    assert call(*asked)[0] == 12
    code, said = call("report", audited_run, "--facts", EXAMPLES / "facts.toml")
    assert code == 0
    assert "signed by 3 clients" in said
    code, said = call(*asked)
    assert code == 0
    assert "passed: epsilon at most 7.99" in said
    card = yaml.safe_load((audited_run / "report" / "privacy.yaml").read_text())
    assert card["deployment"]["basic"]["data_product_sector"] == "Healthcare"


def test_a_report_without_keys_says_that_nobody_signed(run, call):
    for key in run.glob("clients/*/identity.key"):
        key.unlink()
    code, said = call("report", run, "--no-names")
    assert code == 0
    assert "nobody signed" in said
    assert (run / "report" / "no-names" / "report.html").exists()
    assert call("verify", run)[0] == 0


def test_the_gate_ends_with_its_code_and_says_why(finished, call):
    code, said = call("gate", finished, "--max-epsilon", 2)
    assert code == 10
    assert "10 t0-c0: epsilon is 7.99" in said
    code, said = call("gate", finished, "--max-epsilon", 2, "--json")
    assert code == json.loads(said)["exit_code"] == 10


@pytest.mark.parametrize(
    "options",
    [
        ("--max-epsilon", "x"),
        ("--max-epsilon", "0"),
        ("--max-epsilon", "8", "--max-delta", "2"),
        ("--max-epsilon", "8", "--audits", "nowhere.toml"),
        ("--max-epsilon", "8", "--expect", "abc"),
        ("--max-epsilom", "8"),
        (),
    ],
)
def test_usage_errors_of_the_gate_end_with_2(finished, call, options):
    assert call("gate", finished, *options)[0] == 2


@pytest.mark.parametrize("command", [("verify",), ("gate", "--max-epsilon", "8"), ("report",)])
def test_what_is_no_run_is_refused_and_left_alone(tmp_path, call, command):
    name, *options = command
    assert call(name, tmp_path / "nowhere", *options)[0] == 2
    assert not (tmp_path / "nowhere").exists()


# --- ledgers --------------------------------------------------------------------------------------


def test_all_ledgers_of_a_folder_are_verified_at_once(run, store, stores, call):
    code, said = call("ledger", "verify", run)
    assert code == 0
    assert said.count("kept") == 3
    code, said = call("ledger", "verify", stores)
    assert code == 0
    assert "clinic" in said
    data = bytearray((run / "ledgers" / "t0-c1.sqlite").read_bytes())
    data[data.index(b'"noise_multiplier"') + 20] ^= 1
    (run / "ledgers" / "t0-c1.sqlite").write_bytes(data)
    code, said = call("ledger", "verify", run / "ledgers")
    assert code == 12
    assert said.count("kept") == 2


def test_a_folder_without_ledgers_is_refused(tmp_path, call):
    assert call("ledger", "verify", tmp_path)[0] == 2


def test_a_checkpoint_beside_a_ledger_is_compared(run, call):
    shutil.copy(run / "ledgers" / "t0-c0.sqlite", run / "ledgers" / "t0-c1.sqlite")
    assert call("ledger", "verify", run)[0] == 12


def test_a_budget_is_set_with_a_signature(store, stores, officer, call):
    asked = ("ledger", "set-budget", "clinic", "--delta", "1e-5", "--reason", "r", "--key")
    code, said = call(*asked, officer, "--epsilon", 2)
    assert code == 0
    assert "budget ε 8 at δ = 1e-05 becomes ε 2 at δ = 1e-05" in said
    assert call(*asked, officer, "--epsilon", 0.5)[0] == 0
    code, said = call("ledger", "verify", stores)
    assert code == 10  # .5 is less than was spent
    assert "EXCEEDED" in said
    with Ledger.inspect(store) as ledger:
        kinds = [entry.kind for entry in ledger.entries()]
    assert kinds == ["opened", "charge", "signed-budget", "signed-budget"]
    assert call(*asked, pem(officer, Ed25519PrivateKey.generate()), "--epsilon", 9)[0] == 2
    with Ledger.inspect(store) as ledger:
        assert ledger.budget.epsilon == 0.5


def test_a_budget_needs_a_key_that_is_one(store, tmp_path, officer, call):
    asked = ("ledger", "set-budget", "clinic", "--epsilon", 9, "--delta", 1e-5, "--reason", "r")
    other = pem(tmp_path / "other.pem", X25519PrivateKey.generate())
    (tmp_path / "junk.pem").write_text("secret words")
    (tmp_path / "junk.pem").chmod(0o600)
    for path in (other, tmp_path / "junk.pem", tmp_path / "gone.pem"):
        code, said = call(*asked, "--key", path)
        assert code == 2
        assert "secret words" not in said
    officer.chmod(0o644)
    assert "chmod 600" in " ".join(call(*asked, "--key", officer)[1].split())
    assert call(*asked)[0] == 2
    with Ledger.inspect(store) as ledger:
        assert len(ledger.entries()) == 2


def test_a_misspelt_data_set_is_suggested_and_no_store_is_made(store, stores, officer, call):
    asked = ("--epsilon", 9, "--delta", 1e-5, "--reason", "r", "--key", officer)
    code, said = call("ledger", "set-budget", "clinik", *asked)
    assert code == 2
    assert "did you mean 'clinic'" in " ".join(said.split())
    assert not (stores / "clinik").exists()
    assert call("ledger", "set-budget", "../clinic", *asked)[0] == 2


# --- examples/ci ----------------------------------------------------------------------------------


def test_the_steps_of_the_workflow_pass_on_a_signed_run(audited_run, shell, call, tmp_path):
    shutil.copytree(EXAMPLES, tmp_path / "here" / "examples" / "ci")
    required = tmp_path / "here" / "examples" / "ci" / "required.toml"
    required.write_text(required.read_text().replace(', "disclosure"', ""))  # not run here
    call("report", audited_run)
    manifest = json.loads(call("verify", audited_run, "--json")[1])["manifest_sha256"]
    workflow = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    steps = [step for step in workflow["jobs"]["gate"]["steps"] if "fedtree" in step.get("run", "")]
    assert [step["name"] for step in steps] == ["Verify signatures", "Decide"]
    assert set(workflow["jobs"]["gate"]["env"]) == {"RUN", "MANIFEST"}
    environment = shell | {"RUN": str(audited_run), "MANIFEST": manifest}
    for step in steps:
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=tmp_path / "here",
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "here" / "gate.json").read_text())["passed"]


def test_the_nightly_script_ends_with_the_code_of_a_run_that_does_not_pass(run, shell):
    done = subprocess.run(
        ["sh", EXAMPLES / "nightly.sh", run.parent, "8"],
        env=shell,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 14, done.stdout + done.stderr  # no audit ran
    assert "inconclusive (14)" in done.stdout
    assert json.loads((run.parent / "run.gate.json").read_text())["exit_code"] == 14


def test_the_fixture_fails_a_test_and_says_why(finished, privacy_gate):
    from fedtree_secure.report.gate import Limits

    assert privacy_gate(finished, Limits(max_epsilon=8)).code == 0
    with pytest.raises(pytest.fail.Exception, match="above 2, max-epsilon"):
        privacy_gate(str(finished), Limits(max_epsilon=2))


def test_the_example_of_a_release_test_runs(finished, shell):
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    done = subprocess.run(
        [*asked, EXAMPLES / "test_release.py"],
        env=shell | {"RUN": str(finished)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "audit disclosure is required and did not run" in done.stdout
