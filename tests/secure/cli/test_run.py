"""`fedtree-secure run`: a job file of CSVs, where its stores lie, and what is refused."""

import json

import pytest
from command_line import call


def test_a_job_of_csv_files_runs_to_the_end(job_file, tmp_path, stores, capsys):
    out = tmp_path / "runs" / "first"
    assert call("run", job_file, "--out", out) == 0
    shown, told = capsys.readouterr()
    assert "first: round 1 of 1 is over; ε" in told
    assert all(line.isprintable() for line in told.splitlines())
    assert "t0-c0" in shown
    assert "tree.png" in shown.replace("\n", "")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clients"]["t1-c2"]["labels"] == ["class-0", "class-1"]
    for ledger in (stores / "t0-c0" / "store.sqlite", out / "ledgers" / "t0-c0.sqlite"):
        assert call("ledger", "verify", ledger) == 0
        assert "kept" in capsys.readouterr().out
        assert call("ledger", "show", ledger) == 0
        assert "fingerprint" in capsys.readouterr().out
    assert call("run", job_file, "--out", out) == 2
    assert "finished run" in " ".join(capsys.readouterr().err.split())


def test_state_puts_the_stores_elsewhere_and_quiet_shows_nothing(
    job_file, tmp_path, stores, capsys
):
    place = tmp_path / "elsewhere"
    assert call("run", job_file, "--out", tmp_path / "out", "--state", place, "--quiet") == 0
    assert capsys.readouterr().err == ""
    assert (place / "t0-c0" / "store.sqlite").exists()
    assert not stores.exists()


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
def test_bad_jobs_are_refused_before_a_store_is_made(
    job_file, tmp_path, stores, capsys, old, new, told
):
    job_file.write_text(job_file.read_text().replace(old, new))
    assert call("run", job_file, "--out", tmp_path / "runs" / "x") == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not stores.exists()
