"""What operators see of a server and its sites: events and metrics, without a secret in them."""

import contextlib
import json
import socket
import time
import urllib.request

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from leaks import Secret, leaks
from network import FORK
from organisations import Organisations
from test_transport import ONE, PATIENCE, LooseGrid

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_secure.cli.app import main
from fedtree_secure.events import ALWAYS, FACTS, Events
from fedtree_secure.flower.job_folder import JobFolder
from fedtree_secure.flower.node import SiteNode
from fedtree_secure.flower.records import MESSAGE_TYPE, reply_of
from fedtree_secure.flower.server_app import start_job
from fedtree_secure.metrics import EventReader, Metrics
from fedtree_secure.model.facts_file import write_facts
from fedtree_secure.site.site import Site

ADDRESS = "http://127.0.0.1:{}/metrics"


class Desk:
    """Flower's connection of one node, as far as `SiteNode` answers through it."""

    def __init__(self, number):
        self.node, self.sent = number, None

    def reply(self, message, content, _seconds):
        self.sent = reply_of(Message(content, reply_to=message))


class Watched:
    """A site's node with events and metrics of its own, asked in this process."""

    def __init__(self, number, site, folder):
        self.desk, self.metrics = Desk(number), Metrics()
        self.path = folder / f"{site.name}.jsonl"
        events = Events(self.path, [self.metrics.take])
        self.node = SiteNode(site, None, events)

    def __call__(self, parcel):
        message = Message(parcel.content(), dst_node_id=self.desk.node, message_type=MESSAGE_TYPE)
        message.metadata.__dict__["_message_id"] = "m"
        self.node._answer(self.desk, message)
        self.node._site.settle()
        self.node._tell_budget()
        return self.desk.sent


