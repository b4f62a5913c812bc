"""The published vectors are what the generator makes, and what an independent reference computes
from SPEC.md alone.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import reference_primitives as primitives
from reference import Reference
from reference_sketch import SketchReference
from reference_sparse import SparseReference
from scripts import loaded

from fedtree_secagg import (
    Identity,
    Node,
    Plan,
    ProtocolError,
    Quantiser,
    Roster,
    ThresholdError,
    client,
    sketch,
)
from fedtree_secagg.primitives.ring import Ring
from fedtree_secagg.rounds import messages

FOLDER = Path(__file__).resolve().parents[2] / "secagg" / "vectors"
FILES = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
SETTING = FILES["setting.json"]
STEPS = ("advertise", "share", "mask", "confirm", "reveal")


def generator():
    return loaded(FOLDER / "generate.py", "generate_vectors")


def test_the_generator_reproduces_the_published_files():
    made = generator().generate()
    assert set(made) == set(FILES)
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, (
            f"{name} differs: run secagg/vectors/generate.py and say why"
        )


@pytest.fixture(scope="module")
def reference():
    randomness = {
        (step, row["client"]): bytes.fromhex(row["randomness"])
        for step in STEPS
        for row in FILES[f"{step}.json"]["accepted"]
    }
    randomness["server", ""] = bytes.fromhex(SETTING["server_randomness"])
    return Reference(SETTING, randomness)


def outputs(step):
    return {
        row["client"]: bytes.fromhex(row["output"]) for row in FILES[f"{step}.json"]["accepted"]
    }


def test_the_independent_reference_computes_every_message(reference):
    survivors = ["ann", "barbara", "cyd"]
    assert reference.plan_hash.hex() == SETTING["plan_hash"]
    assert reference.roster_hash.hex() == SETTING["roster_hash"]
    assert reference.advertise() == outputs("advertise")
    assert reference.share() == outputs("share")
    assert reference.mask(survivors) == outputs("mask")
    assert reference.confirm(survivors) == outputs("confirm")
    assert reference.reveal(survivors) == outputs("reveal")
    assert reference.opened(survivors) == FILES["open.json"]


def test_the_independent_reference_computes_the_messages_of_a_late_context():
    published = FILES["late.json"]
    randomness = {
        (step, name): bytes.fromhex(drawn)
        for step, rows in published["randomness"].items()
        for name, drawn in rows.items()
    }
    randomness["server", ""] = bytes.fromhex(published["server_randomness"])
    late = Reference(SETTING, randomness, bytes.fromhex(published["late"]))
    survivors = ["ann", "barbara", "cyd"]
    assert late.plan_hash.hex() == published["plan_hash"] != SETTING["plan_hash"]
    late.advertise()
    late.share()
    for step, made in (("masked", late.mask(survivors)), ("vote", late.confirm(survivors))):
        assert {name: data.hex() for name, data in made.items()} == published[step]
    assert late.opened(survivors) == published["open"]


def test_the_independent_reference_computes_every_message_of_the_sketch():
    made = SketchReference(SETTING, FILES["sketch.json"]).run()
    for name, row in FILES["sketch.json"]["members"].items():
        assert {step: data.hex() for step, data in made[name].items()} == {
            s: row[s] for s in ("hello", "seal", "sketch")
        }


def test_rejected_inputs_of_the_sketch_are_refused_as_published():
    published = FILES["sketch.json"]
    identity = Identity(bytes.fromhex(SETTING["identities"]["barbara"]))
    roster = Roster({n: bytes.fromhex(k) for n, k in SETTING["roster"].items()})
    members, context = tuple(sorted(SETTING["identities"])), bytes.fromhex(published["context"])
    row = published["members"]["barbara"]
    fresh = {step: bytes.fromhex(row[f"randomness_{step}"]) for step in ("hello", "seal")}
    greeted, _ = sketch.hello(
        identity, "barbara", roster, members, context, randomness=fresh["hello"]
    )
    hellos = [bytes.fromhex(published["members"][name]["hello"]) for name in members]
    for refused in FILES["sketch-seal.json"]["rejected"]:
        with pytest.raises((ProtocolError, ThresholdError)) as error:
            sketch.seal(greeted, bytes.fromhex(refused["input"]), randomness=fresh["seal"])
        assert (type(error.value).__name__, getattr(error.value, "blames", None)) == (
            refused["error"],
            refused["blames"],
        )
    state, _ = sketch.seal(
        greeted, messages.encode(messages.Hellos(tuple(hellos))), randomness=fresh["seal"]
    )
    for refused in FILES["sketch-unseal.json"]["rejected"]:
        with pytest.raises(ProtocolError) as error:
            sketch.unseal(state, bytes.fromhex(refused["input"]))
        assert (type(error.value).__name__, error.value.blames) == (
            refused["error"],
            refused["blames"],
        )
    sketch.unseal(state, bytes.fromhex(published["members"]["ann"]["seal"]))


def test_the_independent_reference_draws_the_beacon_and_its_graph():
    published = FILES["sparse.json"]
    keys = {n: bytes.fromhex(secret) for n, secret in published["identities"].items()}
    rows = [bytes([len(n)]) + n.encode() + primitives.ed25519_public(keys[n]) for n in sorted(keys)]
    reference = SparseReference(
        published, hashlib.sha256(b"fedtree-secagg/v1/roster\0" + b"".join(rows)).digest()
    )
    made = reference.ceremony()
    assert reference.tree_hash.hex() == published["tree_hash"]
    for step in ("commitment", "opening"):
        assert {n: data.hex() for n, data in made[step].items()} == published[step]
    assert [made["commitments"].hex(), made["openings"].hex()] == [
        published["commitments"],
        published["openings"],
    ]
    assert reference.beacon.hex() == published["beacon"]
    for what, value in reference.graph().items():
        assert value == published[what], what


def plan_of(setting):
    p = setting["plan"]
    nodes = tuple(
        Node(n["name"], tuple(n["members"]), tuple(tuple(r) for r in n["ranges"]))
        for n in p["nodes"]
    )
    return Plan(
        p["length"],
        nodes,
        p["threshold"],
        Quantiser(p["clip"], p["bits"], p["saturate"]),
        bytes.fromhex(p["context"]),
        p["min_group"],
        p["colluders"],
        Ring(p["ring_bits"]),
    )


def replay(upto):
    """Bring ann's state to just before a step, from the files alone."""
    rows = {step: FILES[f"{step}.json"]["accepted"][0] for step in STEPS}
    identity = Identity(bytes.fromhex(SETTING["identities"]["ann"]))
    roster = Roster({n: bytes.fromhex(k) for n, k in SETTING["roster"].items()})
    counters = {"round": SETTING["round"], "attempt": SETTING["attempt"]}
    fresh = {step: bytes.fromhex(row["randomness"]) for step, row in rows.items()}
    vector = np.array(SETTING["updates"]["ann"])
    state, _ = client.advertise(
        identity, "ann", roster, plan_of(SETTING), **counters, randomness=fresh["advertise"]
    )
    calls = {
        "share": lambda s, m: client.share(s, m, randomness=fresh["share"]),
        "mask": lambda s, m: client.mask(s, m, vector, randomness=fresh["mask"]),
        "confirm": client.confirm,
        "reveal": client.reveal,
    }
    for step, call in calls.items():
        if step == upto:
            return state, call, rows[step]
        state, data = call(state, bytes.fromhex(rows[step]["input"]))
        assert data.hex() == rows[step]["output"]
    raise AssertionError(upto)


