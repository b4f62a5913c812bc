"""docs/commands.md as it is printed: every command is run, in order, on a tiny model."""

import json

import pytest
from walking import walk


@pytest.fixture(scope="module")
def walked(tmp_path_factory, tiny_bert):
    """Where the commands ran, and exit code and output of each."""
    place = tmp_path_factory.mktemp("walk")
    return place, walk("commands.md", place, tiny_bert, "run")


def said(walked, beginning):
    (found,) = [text for line, (_, text) in walked[1].items() if beginning in line]
    return found


def test_every_command_ends_well(walked):
    assert {line: found for line, found in walked[1].items() if found[0]} == {}
    assert len(walked[1]) == 9


def test_what_it_promises_is_there(walked):
    place, _ = walked
    assert (place / "plan.png").read_bytes().startswith(b"\x89PNG")
    events = [json.loads(line)["event"] for line in (place / "runs.jsonl").read_text().splitlines()]
    assert "round" in events
    assert "rounds" in said(walked, "--noise 1")
    assert "heart" in said(walked, "ledger verify")
    assert "PASS" in said(walked, "audit disclosure")
    assert "as 3 clients signed them" in said(walked, "fedtree-secure verify")