@pytest.fixture(scope="module")
def watched(tmp_path_factory, tiny, backbone):
    """Everything that a server and its four sites say in a run in which a message is lost."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    root = tmp_path_factory.mktemp("watched")
    loud = PrivacyBudget(epsilon=0.5, delta=1e-3)
    clinics = Organisations(root, tiny, tasks=1, each=4, privacy=loud, **ONE)
    clinics.ready(backbone.frozen_digest.hex())
    clinics.write_job()
    write_facts(clinics.folder / "model.facts", backbone.facts())
    folder, pages = JobFolder(clinics.folder), {}
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(Site.open(clinics.site(name))) for name in clinics.names]
        nodes = {n: Watched(n, site, root) for n, site in enumerate(sites, 1)}
        fate = lambda stage, node: "lost" if (stage, node) == ("round-1/mask", 1) else ""  # noqa: E731
        start_job(folder, LooseGrid(nodes, fate), PATIENCE, "start")
        served = {name: nodes[n].metrics for n, name in enumerate(clinics.names, 1)}
        for name, metrics in {"server": Metrics(EventReader(folder.events)), **served}.items():
            port = stack.enter_context(metrics.served(0))
            with urllib.request.urlopen(ADDRESS.format(port)) as page:
                pages[name] = page.read().decode()
    files = {"server": folder.events, **{name: root / f"{name}.jsonl" for name in clinics.names}}
    return clinics, {name: path.read_text() for name, path in files.items()}, pages


def lines(watched, name, event):
    found = [json.loads(line) for line in watched[1][name].splitlines()]
    return [line for line in found if line["event"] == event]


def value(page, metric):
    found = [line for line in page.splitlines() if line.startswith(metric)]
    return float(found[0].rpartition(" ")[2])


def test_a_server_tells_its_run_from_the_start_to_the_end(watched):
    (began,) = lines(watched, "server", "started")
    assert (began["rounds"], began["resumed"]) == (2, False)
    assert sorted(began["clients"]) == watched[0].names
    first, second = lines(watched, "server", "round")
    assert first["dropouts"] == {"t0-c0": "deadline"}
    assert (list(first["opened"].values()), list(second["opened"].values())) == ([3], [4])
    assert second["dropouts"] == {}
    assert second["bytes_in"] > 0
    assert lines(watched, "server", "tree")[0]["layers"][0]["groups"] == [4]
    (end,) = lines(watched, "server", "ended")
    assert (end["state"], end["code"], end["round"]) == ("finished", 0, 2)


def test_a_server_advises_from_public_facts_alone(watched):
    report = json.loads((watched[0].folder / "report.json").read_text())
    shown = [(line["key"], line["text"]) for line in lines(watched, "server", "advice")]
    assert shown == [(found["key"], found["text"]) for found in report["advice"]]
    assert [key for key, _ in shown] == ["noise-drowns-adapters"]
    assert all(found["public"] for found in report["advice"])


def test_every_event_has_documented_facts_alone(watched):
    for name, text in watched[1].items():
        for line in map(json.loads, text.splitlines()):
            assert set(line) <= {*ALWAYS, *FACTS[line["event"]]}, name


def test_a_site_tells_what_its_ledger_says(watched):
    clinics, _, pages = watched
    for name in clinics.names:
        with Ledger.inspect(clinics.site(name) / "state" / name / "store.sqlite") as ledger:
            spent = ledger.spent()
        told = lines(watched, name, "budget")[-1]
        assert told["epsilon_spent"] == pytest.approx(spent, abs=0.05)
        assert told["epsilon_spent"] >= spent - 1e-3  # it overstates, if anything
        assert (
            f'fedtree_epsilon_spent{{dataset="{name}"}} {told["epsilon_spent"]:.15g}' in pages[name]
        )
        assert f'fedtree_epsilon_allowed{{dataset="{name}"}} 0.5' in pages[name]


def test_server_and_sites_count_the_same_messages(watched):
    clinics, _, pages = watched

    came = sum(value(pages[name], 'fedtree_bytes_total{direction="out"}') for name in clinics.names)
    who = sum(
        x["bytes_out"]
        for n in clinics.names
        for x in lines(watched, n, "answered")
        if x["stage"] == "who"
    )
    assert came - who == value(pages["server"], 'fedtree_bytes_total{direction="in"}')
    assert value(pages["server"], "fedtree_rounds_total") == 2
    assert [value(pages[name], "fedtree_rounds_total") for name in clinics.names] == [1, 2, 2, 2]
    assert value(pages["server"], 'fedtree_dropouts_total{reason="deadline"}') == 1


def test_no_key_row_or_private_value_is_told(watched):
    clinics, files, pages = watched
    told = {
        f"{name}, {kind}": text.encode()
        for kind, all_ in (("events", files), ("metrics", pages))
        for name, text in all_.items()
    }
    assert all(len(text) > 300 for text in told.values())
    secrets = [Secret("server's key", (clinics.folder / "server.key").read_bytes()[1:])]
    for name in clinics.names:
        place = clinics.site(name)
        secrets.append(Secret(f"key of {name}", (place / "identity.key").read_bytes()[1:]))
        rows = (place / "train.csv").read_text().splitlines()[1:]
        secrets += [Secret(f"row of {name}", row.partition(",")[0]) for row in rows]
        (report,) = place.glob("runs/*/report.json")
        assert json.loads(report.read_text())["metric"]["value"] >= 0
    assert leaks(told, secrets) == []
    for text in told.values():
        for word in (b"accuracy", b'metric"', b"macro", b"loss"):
            assert word not in text
    planted = {"told": next(iter(told.values())) + rows[0].partition(",")[0].encode()}
    assert leaks(planted, secrets)  # the search would have found it


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


@pytest.fixture
def taken():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def run_command(arguments):
    main([str(argument) for argument in arguments])


def test_a_node_is_watched_while_its_superlink_is_away(six, tmp_path):
    place = six(tasks=1, each=3, **ONE).site("t0-c0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    watch = ("--events", tmp_path / "events.jsonl", "--metrics", port)
    node = FORK.Process(target=run_command, args=(["node", place, *LINK, *watch],))
    node.start()
    try:
        page = ""
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(ADDRESS.format(port)) as found,
            ):
                page = found.read().decode()
            if "fedtree_connected 0" in page:
                break
            time.sleep(0.1)
        assert value(page, "fedtree_up") == 1
        assert value(page, "fedtree_connected") == 0
        node.terminate()
        node.join(30)
        assert node.exitcode == 0
    finally:
        node.kill()
        node.join()
    assert '"event": "waiting"' in (tmp_path / "events.jsonl").read_text()


LINK = ("--superlink", "127.0.0.1:1", "--insecure")


@pytest.mark.parametrize("who", ["node", "serve"])
def test_a_taken_port_or_a_file_that_cannot_be_written_is_refused(
    six, tmp_path, taken, capsys, who
):
    places = six(tasks=1, each=3, **ONE)
    place = places.folder if who == "serve" else places.site("t0-c0")
    for options, told in (
        (("--metrics", taken), f"metrics cannot be served on 127.0.0.1:{taken}"),
        (("--metrics", 0), "allowed: a port from 1 to 65535"),
        (("--events", tmp_path / "none" / "e"), "events cannot be written to"),
    ):
        assert call(who, place, *LINK, *options) == 2
        shown = capsys.readouterr().err
        assert told in shown
        assert shown.count("\n") == 1
    assert not (places.folder / "run.id").exists()