@pytest.mark.parametrize("step", STEPS[1:])
def test_rejected_inputs_are_refused_as_published_and_leave_the_state_usable(step):
    state, call, accepted = replay(step)
    rejected = FILES[f"{step}.json"]["rejected"]
    assert len(rejected) >= 4
    for row in rejected:
        with pytest.raises((ProtocolError, ThresholdError)) as error:
            call(state, bytes.fromhex(row["input"]))
        assert (type(error.value).__name__, getattr(error.value, "blames", None)) == (
            row["error"],
            row["blames"],
        ), row["why"]
    result = call(state, bytes.fromhex(accepted["input"]))
    assert (result if step == "reveal" else result[1]).hex() == accepted["output"]


def test_published_inboxes_are_refused_before_there_is_a_vector():
    state, _, accepted = replay("mask")
    for row in FILES["mask.json"]["rejected"]:
        with pytest.raises((ProtocolError, ThresholdError)) as error:
            client.receive(state, bytes.fromhex(row["input"]))
        assert type(error.value).__name__ == row["error"], row["why"]
    opened = client.receive(state, bytes.fromhex(accepted["input"]))
    fresh = bytes.fromhex(accepted["randomness"])
    _, data = client.upload(opened, np.array(SETTING["updates"]["ann"]), randomness=fresh)
    assert data.hex() == accepted["output"]


def test_primitives_of_the_reference_meet_their_standards():
    # RFC 7748, 5.2
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    u = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert (
        primitives.x25519(scalar, u).hex()
        == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    )
    # RFC 8032, 7.1, test 2
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert primitives.ed25519_public(secret).hex() == public
    assert (
        primitives.ed25519_sign(secret, b"\x72")
        .hex()
        .startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8f")
    )
    # FIPS 197, C.3
    schedule = primitives.aes256_schedule(bytes(range(32)))
    block = primitives.aes256_block(schedule, bytes.fromhex("00112233445566778899aabbccddeeff"))
    assert block.hex() == "8ea2b7ca516745bfeafc49904b496089"
    # The GCM specification, test case 14
    sealed = primitives.aes256_gcm_encrypt(bytes(32), bytes(12), bytes(16), b"")
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
