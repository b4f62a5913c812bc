"""Whatever arrives, a step refuses with an error of this package and keeps its state as it was.

Each step is given noise, changed messages, and messages that a real participant signed over values
that no honest one would send. What a server step refuses, it can go on without: the error names the
message to drop.
"""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import test_sketch
from arrivals import NASTY, STEPS, beacon_arrivals, clone, hostile, seen, sketch_arrivals
from harness import (
    FRESH,
    World,
    adverts_message,
    forge,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtree_secagg import ProtocolError, SecAggError, beacon, client, server, sketch
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Advert


@pytest.mark.parametrize("label", STEPS)
@settings(max_examples=60)
@given(data=st.data())
def test_nothing_that_arrives_breaks_a_step_or_its_state(label, data):
    arrival = STEPS[label]()[label]
    message = data.draw(hostile(arrival))
    state = clone(arrival.state) if arrival.state is not None else None
    before = seen(state) if state is not None else None
    try:
        arrival.step(state, message)
    except SecAggError as error:
        if state is not None:
            assert seen(state) == before
            assert not state._lock.locked()
        named = error.sender if isinstance(error, ProtocolError) else arrival.sender
        assert arrival.sender in (None, named)


@pytest.mark.parametrize("label", STEPS)
def test_the_real_message_is_accepted(label):
    arrival = STEPS[label]()[label]
    state = clone(arrival.state) if arrival.state is not None else None
    arrival.step(state, arrival.wrap(arrival.payload))


KINDS = [kind for kind in messages.Message.__subclasses__() if "fedtree" in kind.__module__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_decoder_refuses_each_nasty_value_in_each_field_or_means_it(kind):
    tag = msgspec.msgpack.encode(kind.__struct_config__.tag)
    count = len(kind.__struct_fields__)
    for bad in NASTY:
        for at in range(count):
            rows = [msgspec.msgpack.encode(bytes(32))] * count
            rows[at] = bad
            data = bytes([0x91 + count]) + tag + b"".join(rows)
            try:
                found = messages.decode(kind, data)
            except ProtocolError:
                continue
            assert messages.encode(found) == data
    with pytest.raises(ProtocolError, match="no such message"):
        messages.decode(kind, b"\x91" * 100_000)


# What was found


LONG = "\N{GRINNING FACE}" * 64


def test_a_name_of_more_bytes_than_a_name_may_have_is_refused_by_clients():
    run = World.nested().run(upto="advert")
    advert = messages.decode(Advert, run.sent["advert"]["c01"][64:])
    long = bytes(64) + messages.encode(msgspec.structs.replace(advert, sender=LONG))
    rows = (run.sent["advert"]["c00"], long)
    with pytest.raises(ProtocolError, match="no name"):
        client.share(
            run.states["advert"]["c00"],
            adverts_message(keys.Pair(FRESH).public_bytes, rows),
            randomness=FRESH,
        )


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32], ids=["small order", "not canonical"])
def test_a_client_with_a_key_that_is_none_is_dropped_by_name(key):
    run = World.nested().run(upto="advert")
    bad = forge(run, Advert, "c05", mask_key=key)
    with pytest.raises(ProtocolError) as error:
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c05": bad})
    assert error.value.sender == "c05"
    _, _, hellos = test_sketch.greet()
    group = sketch.instance_hash(*test_sketch.ARGS)
    zero = messages.Hello(group, "c03", key)
    hellos["c03"] = messages.sign(test_sketch.IDENTITIES["c03"], group, zero, "c03")
    with pytest.raises(ProtocolError) as error:
        sketch.collect(*test_sketch.ARGS, hellos)
    assert (error.value.sender, error.value.blames) == ("c03", "c03")


def test_of_two_equal_keys_one_message_can_be_dropped():
    run = World.nested().run(upto="advert")
    key = messages.decode(Advert, run.sent["advert"]["c02"][64:]).mask_key
    copy = {**run.sent["advert"], "c05": forge(run, Advert, "c05", channel_key=key)}
    with pytest.raises(ProtocolError, match="same key") as error:
        server.collect_adverts(run.server_states["begin"], copy)
    assert (error.value.sender, error.value.blames) == ("c05", None)
    del copy["c05"]
    server.collect_adverts(run.server_states["begin"], copy)


def test_those_who_did_not_take_part_are_dropped_by_name():
    run = World.nested().run({"masked": ["c08"]}, upto="vote")
    late = World.nested().run().sent["vote"]["c08"]
    with pytest.raises(ProtocolError, match="did not take part") as error:
        server.collect_votes(run.server_states["survivors"], {**run.sent["vote"], "c08": late})
    assert error.value.sender == "c08"
    arrival = sketch_arrivals()["sketch.route"]
    with pytest.raises(ProtocolError) as error:
        arrival.step(None, b"")
    assert error.value.sender == "c00"


@pytest.mark.parametrize("scale", [5e-324, 1e-30, 1e30, 1e308, float("inf"), float("nan"), -1.0])
def test_a_sketch_at_an_absurd_scale_is_refused(scale):
    arrival = sketch_arrivals()["sketch.distances"]
    good = messages.decode(messages.Sketch, arrival.payload)
    with pytest.raises(ProtocolError, match="scale") as error:
        arrival.step(
            None, arrival.wrap(messages.encode(msgspec.structs.replace(good, scale=scale)))
        )
    assert error.value.sender == error.value.blames == "c01"


@pytest.mark.parametrize("size", [32, 33, 64, 32 * 61])
def test_a_list_of_another_length_is_no_list_of_commitments(size):
    arrival = beacon_arrivals()["beacon.conclude, commitments"]
    listed = messages.decode(beacon.Listed, arrival.payload)
    short = messages.encode(msgspec.structs.replace(listed, values=bytes(size)))
    with pytest.raises(ProtocolError, match="one value per client"):
        arrival.step(None, short)


def test_distances_are_finite_at_the_ends_of_the_scale():
    for scale in (sketch.SMALLEST_SCALE, sketch.LARGEST_SCALE):
        vectors = {n: [np.full(4, 1e-12)] for n in test_sketch.MEMBERS}
        _, found, _ = test_sketch.run(vectors, size=4, scale=scale)
        assert np.isfinite(found).all()
        assert 0 < sketch.grid_bias(scale) < np.inf
