"""docs/events.md: its command runs, and its tables say what the code writes."""

import json
import re
import shlex
from pathlib import Path

import pytest
from command_line import call

from fedtree_secure.events import FACTS, SCHEMA
from fedtree_secure.metrics import METRICS
from fedtree_secure.report import advice

TEXT = (Path(__file__).parents[3] / "docs" / "events.md").read_text("utf-8")
CELL = re.compile(r"`([^`]+)`")


def table(title):
    """Names in the first two columns of a section's table."""
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    return {CELL.findall(row[1])[0]: set(CELL.findall(row[2])) for row in rows}


def test_every_event_and_fact_is_described():
    assert table("A line") == {event: set(facts) for event, facts in FACTS.items()}
    assert f"`schema` ({SCHEMA})" in TEXT


def test_every_advice_is_described():
    texts = [v for name, v in vars(advice).items() if name.isupper() and isinstance(v, str)]
    keys = {text for text in texts if "-" in text}
    assert set(table("Advice")) == keys
    assert len(keys) == 7


def test_every_metric_is_described():
    assert set(table("Metrics")) == set(METRICS)


@pytest.mark.usefixtures("stores")
def test_its_command_writes_what_it_says(job_file, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    program, *arguments = shlex.split(block)
    monkeypatch.chdir(tmp_path)
    job_file.rename(tmp_path / "clinics.toml")
    assert program == "fedtree-secure"
    assert call(*arguments) == 0
    assert capsys.readouterr().err == ""
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["started", "ended"]
    assert lines[-1]["code"] == 0
