"""Events of an embedded run: what is written, in which order, and what never is."""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from small_jobs import Adversary, federation, make_clients, make_job

from fedtree_secure import ConfigurationError, RunStopped, Topology
from fedtree_secure.events import ALWAYS, FACTS, SCHEMA, Events
from fedtree_secure.report.advice import FEATURES
from fedtree_secure.storage import read_json

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]

from command_line import call, write_job  # noqa: E402

ONE = Topology(source="one_group")


class Troubled(Adversary):
    """One client gets bytes that are no message, and somebody presses Ctrl-C."""

    def exchange(self, stage, requests):
        if stage == "round-1/mask":
            requests = {**requests, "t0-c1": b"\xc1 no message"}
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return super().exchange(stage, requests)


@pytest.fixture(scope="module")
def told(tiny_bert, tmp_path_factory):
    """Run folder and events of a run that was stopped after a round, and went on."""
    place = tmp_path_factory.mktemp("events")
    path, out = place / "events.jsonl", place / "run"
    training = dataclasses.replace(make_job(tiny_bert).training, pooling="mean")
    job = federation(tiny_bert, rounds=2, topology=ONE, training=training)
    options = {"state": place / "state", "events": path, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        clients = make_clients(tasks=1, each=4)
        with pytest.raises(RunStopped):
            job.run(clients, out, wrap_transport=Troubled, **options)
        with path.open("a") as file:
            file.write('{"torn')  # as a process that is killed leaves it
        job.run(clients, out, resume=True, **options)
    return out, path


@pytest.fixture(scope="module")
def lines(told):
    text = told[1].read_text().splitlines()
    assert text.count('{"torn') == 1
    return [json.loads(line) for line in text if line != '{"torn']


def of(lines, event):
    return [line for line in lines if line["event"] == event]


def test_every_line_has_schema_time_event_and_documented_facts_alone(lines):
    assert {line["schema"] for line in lines} == {SCHEMA}
    assert len({line["run"] for line in lines}) == 1
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    for line in lines:
        assert set(line) <= {*ALWAYS, *FACTS[line["event"]]}, line["event"]


def test_a_run_that_was_stopped_and_resumed_is_told_in_one_file(lines):
    order = [x["event"] for x in lines if x["event"] in ("started", "tree", "round", "ended")]
    assert order == ["started", "tree", "round", "ended", "started", "tree", "round", "ended"]
    assert [line["resumed"] for line in of(lines, "started")] == [False, True]
    ends = [(line["state"], line["code"], line["error"]) for line in of(lines, "ended")]
    assert ends == [("stopped", 1, "RunStopped"), ("finished", 0, "")]
    (note,) = of(lines, "note")
    assert note["text"].startswith("stopping after ")


def test_what_began_is_told_with_public_settings_and_no_path(told, lines, tiny_bert):
    began = of(lines, "started")[0]
    assert began["settings"]["privacy"] == {"epsilon": 8, "delta": 1e-3}
    assert began["settings"]["backbone"] == tiny_bert.name
    assert began["clients"]["t0-c3"] == {"dataset": "t0-c3", "records": 60}
    assert str(tiny_bert.parent) not in told[1].read_text()


def test_a_round_is_told_with_epsilon_dropouts_bytes_and_seconds(told, lines):
    first, second = of(lines, "round")
    assert (first["round"], first["rounds"], first["error"]) == (1, 2, "")
    assert first["dropouts"] == {"t0-c1": "failed: WireError"}
    assert list(first["opened"].values()) == [3]
    assert second["dropouts"] == {}
    assert list(second["opened"].values()) == [4]
    summary = read_json(told[0] / "summary.json")["clients"]
    for name, epsilon in second["epsilon"].items():
        assert 0 <= first["epsilon"][name]["spent"] < epsilon["spent"] <= epsilon["allowed"] == 8
        assert epsilon["spent"] == pytest.approx(summary[name]["epsilon_spent"], abs=0.05)
    assert second["seconds"] > 0


def test_bytes_and_messages_are_those_of_the_transcript(told, lines):
    index = [line.split() for line in (told[0] / "transcript.txt").read_text().splitlines()[1:]]
    for found in of(lines, "round"):
        passed = [line for line in index if line[3].startswith(f"round-{found['round']}/")]
        received = sum(int(line[4]) for line in passed if line[2] == "server")
        sent = sum(int(line[4]) for line in passed if line[1] == "server")
        assert (found["bytes_out"], found["bytes_in"]) == (sent, received)
        assert found["messages"] == len(passed)


def test_a_stage_is_told_before_and_after_it(lines):
    stages = [line["stage"] for line in of(lines, "stage")]
    exchanges = [line["stage"] for line in of(lines, "exchange")]
    assert stages[:3] == ["loading the model", "reading rows, planning noise", "join"]
    assert [stage for stage in stages if stage in exchanges] == exchanges
    assert "evaluation" in stages
    (mask,) = [x for x in of(lines, "exchange") if x["stage"] == "round-1/mask"]
    assert mask["answered"] == ["t0-c0", "t0-c2", "t0-c3"]
    assert mask["missing"] == {"t0-c1": "failed: WireError"}


def test_the_tree_is_told_by_sizes(lines):
    for found in of(lines, "tree"):
        layers = found["layers"]
        assert layers == [{"layer": f"layer {n}", "groups": [4], "home": 0} for n in range(2)]


def test_advice_from_public_facts_is_told_and_no_other(told, lines):
    advice = read_json(told[0] / "summary.json")["advice"]
    assert {found["public"] for found in advice} == {True, False}  # the search has an object
    order = [line["event"] for line in lines]
    spent = order.index("exchange")
    shown = [(x["key"], x["text"]) for x in lines[spent:] if x["event"] == "advice"]
    assert shown == [(found["key"], found["text"]) for found in advice if found["public"]]


def test_what_public_numbers_say_of_adapters_is_told_once_before_anything_is_spent(lines):
    """Its head reads mean-pooled states."""
    order = [line["event"] for line in lines]
    before = lines[: order.index("exchange")]
    keys = [line["key"] for line in before if line["event"] == "advice"]
    notes = [line for line in before if line["event"] == "note"]
    assert keys == [FEATURES]
    assert not notes  # it is an event of its own
    again = lines[order.index("ended") :]
    told = [x["event"] for x in again[: [x["event"] for x in again].index("exchange")]]
    assert "advice" not in told


def test_nothing_that_was_measured_on_test_rows_is_told(told, lines):
    """By name and by value: each metric of the summary, to four digits."""
    text = told[1].read_text()
    for word in ("accuracy", "metric", "macro", "confusion", "loss", "norm_of", 'interval": ['):
        assert word not in text
    numbers = set()

    def collect(value):
        if isinstance(value, dict):
            for each in value.values():
                collect(each)
        elif isinstance(value, list):
            for each in value:
                collect(each)
        elif isinstance(value, float):
            numbers.add(round(value, 4))

    for line in lines:
        collect({key: value for key, value in line.items() if key not in ("time", "settings")})
    clients = read_json(told[0] / "summary.json")["clients"].values()
    private = {
        round(x, 4) for c in clients for x in (c["metric"]["macro_f1"], *c["metric"]["interval"])
    }
    assert private
    assert not private & numbers


# --- the file -------------------------------------------------------------------------------------


def test_an_event_or_fact_that_is_not_documented_cannot_be_written(tmp_path):
    events = Events(tmp_path / "e")
    with pytest.raises(ValueError, match="accuracy"):
        events("round", accuracy=0.9)
    with pytest.raises(ValueError, match="gradient"):
        events("gradient", norm=1.0)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("kind", ["folder", "missing", "pipe", "inside"])
def test_a_file_that_cannot_be_written_is_refused_before_anything(
    tmp_path, tiny_bert, stores, capsys, kind
):
    out, path = tmp_path / "runs" / "x", tmp_path / "there"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "inside":
        out.mkdir(parents=True)
    place = {"missing": tmp_path / "none" / "e", "inside": out / "e"}.get(kind, path)
    assert call("run", write_job(tmp_path, tiny_bert), "--out", out, "--events", place) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "events cannot be written to" in told
    assert not stores.exists()
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("bad", [3, b"path", True])
def test_events_that_are_no_path_are_refused(tiny_bert, tmp_path, bad):
    with pytest.raises(ConfigurationError, match=r"events is .*allowed: the path of a file"):
        federation(tiny_bert).run(make_clients(), tmp_path / "run", events=bad)


def test_lines_that_are_lost_later_stop_nothing_and_are_said_once(tmp_path, caplog):
    path = tmp_path / "e"
    events = Events(path)
    events.check()
    events("note", text="one")
    path.unlink()
    path.mkdir()
    for _ in range(3):
        events("note", text="lost")
    assert caplog.text.count("events are lost") == 1
    path.rmdir()
    events("note", text="two")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["two"]


def test_a_refused_run_says_so(tiny_bert, tmp_path):
    path = tmp_path / "e"
    with pytest.raises(ConfigurationError):
        federation(tiny_bert).run(make_clients()[:2], tmp_path / "run", events=path)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["event"], line["state"], line["code"]) == ("ended", "refused", 2)
    assert "text" not in line
