"""`fedtree-secure audit`: audits are found by name, and the worst verdict counts."""

import json

import pytest
from command_line import call

from fedtree_secure.cli import audit as auditing


def test_audits_are_found_by_name(job_file, tmp_path, capsys):
    run = tmp_path / "runs" / "first"
    assert call("run", job_file, "--out", run) == 0
    assert call("audit", "ledger", "--run", run) == 0
    assert "PASS" in capsys.readouterr().out
    assert (run / "audits" / "ledger.md").exists()


def test_a_misspelt_audit_is_refused_with_a_suggestion(tmp_path, capsys):
    assert call("audit", "ledgr", "--run", tmp_path) == 2
    assert "did you mean 'ledger'" in " ".join(capsys.readouterr().err.split())


def test_all_audits_write_one_page(job_file, tmp_path, capsys, monkeypatch):
    run = tmp_path / "runs" / "first"
    assert call("run", job_file, "--out", run, "--auditable", "--canaries", 20) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Auditable: no epsilon, but data" in shown
    found = auditing.installed_audits("all")
    quick = {
        name: found[name] for name in ("artefacts", "disclosure", "ledger", "secagg_transcript")
    }
    monkeypatch.setattr(
        auditing, "installed_audits", lambda name: quick if name == "all" else {name: found[name]}
    )
    assert call("audit", "all", "--run", run) == 0
    assert "all.md" in capsys.readouterr().out.replace("\n", "")
    page = (run / "audits" / "all.md").read_text()
    assert page.startswith("# Audits of run ")
    assert "| regurgitation of training data | not run |" in page
    assert json.loads((run / "audits" / "all.json").read_text())["verdict"] == "PASS"
    adapter = run / "adapters" / "t0-c0" / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace('"r": ', '"r": 1'))
    assert call("audit", "all", "--run", run) == 1
    assert (
        "adapters/t0-c0/adapter_config.json: not what was delivered; changed: r"
        in (run / "audits" / "all.md").read_text()
    )


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 2], 2), ([2, 1, 0], 1), ([], 2)])
def test_the_worst_verdict_counts(codes, code):
    assert auditing.worst(codes) == code
