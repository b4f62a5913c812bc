"""Metrics are made of events: what is counted, how it is asked for, and that nothing else is."""

import json
import re
import socket
import urllib.error
import urllib.request

import pytest

from fedtree_secure.errors import ConfigurationError
from fedtree_secure.events import SCHEMA, Events
from fedtree_secure.metrics import METRICS, EventReader, Metrics, check_port

LINE = re.compile(r'^(fedtree_\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\d\S*)$')


def parsed(text):
    """Values by name and labels; every line must be of the format."""
    found, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            kinds.setdefault(name, {})[what] = rest
            continue
        name, labels, value = LINE.match(line).groups()
        assert set(kinds[name]) == {"HELP", "TYPE"}
        assert (name, labels) not in found
        found[name, labels] = float(value)
    return found


def exchange(stage="round-1/mask", **facts):
    usual = {"asked": 3, "answered": ["a", "b"], "missing": {}, "seconds": 1.25}
    sizes = {"bytes_out": 300, "bytes_in": 20, "messages": 5}
    return {"stage": stage, **usual, **sizes, **facts}


@pytest.fixture
def counted():
    metrics = Metrics()
    return metrics, Events(None, [metrics.take])


def test_a_servers_events_are_counted(counted):
    metrics, events = counted
    events("started", rounds=4)
    events("exchange", **exchange(missing={"c": "deadline"}))
    events("exchange", **exchange("round-1/reveal"))
    for number in (0, 1):
        dropouts = {"c": "deadline", "d": "refused: budget"}
        events("round", round=number, dropouts=dropouts if number else {})
    found = parsed(metrics.text())
    assert found["fedtree_up", None] == 1
    assert found["fedtree_rounds_planned", None] == 4
    assert found["fedtree_rounds_total", None] == 1
    assert found["fedtree_messages_total", 'direction="out"'] == 6
    assert found["fedtree_messages_total", 'direction="in"'] == 4
    assert found["fedtree_bytes_total", 'direction="out"'] == 600
    assert found["fedtree_dropouts_total", 'reason="deadline"'] == 1
    assert found["fedtree_dropouts_total", 'reason="refused: budget"'] == 1
    assert found["fedtree_stage_seconds_total", 'stage="mask"'] == 1.25
    assert found["fedtree_last_exchange_timestamp_seconds", None] > 1.7e9


def test_a_sites_events_are_counted(counted):
    metrics, events = counted
    budget = {"dataset": 'a "b"\\\n', "epsilon_allowed": 8, "delta": 1e-5}
    for spent in (1.5, 2.5):
        events("budget", epsilon_spent=spent, **budget)
    told = {"site": "s", "seconds": 0.5, "bytes_out": 7, "bytes_in": 70}
    for stage, well in (
        ("round-1/mask", True),
        ("round-0/mask", True),
        ("who", True),
        ("<script>", False),
    ):
        events("answered", run="x", stage=stage, answered=well, **told)
    events("waiting", site="s", reason="Unreachable")
    found = parsed(metrics.text())
    assert found["fedtree_epsilon_spent", r'dataset="a \"b\"\\\n"'] == 2.5
    assert found["fedtree_epsilon_allowed", r'dataset="a \"b\"\\\n"'] == 8
    assert found["fedtree_rounds_total", None] == 1
    assert found["fedtree_messages_total", 'direction="in"'] == 4
    assert found["fedtree_messages_total", 'direction="out"'] == 3
    assert found["fedtree_dropouts_total", 'reason="no answer"'] == 1
    assert found["fedtree_connected", None] == 0
    assert found["fedtree_stage_seconds_total", 'stage="other"'] == 1.0  # a network's word is none
    assert "script" not in metrics.text()


def test_what_an_event_says_in_words_is_not_published(counted):
    metrics, events = counted
    before = metrics.text()
    events("note", text="a word")
    events("advice", key="one-group", text="another")
    events("stage", stage="loading the model", clients=0)
    assert metrics.text() == before


def ask(port, path="/metrics", method="GET", **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", method=method, headers=headers
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read().decode(), dict(reply.headers)


def listens(host, port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def test_a_port_of_this_machine_answers_one_path_to_a_scraper(counted):
    metrics, events = counted
    with metrics.served(0) as port:
        events("started", rounds=4)
        text, headers = ask(port)
        assert parsed(text)["fedtree_rounds_planned", None] == 4
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "Python" not in headers["Server"]
        for path, method, named, code in (
            ("/", "GET", {}, 404),
            ("/metrics/../etc/passwd", "GET", {}, 404),
            ("/metrics", "POST", {}, 501),
            ("/metrics", "GET", {"Host": f"rebound.example:{port}"}, 403),
            ("/metrics", "GET", {"Host": "rebound.example"}, 403),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(port, path, method, **named)
            assert refused.value.code == code
            refused.value.close()
        assert listens("127.0.0.1", port)
        assert not listens("127.0.0.2", port)  # this machine as well, and no address of metrics
    assert not listens("127.0.0.1", port)


def test_a_taken_port_is_refused_in_one_sentence():
    with (
        Metrics().served(0) as port,
        pytest.raises(ConfigurationError) as refused,
        Metrics().served(port),
    ):
        pass
    assert str(refused.value).startswith(f"metrics cannot be served on 127.0.0.1:{port}: ")
    assert str(refused.value).endswith("; give another port")


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(ConfigurationError, match="allowed: a port from 1 to 65535"):
        check_port(port)


def test_events_of_another_process_are_counted_once_and_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    metrics = Metrics(EventReader(path))
    assert ("fedtree_rounds_total", None) not in parsed(metrics.text())  # no file yet

    def written(*lines):
        with path.open("a") as file:
            file.write("".join(lines))

    def rounds():
        return parsed(metrics.text())["fedtree_rounds_total", None]

    events = Events(path)
    events("round", round=1, dropouts={})
    assert rounds() == rounds() == 1
    line = json.dumps({"schema": SCHEMA, "event": "round", "round": 2, "dropouts": {}})
    written(line[:20])
    assert rounds() == 1
    written(line[20:], "\n")
    assert rounds() == 2
    later = line.replace('"schema": 1', '"schema": 9')
    written('{"torn\n', "[]\n", '{"schema": 1}\n', later, "\n")
    assert rounds() == 2
    path.unlink()  # put aside by whoever keeps logs
    events("round", round=3, dropouts={})
    assert rounds() == 3


def test_every_metric_is_described():
    assert all(name.startswith("fedtree_") for name in METRICS)
    counters = {name for name, (kind, _) in METRICS.items() if kind == "counter"}
    assert counters == {name for name in METRICS if name.endswith("_total")}
