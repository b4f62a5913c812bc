"""The transport over a Grid that loses, delays and repeats, with real sites behind it."""

import contextlib
import time

import pytest
from flwr.app import Message
from flwr.serverapp.grid import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from organisations import Organisations

from fedtree_dp import Ledger
from fedtree_secagg import Identity
from fedtree_secure.agreed import who
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.config import Topology, Training
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.events import Events
from fedtree_secure.flower.records import (
    MESSAGE_TYPE,
    WHO,
    Parcel,
    crossing,
    parcel_of,
    parcels_of,
    reply_content,
)
from fedtree_secure.flower.transport import GridTransport, Patience
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.site.site import Site

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(head="local", records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 2,
}
PATIENCE = Patience(deadline=0.6, gather=0.5)


class LooseGrid(Grid):
    """Flower's interface; a test says what becomes of a message.

    Args:
        nodes: What answers at each node: (stage, run, data) to bytes or None.
        fate: (stage, node) to "lost", "late" or "twice".
    """

    def __init__(self, nodes, fate=lambda _stage, _node: ""):
        self.nodes, self.fate = nodes, fate
        self.replies, self.late, self.repeated = {}, [], []

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        numbers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = number = f"m{time.monotonic_ns()}"
            numbers.append(number)
            node, parcel = message.metadata.dst_node_id, parcel_of(message)
            fate = self.fate(parcel.stage, node)
            if fate == "lost":
                continue
            if fate == "late":
                self.late.append((node, parcel))
                continue
            data = self.nodes[node](parcel)
            if fate == "twice":
                self.repeated.append(self.nodes[node](parcel))
            self.replies[number] = Message(reply_content(data), reply_to=message)
        return numbers

    def pull_messages(self, message_ids):
        return [self.replies.pop(n) for n in list(message_ids) if n in self.replies]

    def deliver_late(self):
        """What a network held back arrives after all."""
        return [self.nodes[node](parcel) for node, parcel in self.late]

    create_message = send_and_receive = set_run = run = None


