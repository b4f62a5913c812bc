"""Files changed after a run: each is named, with the entry in it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedtree_audits.checks import artefacts, ledger
from fedtree_audits.rigs import specimen
from fedtree_audits.run_folder import open_run
from fedtree_audits.statistics.verdict import Verdict
from fedtree_secure.testing import Canaries, write_manifest


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def delivered(tmp_path):
    folder = specimen.build_run(tmp_path / "run", ledgers=False)
    specimen.deliver(folder)
    return folder


def failed(result):
    assert result.verdict is Verdict.FAIL
    return {check.name: check.detail for check in result.checks if not check.holds}


def test_a_tensor_of_a_real_adapter_is_named(copy):
    path = copy / "adapters" / "t0-c0" / "adapter_model.safetensors"
    tensors = load_file(path)
    changed = min(name for name in tensors if "lora_B" in name)
    tensors[changed] = tensors[changed] + np.float32(1e-6)
    save_file(tensors, path, metadata={"format": "pt"})
    assert failed(artefacts.AUDIT.audit(copy)) == {
        "adapters/t0-c0/adapter_model.safetensors": f"not what was delivered; changed: {changed}"
    }


def test_a_line_of_a_real_transcript_is_named(copy):
    path = copy / "transcript.txt"
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace(lines[7].split()[5], "0" * 64)
    path.write_text("".join(lines))
    assert failed(artefacts.AUDIT.audit(copy)) == {
        "transcript.txt": "not what was delivered; changed: line 8",
        "messages": "differ from their line: 7 (join of t1-c0)",  # the run kept every message
    }


def test_a_setting_of_a_real_job_is_named(copy):
    described = json.loads((copy / "job.json").read_text())
    described["job"]["privacy"]["epsilon"] = 4.0
    (copy / "job.json").write_text(json.dumps(described))
    assert failed(artefacts.AUDIT.audit(copy)) == {
        "job.json": "not what was delivered; changed: job.privacy"
    }


def test_an_upload_that_no_line_shows_is_named(copy):
    summary = json.loads((copy / "summary.json").read_text())
    summary["rounds"].append(
        {"round": 9, "opened": dict(summary["rounds"][0]["opened"]), "closed": [], "error": ""}
    )
    (copy / "summary.json").write_text(json.dumps(summary))
    told = failed(artefacts.AUDIT.audit(copy))
    assert set(told) == {"summary.json", "uploads behind the sums"}
    assert "in round 9" in told["uploads behind the sums"]


def test_a_run_without_a_manifest_is_inconclusive_and_says_so(copy):
    (copy / "manifest.json").unlink()
    result = artefacts.AUDIT.audit(copy)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "manifest.json" in result.missing[0]


def test_a_transcript_that_is_no_transcript_fails(delivered):
    (delivered / "transcript.txt").write_text(
        "number sender\n1 c0 server round-0/mask many 0\nnothing\n"
    )
    told = failed(artefacts.AUDIT.audit(delivered))
    assert told["transcript lines"] == "2 lines; broken: 1, 2"


def test_a_message_is_named_by_its_line(delivered):
    data = bytearray((delivered / "messages.bin").read_bytes())
    data[16 + 64 + 3] ^= 1
    (delivered / "messages.bin").write_bytes(data + b"more")
    told = failed(artefacts.AUDIT.audit(delivered))
    assert (
        told["messages"]
        == "differ from their line: 3 (round-0/mask of c1), bytes behind the last one"
    )


def test_canaries_that_were_not_committed_to_are_named(delivered):
    found = Canaries(("a", "b"), (0, 1), (True, False), "00" * 32)
    found.save(delivered / "clients" / "c0" / "canaries.json")
    (delivered / "commitments.json").write_text(json.dumps({"c0": found.commitment, "c1": "gone"}))
    write_manifest(
        delivered, specimen.RUN, {name: specimen.identity(name) for name in specimen.CLIENTS}
    )
    result = artefacts.AUDIT.audit(delivered)
    assert result.verdict is Verdict.PASS
    assert any(check.name == "canaries of c0" for check in result.checks)
    Canaries(("a", "b"), (0, 1), (False, True), "00" * 32).save(
        delivered / "clients" / "c0" / "canaries.json"
    )
    write_manifest(
        delivered, specimen.RUN, {name: specimen.identity(name) for name in specimen.CLIENTS}
    )
    assert set(failed(artefacts.AUDIT.audit(delivered))) == {"canaries of c0"}


def test_a_manifest_of_another_run_fails(delivered):
    found = json.loads((delivered / "manifest.json").read_text())
    found["run"] = "another"
    (delivered / "manifest.json").write_text(json.dumps(found))
    assert {"run", "signature of c0"} <= set(failed(artefacts.AUDIT.audit(delivered)))


def test_a_client_that_did_not_sign_is_named(delivered):
    found = json.loads((delivered / "manifest.json").read_text())
    del found["signatures"]["c3"]
    (delivered / "manifest.json").write_text(json.dumps(found))
    assert failed(artefacts.AUDIT.audit(delivered)) == {"signature of c3": "it did not sign"}


def test_a_checkpoint_of_a_client_without_a_key_fails(tmp_path):
    folder = specimen.build_run(tmp_path / "run")
    roster = json.loads((folder / "roster.json").read_text())
    del roster["clients"]["c0"]
    (folder / "roster.json").write_text(json.dumps(roster))
    checks = ledger.audit_run(open_run(folder)).checks
    assert [check.name for check in checks if not check.holds] == ["c0: signed checkpoint"]
