"""Attack `crashing-client` (docs/threats.md): no message of a client stops the server. Whoever
sends one is named and left out, and the others go on.
"""

import logging
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_jobs import Adversary, federation, make_clients

from fedtree_secagg import Identity, Roster
from fedtree_secure import ConfigurationError, RunStopped, Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.server.channel import Channel

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
}
BAD = "t1-c2"


def packed(value):
    return msgspec.msgpack.encode(value)


def joined(**changes):
    good = {
        "kind": "joined",
        "noise_multiplier": 1.0,
        "records": 60,
        "fingerprint_noise": 0.0,
        "outputs": 2,
        "known_round": -1,
    }
    return packed({**good, **changes})


DEEP = b"\x91" * 100_000 + b"\xc0"
GARBAGE = {
    "empty": b"",
    "no message": b"\xc1",
    "no UTF-8": b"\x81\xa4kind\xa4\xff\xfe\xfd\xfc",
    "deep nesting": DEEP,
    "deep in a field": b"\x82\xa4kind\xa8protocol\xa7payload" + DEEP,
    "unknown kind": packed({"kind": "boss"}),
    "unknown field": packed({"kind": "done", "more": 1}),
    "free text": packed({"kind": "refused", "reason": "row 17 is odd"}),
    "no records": joined(records=0),
    "negative records": joined(records=-5),
    "huge records": joined(records=2**40),
    "nan noise": joined(noise_multiplier=math.nan),
    "infinite noise": joined(noise_multiplier=math.inf),
    "huge noise": joined(noise_multiplier=1e200),
    "negative noise": joined(fingerprint_noise=-1.0),
    "a signature of other length": packed({"kind": "voted", "signature": b"x" * 63}),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_hostile_crashing_client_bytes_raise_one_class(what):
    with pytest.raises(wire.WireError):
        wire.decode_reply(GARBAGE[what])


@given(st.binary(max_size=200))
def test_hostile_crashing_client_random_bytes_raise_one_class(data):
    for decode in (wire.decode_reply, wire.decode_request):
        try:
            decode(data)
        except wire.WireError:
            continue


class Sends(Adversary):
    """One client answers a stage with bytes of its own."""

    def __init__(self, inner, stage, data):
        super().__init__(inner)
        self.stage, self.data = stage, data

    def exchange(self, stage, requests):
        replies = super().exchange(stage, requests)
        if stage == self.stage and BAD in requests:
            replies[BAD] = self.data
        return replies


@pytest.mark.parametrize("stage", ["join", "round-1/advertise", "round-1/mask", "round-1/reveal"])
def test_hostile_crashing_client_is_named_and_left_out(tiny_bert, tmp_path, stage, caplog):
    rounds = 1 if stage == "join" else 2
    with caplog.at_level(logging.WARNING, "fedtree_secure.server"):
        result = federation(tiny_bert, **{**ONE, "rounds": rounds}).run(
            make_clients(), tmp_path / "run", wrap_transport=lambda t: Sends(t, stage, DEEP)
        )
    assert f"client {BAD} sent no valid reply at stage {stage}" in caplog.text
    assert all(not record["error"] for record in result.data["rounds"])
    (first,) = result.data["rounds"][0]["opened"].values()
    assert len(first) >= 5
    if rounds == 2:  # it is back in the next round
        assert BAD in next(iter(result.data["rounds"][1]["opened"].values()))


@pytest.mark.parametrize("noise", [1e5, 999_999.0])
def test_hostile_crashing_client_cannot_widen_everybodys_clip(tiny_bert, tmp_path, noise, caplog):
    """H7: its 1e12 became the clip of all, and the grid useless."""
    data = joined(noise_multiplier=noise, records=1)
    with caplog.at_level(logging.WARNING, "fedtree_secure.server"):
        result = federation(tiny_bert, **ONE).run(
            make_clients(), tmp_path / "run", wrap_transport=lambda t: Sends(t, "join", data)
        )
    assert f"client {BAD} takes no part" in caplog.text
    for record in result.data["rounds"]:
        (opened,) = record["opened"].values()
        assert len(opened) == 5


def test_hostile_crashing_client_with_a_false_vote_stands_alone(tiny_bert, tmp_path):
    """Passed on, its signature would make every other client refuse the tree."""
    data = packed({"kind": "voted", "signature": bytes(64)})
    job = federation(tiny_bert, topology=Topology(sketch_size=64), training=ONE["training"])
    result = job.run(
        make_clients(), tmp_path / "run", wrap_transport=lambda t: Sends(t, "tree", data)
    )
    assert all(record["opened"] and not record["error"] for record in result.data["rounds"])


def test_a_lost_join_does_not_end_the_sketch(tiny_bert, tmp_path):
    """It ended in a KeyError; now the others go on, and the client trains at home."""
    job = federation(tiny_bert, topology=Topology(sketch_size=64))
    result = job.run(
        make_clients(),
        tmp_path / "run",
        wrap_transport=lambda t: Adversary(t, lose={("join", BAD, "after")}),
    )
    assert all(not record["error"] for record in result.data["rounds"])
    opened = {n for r in result.data["rounds"] for names in r["opened"].values() for n in names}
    assert BAD not in opened
    assert result[BAD].metric is not None


def test_replies_of_strangers_are_not_read(tiny_bert, tmp_path):
    class Stranger(Adversary):
        def exchange(self, stage, requests):
            replies = super().exchange(stage, requests)
            return {**replies, "stranger": next(iter(replies.values()))}

    result = federation(tiny_bert, **ONE).run(
        make_clients(), tmp_path / "run", wrap_transport=Stranger
    )
    assert all(not record["error"] for record in result.data["rounds"])


# --- the channel --------------------------------------------------------------------------------


class Silent:
    def __init__(self, **replies):
        self.sent, self.replies = [], replies

    def exchange(self, stage, requests):
        self.sent.append(requests)
        return self.replies


def channel(job, start=1, key=None, **replies):
    keys = [Identity.generate(bytes([i, *range(1, 32)])) for i in range(4)]
    server, *clients = keys
    roster = Roster({f"c{i}": identity.public_bytes for i, identity in enumerate(clients)})
    terms = Terms(job, roster, server.public_bytes, "run")
    transport = Silent(**replies)
    return Channel(terms, key or server, transport, start, {"c0": 5}), transport, terms, server


def test_counters_grow_over_starts_and_tell_what_was_answered(tiny_bert):
    from fedtree_secure.agreed.envelope import open_request

    seen = []
    for start in (1, 2):
        made, transport, _, server = channel(federation(tiny_bert).job, start)
        for _ in range(2):
            with pytest.raises(RunStopped, match="no client answered"):
                made.exchange("join", {"c0": wire.Join(bytes(32), bytes(32))})
        for requests in transport.sent:
            opened = open_request(requests["c0"], server.public_bytes, "run", "c0")
            assert opened.answered == 5
            seen.append(opened.counter)
    assert seen == sorted(set(seen))


def test_a_refusal_is_no_answer(tiny_bert):
    """A client notes no counter when it refuses; told that it answered, it would seem set back."""
    replies = {"c0": wire.encode(wire.Refused("clip")), "c1": wire.encode(wire.Done())}
    made, *_ = channel(federation(tiny_bert).job, **replies)
    made.exchange("join", dict.fromkeys(("c0", "c1"), wire.Join(bytes(32), bytes(32))))
    assert made.answered["c0"] == 5
    assert made.answered["c1"] > 5


def test_a_server_with_another_key_is_refused(tiny_bert):
    with pytest.raises(ConfigurationError, match="not the one that the job pins"):
        channel(federation(tiny_bert).job, key=Identity.generate(bytes(range(7, 39))))
