"""Rows 7 to 12 of the attack table: `test_row_NN_...`; `mutants.py` removes each guard and sees
these fail.
"""

import hashlib
from dataclasses import replace

import pytest
from harness import (
    FRESH,
    World,
    flat_plan,
    names,
    nested_plan,
    refused,
    shares_in,
)

from fedtree_secagg import ConfigurationError, Identity, Node, Quantiser, Roster, client, server
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.ring import Ring
from fedtree_secagg.rounds.session import Session

SWAP = {"c00": "c04", "c04": "c00"}


# Row 7: the server chooses who is with whom


@pytest.mark.parametrize("colluders", [1, 2, 4])
def test_row_07_a_group_full_of_colluders_is_refused(colluders):
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
def test_row_07_and_10_a_client_with_another_plan_or_model_takes_part_in_nothing(change):
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


def test_row_07_only_pinned_identities_take_part():
    world = World.nested()
    stranger = Identity.generate(FRESH)
    with refused("pins another key", error=ConfigurationError):
        client.advertise(
            stranger, "c00", world.roster, world.plan, round=0, attempt=0, randomness=FRESH
        )
    with refused("does not name", error=ConfigurationError):
        Session(Roster({"c00": stranger.public_bytes}), world.plan, 0, 0)


# Row 8: complements and small clusters


@pytest.mark.parametrize("size", [1, 2])
def test_row_08_a_cluster_of_one_or_two_is_refused(size):
    nodes = (Node("small", names(5)[:size], ((0, 40),)), Node("rest", names(5)[size:], ((0, 40),)))
    with refused("min_group is 3", error=ConfigurationError):
        flat_plan(n=5, nodes=nodes)
    with refused("min_group must be at least 3", error=ConfigurationError):
        flat_plan(n=5, min_group=size, colluders=0)


def test_row_08_a_coordinate_of_a_client_is_in_one_sum_only():
    nodes = (Node("all", names(5), ((0, 40),)), Node("but-one", names(5)[:4], ((39, 40),)))
    with refused("share coordinate 39", error=ConfigurationError):
        flat_plan(n=5, nodes=nodes)


# Row 9: a node that shrinks


def test_row_09_a_node_below_min_group_is_not_opened_and_its_seeds_stay_hidden():
    run = World.nested().run({"masked": ["c00", "c01"]})
    assert "left" not in run.opened
    assert "left-deep" not in run.opened
    plan = run.world.plan
    for holder in run.sent["reveal"]:
        for dealer in ("c02", "c03"):
            opened = [
                plan.nodes_of(dealer)[slot - 1].name for slot in shares_in(run, holder, dealer)
            ]
            assert opened == ["trunk"]


def test_row_09_the_key_of_one_who_dropped_out_is_kept_when_no_node_of_it_opens():
    c = names(9)
    plan = flat_plan(
        n=9, nodes=(Node("small", c[:3], ((0, 40),)), Node("large", c[3:], ((0, 40),)))
    )
    run = World.of(plan).run({"masked": ["c00"]})
    assert set(run.opened) == {"large"}
    assert not any(shares_in(run, holder, "c00") for holder in run.sent["reveal"])


# Row 11: a mask stream used twice


def test_row_11_no_mask_key_serves_twice_even_after_a_rollback(monkeypatch):
    seen = []
    original = Ring.add_masks

    def spy(self, target, masks):
        masks = list(masks)
        seen.append([key for key, _ in masks])
        original(self, target, masks)

    monkeypatch.setattr(Ring, "add_masks", spy)
    for counters in ({"attempt": 0}, {"attempt": 1}, {"round": 1}):
        World.nested().run(
            upto="masked", **counters
        )  # same randomness each time: a machine set back
    used = [key for keys_of_node in seen for key in keys_of_node]
    own = {keys_of_node[0] for keys_of_node in seen}
    assert len(own) == len(seen)  # self masks: one per client, node and attempt
    pair_uses = [used.count(key) for key in set(used) - own]
    assert set(pair_uses) == {2}  # the two ends of a pair, each once


def test_row_11_boxes_never_share_key_and_nonce(monkeypatch):
    seen = []
    original = keys.AESGCM

    class Spy:
        def __init__(self, key):
            self.key = key

        def encrypt(self, nonce, plain, data):
            seen.append((self.key, nonce))
            return original(self.key).encrypt(nonce, plain, data)

        def decrypt(self, *args):
            return original(self.key).decrypt(*args)

    monkeypatch.setattr(keys, "AESGCM", Spy)
    World.nested().run(upto="masked")
    assert len(seen) == 9 * 8 + 9  # a box to each other, and the tag of the upload
    assert len({key for key, _ in seen}) == len(seen)
    assert len({nonce for _, nonce in seen}) == len(seen)