@pytest.fixture(scope="module", autouse=True)
def server_app():
    """Messages can be made in a ServerApp's process alone; this one passes for one."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


@pytest.fixture
def clinics(tmp_path, tiny, backbone):
    found = Organisations(tmp_path, tiny, tasks=1, each=4, **ONE)
    found.ready(backbone.frozen_digest.hex())
    return found


@contextlib.contextmanager
def behind(clinics):
    """Nodes 1, 2, ... with a site behind each."""
    with contextlib.ExitStack() as stack:
        sites = [stack.enter_context(Site.open(clinics.site(name))) for name in clinics.names]

        def node(number, site):
            def answer(parcel: Parcel):
                if parcel.stage == WHO:
                    return site.who(parcel.data, str(number))
                return site.handle(parcel.run, parcel.data)

            return answer

        yield {number: node(number, site) for number, site in enumerate(sites, 1)}


def run(clinics, backbone, grid, tmp_path, patience=PATIENCE):
    terms = clinics.terms("run-1")
    events = Events(tmp_path / "events.jsonl")
    transport = GridTransport(grid, clinics.server, terms, patience, events)
    transport.gather(3)
    server = Coordinator(
        terms, clinics.server, backbone.facts(), transport, clinics.folder / "server"
    )
    server.run()
    return server, transport


def charges(clinics, name):
    with Ledger.inspect(clinics.site(name) / "state" / name / "store.sqlite") as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.event is not None]


def opened(server):
    return [sorted(next(iter(record.opened.values()), [])) for record in server.records]


def test_a_message_that_is_lost_is_a_dropout_of_its_round_alone(clinics, backbone, tmp_path):
    lost = {("round-1/mask", 1)}
    with behind(clinics) as nodes:
        fate = lambda stage, node: "lost" if (stage, node) in lost else ""  # noqa: E731
        server, _ = run(clinics, backbone, LooseGrid(nodes, fate), tmp_path)
    assert opened(server) == [clinics.names[1:], clinics.names]
    assert charges(clinics, "t0-c0") == ["round 2"]
    assert '"missing": {"t0-c0": "deadline"}' in (tmp_path / "events.jsonl").read_text()


def test_a_message_that_comes_twice_or_too_late_is_not_answered(clinics, backbone, tmp_path):
    with behind(clinics) as nodes:

        def fate(stage, node):
            if (stage, node) == ("round-1/mask", 1):
                return "late"
            return "twice" if node == 2 and stage != WHO else ""

        grid = LooseGrid(nodes, fate)
        server, _ = run(clinics, backbone, grid, tmp_path)
        assert grid.deliver_late() == [None]
    assert opened(server) == [clinics.names[1:], clinics.names]
    assert len(grid.repeated) > 10
    assert set(grid.repeated) == {None}
    assert charges(clinics, "t0-c0") == ["round 2"]
    assert charges(clinics, "t0-c1") == ["round 1", "round 2"]


def test_a_stranger_takes_no_site_place(clinics, backbone, tmp_path):
    stranger, asked = Identity.generate(bytes(range(32))), []
    with behind(clinics) as nodes:

        def lying(parcel):
            asked.append(parcel.stage)
            here = clinics.server.public_bytes  # it sees the question, and relays it to a site
            relayed = nodes[1](parcel)
            return relayed or who.answer(parcel.data, here, "t0-c0", stranger, "9")

        grid = LooseGrid({9: lying, **nodes})
        server, transport = run(clinics, backbone, grid, tmp_path)
    assert transport.present == tuple(clinics.names)
    assert set(asked) == {WHO}
    assert opened(server) == [clinics.names] * 2


def test_a_site_that_comes_late_joins_before_the_next_round(clinics, backbone, tmp_path):
    with behind(clinics) as nodes:
        first = nodes.pop(1)

        def fate(stage, _node):
            if stage == "round-1/reveal":
                nodes[1] = first
            return ""

        server, _ = run(clinics, backbone, LooseGrid(nodes, fate), tmp_path)
    assert opened(server) == [clinics.names[1:], clinics.names]


def test_an_exchange_ends_early_after_enough_replies(clinics, backbone, tmp_path):
    patience = Patience(deadline=60.0, gather=0.5, enough=0.75, grace=0.1)
    lost = {("round-1/mask", 1)}
    with behind(clinics) as nodes:
        fate = lambda stage, node: "lost" if (stage, node) in lost else ""  # noqa: E731
        server, _ = run(clinics, backbone, LooseGrid(nodes, fate), tmp_path, patience)
    assert opened(server) == [clinics.names[1:], clinics.names]


@pytest.mark.parametrize("bad", [{"deadline": 0}, {"gather": -1}, {"enough": 1.5}, {"grace": 0}])
def test_patience_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Patience(**bad)


def test_a_message_of_another_application_is_none_of_ours():
    foreign = Message(reply_content(b"x"), dst_node_id=1, message_type=MESSAGE_TYPE)
    assert parcel_of(foreign) is None


def objects_of(parcels):
    """Bytes of the objects that Flower's Grid pushes for these messages: each once."""
    objects = {}
    for node, parcel in parcels.items():
        message = Message(parcel.content(), dst_node_id=node, message_type=MESSAGE_TYPE)
        objects |= get_all_nested_objects(message)
    return sum(len(found.deflate()) for found in objects.values())


def test_what_a_group_is_told_crosses_to_the_superlink_once():
    key = Identity.generate(bytes(range(32)))
    bodies = [bytes([group]) * 100_000 for group in (1, 2)]
    sealed = {
        node: seal(key, "run", f"t{node}", 7, 3, bodies[node % 2 if node < 6 else 0][node == 7 :])
        for node in range(8)
    }
    parcels = parcels_of("run", "round-1/advertise", sealed)
    plain = {node: Parcel("run", "round-1/advertise", data) for node, data in sealed.items()}
    assert objects_of(plain) > crossing(plain.values()) > 790_000
    assert 300_000 < crossing(parcels.values()) < objects_of(parcels) < 305_000  # 2 + 1 bodies
    for node, parcel in parcels.items():
        message = Message(parcel.content(), dst_node_id=node, message_type=MESSAGE_TYPE)
        assert parcel_of(message).data == sealed[node]
    assert parcels[7].alike is None


def test_a_body_in_two_places_or_of_another_kind_is_no_message_of_ours():
    sealed = seal(Identity.generate(bytes(range(32))), "run", "t0", 7, 3, b"body")
    for parcel in (Parcel("run", "x", sealed, b"y"), Parcel("run", "x", b"\xc1", b"y")):
        assert parcel_of(Message(parcel.content(), dst_node_id=1, message_type="query")) is None
    content = Parcel("run", "x", sealed, b"y").content()
    content.config_records["alike"]["data"] = "text"
    assert parcel_of(Message(content, dst_node_id=1, message_type="query")) is None
