"""What is killed comes back and goes on; what was opened was charged, and nothing small opens."""

import os
import shutil
import signal

from authority import make_authority, make_node_key
from network import Network, copy_store

from fedtree_dp import Ledger
from fedtree_secure.config import Topology, Training
from fedtree_secure.storage import read_json

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(head="local", records=60, sample_rate=0.5, head_steps=0, max_length=16),
}


def charges(places, name):
    with Ledger.inspect(places.site(name) / "state" / name / "store.sqlite") as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.event is not None]


def opened(places):
    """Members of what was opened, by round."""
    records = read_json(places.folder / "server" / "state.json")["records"]
    return {r["round"]: sorted(next(iter(r["opened"].values()), [])) for r in records}


def test_a_run_goes_on_after_kills_of_node_server_and_superlink(six, tmp_path):
    places = six(tasks=1, each=4, rounds=2, **ONE)
    restored = "t0-c1"
    with Network(places, database=True, deadline=15.0) as network:
        network.start()
        copy_store(places, restored, tmp_path / "backup")
        network.serve()

        network.until_exchange("round-1/share")
        network.kill("t0-c0")  # it has not uploaded
        network.start("t0-c0")
        network.until(lambda: network.events("round"), "round 1")

        network.kill(restored)  # its operator puts back a backup of store and head
        for place in ("state", "heads"):
            shutil.rmtree(places.site(restored) / place)
            shutil.copytree(tmp_path / "backup" / place, places.site(restored) / place)
        network.start(restored)

        # Before anybody is charged for round 2: what is charged and not opened is spent.
        network.until_exchange("round-2/advertise")
        (server,) = network.events("started")
        os.kill(server["process"], signal.SIGKILL)
        network.until(lambda: len(network.events("started")) == 2, "another start of the server")

        again = lambda: len(network.exchanged("round-2/advertise")) == 2  # noqa: E731
        network.until(again, "round 2 begins again")
        network.kill_link()
        network.start_link()
        assert network.ended() == 0, network.said()

    found = opened(places)
    assert sorted(found) == [1, 2]
    assert found[1] == ["t0-c1", "t0-c2", "t0-c3"]
    assert found[2] == ["t0-c0", "t0-c2", "t0-c3"]
    for number, members in found.items():
        assert members == [] or len(members) >= 3
        for name in members:
            if name != restored:
                assert f"round {number}" in charges(places, name)
    assert charges(places, restored) == []  # it answered nothing that its store does not know
    assert "set-back" in network.log("serve") + network.log("superlink") + network.log(restored)
    assert read_json(places.folder / "report.json")["fetched"] == ["t0-c0", "t0-c2", "t0-c3"]


def test_who_may_not_take_part_is_told_why_and_the_others_go_on(six, backbone, tmp_path):
    places = six(tasks=1, each=4, rounds=1, **ONE)
    places.policy("t0-c0", places.digest, largest_epsilon=7.0)
    with Network(places, deadline=15.0) as network:
        stranger = tmp_path / "stranger"
        make_authority(tmp_path / "other")
        make_node_key(stranger)
        network.start("t0-c0", ca=tmp_path / "other" / "ca.crt")
        network.start("t0-c1", key=stranger)
        assert network.ended("t0-c0", 30) == 2
        assert "is not to be trusted" in network.log("t0-c0")
        assert network.ended("t0-c1", 60) == 2
        assert "its key is not registered there" in network.log("t0-c1")

        network.start()
        network.serve()
        assert network.ended() == 0, network.said()
    assert opened(places) == {1: ["t0-c1", "t0-c2", "t0-c3"]}
    assert "(largest_epsilon)" in network.log("t0-c0")
    assert charges(places, "t0-c0") == []
    public = (places.folder / "events.jsonl").read_text() + network.log("superlink")
    assert "largest_epsilon" not in public
