"""docs/quickstart.md as it is printed: every command is run, in order, on a tiny model."""

import csv
import json
import re

import pytest
from walking import shell_blocks, walk


@pytest.fixture(scope="module")
def walked(tmp_path_factory, tiny_bert):
    """Where the commands ran, and exit code and output of each."""
    place = tmp_path_factory.mktemp("walk")
    return place, walk("quickstart.md", place, tiny_bert, "--simulate")


def said(walked, command):
    (found,) = [text for line, (_, text) in walked[1].items() if line.split()[1] == command]
    return found


def test_it_takes_at_most_six_commands_and_an_installation_is_one_of_them():
    first = shell_blocks("quickstart.md")[0]
    assert len(first) <= 6
    assert [line.split()[0] for line in first] == ["pip", *["fedtree-secure"] * (len(first) - 1)]
    assert [line.split()[1] for line in first[1:]] == ["init", "check", "run", "report", "gate"]


def test_every_command_ends_well(walked):
    assert {line: code for line, (code, _) in walked[1].items() if code} == {}
    assert len(walked[1]) == 9


def test_what_it_promises_is_there(walked):
    place, _ = walked
    assert "passed: epsilon at most 7.9" in said(walked, "gate")
    assert "No error was found" in said(walked, "check")
    assert (place / "runs" / "first" / "report" / "report.html").is_file()
    assert "Next: fedtree-secure check clinics.toml" in said(walked, "init")


def test_predict_measures_what_the_run_measured(walked):
    """The adapter that was delivered is the model that was evaluated."""
    place, _ = walked
    rows = list(csv.DictReader((place / "heart.csv").read_text("utf-8").splitlines()))
    summary = json.loads((place / "runs" / "first" / "summary.json").read_text())
    metric = summary["clients"]["heart"]["metric"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / len(rows) == metric["value"]
    assert {row["predicted"] for row in rows} <= {"routine", "soon", "urgent"}
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)


def test_the_cost_that_check_names_is_near_the_cost_of_the_run(walked):
    """Bytes; minutes depend on what else the machine does."""
    told = int(re.search(r"about (\d+) kB sent by a client", said(walked, "check"))[1])
    summary = json.loads((walked[0] / "runs" / "first" / "summary.json").read_text())
    sent = summary["clients"]["heart"]["bytes_sent"] / 1e3
    assert sent / 1.5 < told < sent * 1.5


def test_compare_names_each_client_in_both_runs(walked):
    shown = said(walked, "compare")
    assert "runs/try against runs/first: higher for" in shown
    assert re.search(r"rounds +4 +1\b", shown)
    assert re.search(r"training.head_steps +100 +0\b", shown)
    for client in ("heart", "bones", "skin"):
        assert client in shown
