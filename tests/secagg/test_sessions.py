"""One session, one use: old messages, updates and mask streams serve no second time."""

import hashlib
from contextlib import nullcontext

import numpy as np
import pytest
from harness import (
    FRESH,
    Randomness,
    World,
    edit,
    forge,
    names,
    refused,
)

from fedtree_secagg import (
    ProtocolError,
    client,
    server,
)
from fedtree_secagg.journal import Journal
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.ring import Ring
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Advert,
    Adverts,
    Inbox,
    Masked,
    Reveal,
    Shares,
    Vote,
)

# Replay


def test_replay_adverts_of_another_attempt_are_refused():
    world = World.nested()
    old = world.run(upto="advert").sent["advert"]
    with refused("signature does not match"):
        world.run(tamper={("advert", "c01"): lambda _: old["c01"]}, attempt=1)
    with refused("signature does not match"):
        world.run(
            tamper={
                ("adverts", "c00"): edit(Adverts, adverts=lambda r: (r[0], old["c01"], *r[2:]))
            },
            round=1,
        )


def test_replay_an_advert_that_its_sender_dates_otherwise_is_refused():
    run = World.nested().run(upto="advert")
    wrong = forge(run, Advert, "c01", instance=bytes(32))
    with refused("another round, attempt or plan", blames="c01"):
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c01": wrong})


def test_replay_boxes_of_another_session_do_not_open():
    world = World.nested()
    old = world.run(upto="shares")
    _, old_inbox = server.route_shares(old.server_states["adverts"], old.sent["shares"])
    world.random = Randomness(
        0
    )  # a client that rolled back to the same keys: only the session id differs
    stale = messages.decode(Inbox, old_inbox["c00"]).boxes[0]
    with refused("changed on its way or made for another session"):
        world.run(
            tamper={("inbox", "c00"): edit(Inbox, boxes=lambda b: (stale, *b[1:]))}, attempt=1
        )
    with refused("another session"):
        world.run(tamper={("inbox", "c00"): lambda _: old_inbox["c00"]}, attempt=2)


@pytest.mark.parametrize(("stage", "received"), [("survivors", "survivors"), ("votes", "votes")])
def test_replay_server_messages_of_another_session_are_refused(stage, received):
    world = World.nested()
    old = world.run(round=1).received[stage]["c00"]
    with refused("another session"):
        world.run(tamper={(stage, "c00"): lambda _: old}, round=2)


@pytest.mark.parametrize("stage", ["shares", "masked", "vote", "reveal"])
def test_replay_client_messages_of_another_session_are_refused(stage):
    world = World.nested()
    old = world.run().sent[stage]["c00"]
    with refused("(signature|tag) does not match"):
        world.run(tamper={(stage, "c00"): lambda _: old}, attempt=1)


@pytest.mark.parametrize("kind", [Shares, Masked, Vote, Reveal])
def test_replay_a_session_field_that_differs_from_the_signed_one_blames_its_sender(kind):
    # The same randomness gives the same session, so that what one world signed fits the other.
    wrong = forge(World.nested().run(), kind, "c04", session=bytes(32))
    with refused("another session", blames="c04"):
        World.nested().run(tamper={(kind.__struct_config__.tag, "c04"): lambda _: wrong})


# The same update in two sums


def test_reused_update_every_state_serves_once_and_a_refused_step_gives_it_back():
    world = World.nested()
    run = world.run()
    received = run.received
    state = run.states
    again = [
        lambda: client.share(state["advert"]["c00"], received["adverts"]["c00"], randomness=FRESH),
        lambda: client.mask(
            state["shares"]["c00"], received["inbox"]["c00"], world.updates["c00"], randomness=FRESH
        ),
        lambda: client.confirm(state["masked"]["c00"], received["survivors"]["c00"]),
        lambda: client.reveal(state["vote"]["c00"], received["votes"]["c00"]),
        lambda: server.collect_adverts(run.server_states["begin"], run.sent["advert"]),
        lambda: server.open_sums(run.server_states["votes"], run.sent["reveal"]),
    ]
    for step in again:
        with refused("used already"):
            step()
    fresh = world.run(upto="shares", attempt=1)
    _, inboxes = server.route_shares(fresh.server_states["adverts"], fresh.sent["shares"])
    for bad in (b"", inboxes["c01"]):
        with pytest.raises(ProtocolError):
            client.mask(fresh.states["shares"]["c00"], bad, world.updates["c00"], randomness=FRESH)
    client.mask(
        fresh.states["shares"]["c00"], inboxes["c00"], world.updates["c00"], randomness=FRESH
    )


def test_reused_update_the_same_updates_in_two_attempts_would_show_one(tmp_path):
    """c00 to c02 reveal nothing at first, and others open their node: what the journal refuses
    their updates for.
    """
    world, c = World.nested(), names(9)
    first = world.run(drops={"reveal": c[:3]})
    second = world.run(drops={"masked": c[3:4]}, attempt=1)
    sums = [run.opened["left-deep"] for run in (first, second)]
    assert [len(found.members_summed) for found in sums] == [4, 3]
    victim = sums[0].node.gather(world.updates["c03"])
    assert (
        np.abs(sums[0].values() - sums[1].values() - victim).max() <= 8 * world.plan.quantiser.step
    )
    with Journal.open(tmp_path / "c00") as journal:
        for refuses in (False, True):
            journal.begin(0)
            journal.record("advertised")
            journal.record("shared")
            with refused("fresh noise") if refuses else nullcontext():
                journal.record(
                    "masked", update=hashlib.sha256(world.updates["c00"].tobytes()).digest()
                )


# A mask stream used twice


def test_mask_reuse_no_mask_key_serves_twice_even_after_a_rollback(monkeypatch):
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


def test_mask_reuse_boxes_never_share_key_and_nonce(monkeypatch):
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
