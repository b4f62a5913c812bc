"""Who is with whom, and over which model: a client with another plan takes part in nothing."""

import hashlib
from dataclasses import replace

import pytest
from harness import FRESH, World, flat_plan, names, nested_plan, refused

from fedtree_secagg import ConfigurationError, Identity, Node, Quantiser, Roster, client, server
from fedtree_secagg.primitives.ring import Ring
from fedtree_secagg.rounds.session import Session

SWAP = {"c00": "c04", "c04": "c00"}


# The server chooses who is with whom


@pytest.mark.parametrize("colluders", [1, 2, 4])
def test_partition_a_group_full_of_colluders_is_refused(colluders):
    with refused("min_group must be at least", error=ConfigurationError):
        flat_plan(n=12, colluders=colluders, threshold=10, min_group=colluders + 1)
    flat_plan(n=12, colluders=colluders, threshold=10, min_group=max(3, colluders + 2))


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": (Node("all", names(9)[:8], ((0, 80),)),), "threshold": 6},
        {
            "nodes": tuple(
                replace(n, members=tuple(SWAP.get(m, m) for m in n.members))
                for n in nested_plan().nodes
            )
        },
        {"min_group": 4},
        {"threshold": 7},
        {"colluders": 0},
        {"quantiser": Quantiser(2.0, 19)},
        {"quantiser": Quantiser(2.5, 20)},
        {"quantiser": Quantiser(2.0, 20, saturate=True)},
        {"context": hashlib.sha256(b"another model").digest()},
        {"length": 81},
        {"ring": Ring(16), "quantiser": Quantiser(2.0, 12)},
    ],
)
def test_partition_and_other_model_a_client_with_another_plan_or_model_takes_part_in_nothing(
    change,
):
    world = World.nested()
    other = replace(World.of(nested_plan(**change)), roster=world.roster)
    run = other.run(upto="advert")
    assert (
        run.server_states["begin"].session.instance
        != world.run(upto="advert").server_states["begin"].session.instance
    )
    with refused("signature does not match"):
        world.run(tamper={("advert", "c01"): lambda _: run.sent["advert"]["c01"]})
    with refused("own advert is missing"):
        mine = world.run(upto="advert").states["advert"]["c00"]
        client.share(mine, run_broadcast(other), randomness=FRESH)


def run_broadcast(world):
    run = world.run(upto="advert", attempt=3)
    return server.collect_adverts(run.server_states["begin"], run.sent["advert"])[1]["c00"]


def test_partition_only_pinned_identities_take_part():
    world = World.nested()
    stranger = Identity.generate(FRESH)
    with refused("pins another key", error=ConfigurationError):
        client.advertise(
            stranger, "c00", world.roster, world.plan, round=0, attempt=0, randomness=FRESH
        )
    with refused("does not name", error=ConfigurationError):
        Session(Roster({"c00": stranger.public_bytes}), world.plan, 0, 0)
