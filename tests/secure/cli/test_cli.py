"""The command line as a person uses it: a job file of CSVs, budgets, ledgers, and errors in one
sentence.
"""

import json
import subprocess
import sys

import pytest
from small_jobs import make_clients

from fedtree_dp import Gaussian, Ledger, PrivacyBudget
from fedtree_secure.cli.app import main


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


@pytest.fixture
def job_file(tmp_path, tiny_bert):
    lines = [
        f'backbone = "{tiny_bert}"',
        "rounds = 1",
        "[privacy]",
        "epsilon = 6",
        "delta = 1e-3",
        "[training]",
        "records = 60",
        "sample_rate = 0.5",
        "head_steps = 4",
    ]
    for client in make_clients(each=3):
        for split in ("train", "test"):
            getattr(client, split).to_pandas().rename(
                columns={"text": "note", "label": "code"}
            ).to_csv(tmp_path / f"{client.id}-{split}.csv", index=False)
        lines += [
            "[[clients]]",
            f'id = "{client.id}"',
            f'train = "{client.id}-train.csv"',
            f'test = "{client.id}-test.csv"',
            'text = "note"',
            'label = "code"',
        ]
    path = tmp_path / "job.toml"
    path.write_text("\n".join(lines))
    return path


def test_a_job_of_csv_files_runs_to_the_end(job_file, tmp_path, capsys):
    assert call("run", job_file, "--out", tmp_path / "runs" / "first") == 0
    shown = capsys.readouterr().out
    assert "t0-c0" in shown
    assert "tree.png" in shown.replace("\n", "")
    summary = json.loads((tmp_path / "runs" / "first" / "summary.json").read_text())
    assert summary["clients"]["t1-c2"]["labels"] == ["class-0", "class-1"]
    ledger = tmp_path / "runs" / "ledgers" / "t0-c0.sqlite"
    assert call("ledger", "verify", ledger) == 0
    assert "kept" in capsys.readouterr().out
    assert call("ledger", "show", ledger) == 0
    assert "fingerprint" in capsys.readouterr().out
    assert call("run", job_file, "--out", tmp_path / "runs" / "first") == 2
    assert "finished run" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rounds = 1", "rouns = 1", "did you mean 'rounds'"),
        ("epsilon = 6", "epsilon = -6", "epsilon"),
        ('text = "note"', 'text = "nto"', "no column 'nto'"),
        ('"t0-c1-train.csv"', '"gone.csv"', "there is no file"),
        ("sample_rate = 0.5", "sample_rate = 0", "sample_rate"),
    ],
)
def test_bad_jobs_are_refused_with_exit_code_2(job_file, tmp_path, capsys, old, new, told):
    job_file.write_text(job_file.read_text().replace(old, new))
    assert call("run", job_file, "--out", tmp_path / "runs" / "x") == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs" / "ledgers").exists()


def test_budget_prices_a_plan(capsys):
    assert (
        call(
            "budget",
            "--epsilon",
            8,
            "--delta",
            "1e-5",
            "--records",
            1000,
            "--batch",
            200,
            "--rounds",
            10,
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "noise" in shown
    assert "200" in shown


def test_budget_refuses_a_delta_that_is_too_large(capsys):
    assert (
        call(
            "budget",
            "--epsilon",
            8,
            "--delta",
            "0.01",
            "--records",
            1000,
            "--batch",
            200,
            "--rounds",
            10,
        )
        == 2
    )
    assert "delta" in capsys.readouterr().err


def test_a_tampered_ledger_is_reported(tmp_path, capsys):
    path = tmp_path / "l.sqlite"
    with Ledger.open(path, dataset="a", budget=PrivacyBudget(epsilon=8, delta=1e-5)) as ledger:
        ledger.charge(Gaussian(5.0), job="j", purpose="p")
    data = bytearray(path.read_bytes())
    at = data.index(b'"noise_multiplier":5')
    data[at + len(b'"noise_multiplier":')] = ord("9")
    path.write_bytes(data)
    assert call("ledger", "verify", path) == 2
    assert "refused" in capsys.readouterr().err


def test_audits_are_found_by_name(job_file, tmp_path, capsys):
    assert call("run", job_file, "--out", tmp_path / "runs" / "first") == 0
    assert call("audit", "ledger", "--run", tmp_path / "runs" / "first") == 0
    assert "PASS" in capsys.readouterr().out
    assert (tmp_path / "runs" / "first" / "audits" / "ledger.md").exists()
    assert call("audit", "ledgr", "--run", tmp_path / "runs" / "first") == 2
    assert "did you mean 'ledger'" in " ".join(capsys.readouterr().err.split())


def test_all_audits_write_one_page(job_file, tmp_path, capsys, monkeypatch):
    from fedtree_secure.cli import audit as auditing

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
    from fedtree_secure.cli.audit import worst

    assert worst(codes) == code


def test_importing_the_command_line_loads_no_torch():
    slow = "'torch' in sys.modules or 'transformers' in sys.modules"
    code = f"import sys, fedtree_secure.cli.app; sys.exit({slow})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    import fedtree_secure

    assert sorted(fedtree_secure.__all__) == sorted(set(fedtree_secure.__all__))
    assert all(getattr(fedtree_secure, name) is not None for name in fedtree_secure.__all__)
    with pytest.raises(AttributeError):
        _ = fedtree_secure.nothing
