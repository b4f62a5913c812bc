"""Every step with a message that it reads, and hostile ones in its place: `test_arrivals.py`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import test_beacon
import test_sketch
from harness import (
    FOR_THE_SERVER,
    FRESH,
    Randomness,
    World,
    lead_bytes,
    session_id,
)
from hypothesis import strategies as st
from test_receive import parts

from fedtree_secagg import beacon, client, server, sketch
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.secret import OneShot
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Advert

# Values that no honest party sends, as MessagePack; the last ones are no MessagePack at all.
NASTY = [
    *map(msgspec.msgpack.encode, (0, -1, 2**31, 2**63, 2**64 - 1, -(2**63), True, None, "", b"")),
    *(b"\xcb" + struct.pack(">d", x) for x in (float("nan"), float("inf"), -0.0, 5e-324, 1e308)),
    msgspec.msgpack.encode("\N{GRINNING FACE}" * 64),  # 64 characters, 256 bytes
    msgspec.msgpack.encode("n" * 64),
    msgspec.msgpack.encode("\0"),
    msgspec.msgpack.encode(bytes(32)),
    msgspec.msgpack.encode(b"\xff" * 32),
    msgspec.msgpack.encode([b"", bytes(32)] * 9),
    msgspec.msgpack.encode({"a": 1}),
    b"\xa4\xff\xfe\xc0\x80",  # a text that is no UTF-8
    b"\xa3\xed\xa0\x80",  # half of a surrogate pair
    b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 elements, none of which follow
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 3000,  # nested 3,000 deep
    b"\xd7\xff" + bytes(8),  # a timestamp
    b"\xc1",  # never used
]


def clone(state: Any) -> Any:
    """A state with the same content that no step has used; arrays are copied."""
    new = object.__new__(type(state))
    OneShot.__init__(new)
    for slot, value in parts_of(state).items():
        setattr(new, slot, value)
    return new


def parts_of(state: Any) -> dict[str, Any]:
    slots = [slot for kind in type(state).__mro__ for slot in getattr(kind, "__slots__", ())]
    held = {slot: getattr(state, slot) for slot in slots if slot != "_lock"}
    if "totals" in held:
        held["totals"] = {name: total.copy() for name, total in held["totals"].items()}
    return held


def seen(state: Any) -> dict[str, Any]:
    held = parts(state)
    if "totals" in held:
        held["totals"] = {name: total.tobytes() for name, total in held["totals"].items()}
    return held


@dataclass
class Arrival:
    """One step and one message that it reads.

    `wrap` makes a message of a payload: with the sender's own signature or MAC where it has one.
    """

    step: Callable[[Any, bytes], Any]
    state: Any
    payload: bytes
    wrap: Callable[[bytes], bytes] = bytes
    sender: str | None = None  # of a client's message, in a server step


def signed(identity: Any, bound: bytes, kind: type, name: str) -> Callable[[bytes], bytes]:
    stage = kind.__struct_config__.tag
    return lambda payload: (
        identity.sign(messages.signed_input(bound, stage, name, payload)) + payload
    )


def of_a_client(run: Any, kind: type, name: str = "c01") -> tuple[bytes, Callable[[bytes], bytes]]:
    stage = kind.__struct_config__.tag
    data, tail = run.sent[stage][name], b""
    if kind is messages.Masked:
        data, tail = messages.detach(data)[0], bytes(messages.detach(data)[1])
    if kind in FOR_THE_SERVER:
        link = run.states["shares"][name].link
        lead = lambda payload: keys.message_tag(link, stage, name, payload) + payload  # noqa: E731
    else:
        instance = run.server_states["begin"].session.instance
        bound = instance if kind is Advert else session_id(run)
        lead = signed(run.world.identities[name], bound, kind, name)

    def wrap(payload: bytes) -> bytes:
        if kind is not messages.Masked:
            return lead(payload)
        head = lead(payload)
        end = len(head) + 2
        return len(head).to_bytes(2, "big") + head + bytes(-end % messages.ALIGNMENT) + tail

    return data[lead_bytes(kind) :], wrap


@cache
def round_arrivals() -> dict[str, Arrival]:
    run = World.nested().run()
    update = run.world.updates["c00"]
    found = {}
    for label, stage, received, step in (
        ("client.share", "advert", "adverts", lambda s, m: client.share(s, m, randomness=FRESH)),
        ("client.receive", "shares", "inbox", client.receive),
        (
            "client.mask",
            "shares",
            "inbox",
            lambda s, m: client.mask(s, m, update, randomness=FRESH),
        ),
        ("client.confirm", "masked", "survivors", client.confirm),
        ("client.reveal", "vote", "votes", client.reveal),
    ):
        found[label] = Arrival(step, run.states[stage]["c00"], run.received[received]["c00"])
    for label, kind, before, step in (
        ("server.collect_adverts", Advert, "begin", server.collect_adverts),
        ("server.route_shares", messages.Shares, "adverts", server.route_shares),
        ("server.collect_masked", messages.Masked, "inbox", server.collect_masked),
        ("server.collect_votes", messages.Vote, "survivors", server.collect_votes),
        ("server.open_sums", messages.Reveal, "votes", server.open_sums),
    ):
        state = run.server_states[before]
        if before == "votes":  # opening took the masked sums away
            state = server.collect_votes(clone(summed(run)), run.sent["vote"])[0]
        sent = run.sent[kind.__struct_config__.tag]
        payload, wrap = of_a_client(run, kind)
        found[label] = Arrival(replacing(step, sent), state, payload, wrap, "c01")
    found["server.collect_votes"].state = summed(run)
    return found


@cache
def _masked_again() -> Any:
    return World.nested().run(upto="vote")


def summed(run: Any) -> Any:
    """The state before the votes of the same attempt, with its sums still masked."""
    again = _masked_again()
    assert session_id(again) == session_id(run)
    return again.server_states["survivors"]


def replacing(step: Callable[..., Any], sent: dict[str, bytes]) -> Callable[[Any, bytes], Any]:
    return lambda state, data: step(state, {**sent, "c01": data})


@cache
def sketch_arrivals() -> dict[str, Arrival]:
    args = test_sketch.ARGS
    random, states, hellos = test_sketch.greet()
    broadcast = sketch.collect(*args, hellos)["c00"]
    sealed = {n: sketch.seal(clone(s), broadcast, randomness=random()) for n, s in states.items()}
    seal = sealed["c00"][1]
    group = sealed["c00"][0].group
    vectors = test_sketch.random_vectors(dims=(20,))
    ready = {n: sketch.unseal(clone(s), seal) for n, (s, _) in sealed.items()}
    sketches = {n: sketch.encode(clone(s), vectors[n], size=8) for n, s in ready.items()}
    roster, members, context = args
    where = {"roster": roster, "members": members, "context": context, "hellos": broadcast}
    leader = signed(test_sketch.IDENTITIES["c00"], group.id, messages.Seal, "c00")
    one = test_sketch.IDENTITIES["c01"]
    return {
        "sketch.seal": Arrival(
            lambda s, m: sketch.seal(s, m, randomness=FRESH), states["c00"], broadcast
        ),
        "sketch.unseal": Arrival(sketch.unseal, sealed["c01"][0], seal[64:], leader),
        "sketch.collect": Arrival(
            lambda _, m: sketch.collect(*args, {**hellos, "c01": m}),
            None,
            hellos["c01"][64:],
            signed(one, group.instance, messages.Hello, "c01"),
            "c01",
        ),
        "sketch.route": Arrival(
            lambda _, m: sketch.route(*args, broadcast, {"c00": m}), None, seal[64:], leader, "c00"
        ),
        "sketch.distances": Arrival(
            lambda _, m: sketch.distances({**sketches, "c01": m}, **where),
            None,
            sketches["c01"][64:],
            signed(one, group.id, messages.Sketch, "c01"),
            "c01",
        ),
        "sketch.distances, hellos": Arrival(
            lambda _, m: sketch.distances(sketches, **{**where, "hellos": m}), None, broadcast
        ),
    }


@cache
def beacon_arrivals() -> dict[str, Arrival]:
    world, plan, fresh = test_beacon.WORLD, test_beacon.PLAN, Randomness("arrivals")
    bound = {
        n: beacon.commit(world.identities[n], n, world.roster, plan, number=0, randomness=fresh())
        for n in plan.cohort
    }
    sent = {n: data for n, (_, data) in bound.items()}
    args = (world.roster, plan, 0)
    listed = beacon.collect(*args, sent)
    opened = {n: beacon.open_own(clone(state), listed) for n, (state, _) in bound.items()}
    replies = {n: data for n, (_, data) in opened.items()}
    values = beacon.conclude(*args, listed, replies)
    instance, one = beacon.instance_of(*args), world.identities["c01"]
    return {
        "beacon.open_own": Arrival(beacon.open_own, bound["c00"][0], listed),
        "beacon.verify": Arrival(beacon.verify, opened["c00"][0], values),
        "beacon.collect": Arrival(
            lambda _, m: beacon.collect(*args, {**sent, "c01": m}),
            None,
            sent["c01"][64:],
            signed(one, instance, beacon.Commitment, "c01"),
            "c01",
        ),
        "beacon.conclude": Arrival(
            lambda _, m: beacon.conclude(*args, listed, {**replies, "c01": m}),
            None,
            replies["c01"][64:],
            signed(one, instance, beacon.Opening, "c01"),
            "c01",
        ),
        "beacon.conclude, commitments": Arrival(
            lambda _, m: beacon.conclude(*args, m, replies), None, listed
        ),
    }


STEPS = {
    **dict.fromkeys(
        (
            "client.share",
            "client.receive",
            "client.mask",
            "client.confirm",
            "client.reveal",
            "server.collect_adverts",
            "server.route_shares",
            "server.collect_masked",
            "server.collect_votes",
            "server.open_sums",
        ),
        round_arrivals,
    ),
    **dict.fromkeys(
        (
            "sketch.seal",
            "sketch.unseal",
            "sketch.collect",
            "sketch.route",
            "sketch.distances",
            "sketch.distances, hellos",
        ),
        sketch_arrivals,
    ),
    **dict.fromkeys(
        (
            "beacon.open_own",
            "beacon.verify",
            "beacon.collect",
            "beacon.conclude",
            "beacon.conclude, commitments",
        ),
        beacon_arrivals,
    ),
}


def changed(draw: Callable[..., Any], real: bytes) -> bytes:
    data = bytearray(real)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)) | st.integers(0, 40))
        how = draw(st.sampled_from(["set", "cut", "insert", "end", "nasty", "twice"]))
        if how == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 70))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=70))
        elif how == "end":
            del data[at:]
        elif how == "nasty":
            data[at : at + draw(st.integers(0, 40))] = draw(st.sampled_from(NASTY))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


def fields_of(real: bytes) -> list[bytes]:
    """The elements of a message, each still encoded."""
    return [bytes(raw) for raw in msgspec.msgpack.decode(real, type=list[msgspec.Raw])]


def other_fields(draw: Callable[..., Any], real: bytes) -> bytes:
    """The message with some fields nasty, missing or too many; its array's head fits."""
    rows = fields_of(real)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(1, len(rows) - 1))
        rows[at] = draw(st.sampled_from(NASTY))
    if draw(st.integers(0, 5)) == 0:
        rows = rows[: draw(st.integers(0, len(rows)))] + draw(st.sampled_from([[], [b"\xc0"]]))
    return bytes([0x90 + len(rows)]) + b"".join(rows)


@st.composite
def hostile(draw: Callable[..., Any], arrival: Arrival) -> bytes:
    """Noise, a changed message, or what the sender itself signed over a changed payload."""
    kind = draw(st.sampled_from(["noise", "outside", "inside", "fields", "fields"]))
    if kind == "noise":
        return draw(st.binary(max_size=400) | st.sampled_from(NASTY))
    if kind == "outside":
        return changed(draw, arrival.wrap(arrival.payload))
    make = changed if kind == "inside" else other_fields
    return arrival.wrap(make(draw, arrival.payload))
