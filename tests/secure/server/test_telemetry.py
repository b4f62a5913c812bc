"""What a server says of a round: dropouts by reason, bytes, sizes; and what it never repeats."""

import pytest
from small_jobs import make_job

from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.server.channel import Channel
from fedtree_secure.server.state import RoundRecord
from fedtree_secure.server.telemetry import RoundMeter, layers_of, round_of


def exchange(stage, missing, **facts):
    counted = {"seconds": 1.5, "bytes_out": 100, "bytes_in": 10, "messages": 4}
    return {"event": "exchange", "stage": stage, "missing": missing, **counted, **facts}


def test_a_round_adds_up_its_own_exchanges_and_is_forgotten():
    meter = RoundMeter()
    meter(exchange("join", {"c9": "deadline"}))
    meter(exchange("round-1/share", {}))
    meter(exchange("round-1/mask", {"c1": "deadline"}))
    meter(exchange("round-2/advertise", {"c2": "no node"}))
    meter({"event": "stage", "stage": "round-1/mask", "clients": 3})
    found = meter.facts(RoundRecord(1, {"n": ["c0", "c2", "c3"]}, ["m"]))
    assert found["dropouts"] == {"c1": "deadline"}
    assert (found["seconds"], found["bytes_out"], found["messages"]) == (3.0, 200, 8)
    assert (found["opened"], found["closed"]) == ({"n": 3}, ["m"])
    again = meter.facts(RoundRecord(1))
    assert (again["dropouts"], again["seconds"]) == ({}, 0)


def test_the_reason_of_the_transport_stands_and_a_refusal_is_added():
    meter = RoundMeter()
    meter(exchange("round-1/mask", {"c1": "deadline"}))
    meter.missed("round-1/mask", {"c1": "no reply", "c2": "refused: budget"})
    meter.missed("finish", {"c3": "no reply"})
    assert meter.facts(RoundRecord(1))["dropouts"] == {"c1": "deadline", "c2": "refused: budget"}


def test_of_an_error_its_class_is_told_alone():
    found = RoundMeter().facts(RoundRecord(1, error="ProtocolError: of c1: row 17"))
    assert found["error"] == "ProtocolError"


@pytest.mark.parametrize(
    ("stage", "number"), [("round-12/mask", 12), ("join", None), ("round-x/mask", None), ("", None)]
)
def test_rounds_are_known_by_their_stages(stage, number):
    assert round_of(stage) == number


def test_a_tree_is_told_by_sizes():
    tree = Tree(tuple("abcdefg"), ((0,) * 7, (0, 0, 0, 0, 1, 1, 2)), 3)
    assert layers_of(tree, ["layer 0", "layer 1"]) == [
        {"layer": "layer 0", "groups": [7], "home": 0},
        {"layer": "layer 1", "groups": [4], "home": 3},
    ]


class Scripted:
    def __init__(self, replies):
        self.replies = replies

    def exchange(self, _stage, requests):
        return {name: self.replies[name] for name in requests if name in self.replies}


def test_the_channel_says_why_a_reply_does_not_count_in_words_of_its_own():
    server, *clients = [Identity.generate(bytes([i, *range(1, 32)])) for i in range(5)]
    roster = Roster({f"c{i}": identity.public_bytes for i, identity in enumerate(clients)})
    terms = Terms(make_job("none"), roster, server.public_bytes, "run")
    replies = {
        "c0": wire.encode(wire.Done()),
        "c1": wire.encode(wire.Refused("clip")),
        "c2": wire.encode(wire.Refused("row 17 says so")),
    }
    heard = []
    channel = Channel(terms, server, Scripted(replies), 1, {}, lambda *told: heard.append(told))
    asked = dict.fromkeys(("c0", "c1", "c2", "c3"), wire.Join(bytes(32), bytes(32)))
    channel.exchange("join", asked)
    channel.exchange("prepare", {"c0": wire.Prepare()})
    expected = {"c1": "refused: clip", "c2": "invalid reply", "c3": "no reply"}
    assert heard == [("join", expected)]
