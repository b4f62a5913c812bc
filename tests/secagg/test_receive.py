"""All that the server sent is checked by `receive`, before the vector exists; `upload` comes after.

`mask` is both in one. What an application trains between the two is never computed for an inbox
that is refused afterwards.
"""

import inspect
import pickle

import numpy as np
import pytest
from harness import FRESH, World, edit, names, opened_sums, plain_sums, refused, those

from fedtree_secagg import ConfigurationError, ProtocolError, ThresholdError, client, server
from fedtree_secagg.rounds.messages import Inbox


def inboxes(world=None):
    run = (world or World.nested()).run(upto="shares")
    return run, server.route_shares(run.server_states["adverts"], run.sent["shares"])[1]


def flipped(data, at=-1):
    return data[:at] + bytes([data[at] ^ 1]) + (data[at + 1 :] if at != -1 else b"")


BROKEN = {
    "nothing": lambda _: b"",
    "noise": lambda _: b"\xff" * 400,
    "deep": lambda _: b"\x91" * 5000,
    "no text": lambda _: b"\x92\xa5inbo\xff\xc0",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "a changed box": flipped,
    "a changed digest": edit(Inbox, digests=lambda rows: (flipped(rows[0]), *rows[1:])),
    "boxes in another order": edit(Inbox, boxes=lambda rows: rows[::-1]),
    "a box too few": edit(Inbox, boxes=lambda rows: rows[:-1]),
    "a digest too many": edit(Inbox, digests=lambda rows: (*rows, rows[0])),
    "another session": edit(Inbox, session=lambda _: FRESH),
    "no such set": edit(Inbox, sharers=lambda bits: bits + b"\0"),
    "itself left out": edit(Inbox, sharers=those(lambda n: [x for x in n if x != "c00"])),
    "one left out": edit(Inbox, sharers=those(lambda n: n[:8])),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_inbox_is_refused_and_leaves_the_state_as_it_was(what):
    run, shown = inboxes()
    state = run.states["shares"]["c00"]
    before = parts(state)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            client.receive(state, BROKEN[what](shown["c00"]))
    assert parts(state) == before
    opened = client.receive(state, shown["c00"])
    assert client.upload(opened, run.world.updates["c00"], randomness=FRESH)


def parts(state):
    """What a state holds, but its lock; keys by what they show."""
    slots = [slot for kind in type(state).__mro__ for slot in getattr(kind, "__slots__", ())]
    held = {slot: getattr(state, slot) for slot in slots if slot != "_lock"}
    return {s: getattr(value, "public_bytes", value) for s, value in held.items()}


def test_too_few_sharers_end_the_attempt_before_the_vector():
    run, shown = inboxes()
    few = edit(
        Inbox, sharers=those(lambda n: n[:5]), digests=lambda d: d[:4], boxes=lambda b: b[:4]
    )
    with refused("5 participants are left, the threshold is 6", error=ThresholdError):
        client.receive(run.states["shares"]["c00"], few(shown["c00"]))


def test_receive_and_upload_give_the_bytes_of_mask():
    runs = [inboxes(), inboxes()]
    for name in names(9):
        (run, shown), (again, _) = runs
        state, data = client.mask(
            run.states["shares"][name], shown[name], run.world.updates[name], randomness=FRESH
        )
        opened = client.receive(again.states["shares"][name], shown[name])
        other, same = client.upload(opened, run.world.updates[name], randomness=FRESH)
        assert same == data
        assert parts(other)["bundles"] == parts(state)["bundles"]
        assert other.spoken == state.spoken


def test_a_round_whose_clients_train_between_opens_the_exact_sums(monkeypatch):
    def apart(state, inbox, vector, *, randomness, late=b""):
        opened = client.receive(state, inbox, late=late)
        return client.upload(opened, vector, randomness=randomness)

    monkeypatch.setattr("harness.client.mask", apart)
    run = World.nested().run({"masked": ["c03"]})
    assert opened_sums(run) == plain_sums(run, set(names(9)) - {"c03"})


def test_states_of_both_steps_serve_once():
    run, shown = inboxes()
    state, update = run.states["shares"]["c00"], run.world.updates["c00"]
    opened = client.receive(state, shown["c00"])
    with refused("used already"):
        client.receive(state, shown["c00"])
    with refused("used already"):
        client.mask(state, shown["c00"], update, randomness=FRESH)
    client.upload(opened, update, randomness=FRESH)
    with refused("used already"):
        client.upload(opened, update, randomness=FRESH)
    assert repr(opened) == "<Opened>"
    with pytest.raises(TypeError, match="holds secrets"):
        pickle.dumps(opened)


def test_upload_refuses_the_callers_own_mistakes_only_and_can_be_called_again():
    run, shown = inboxes()
    update = run.world.updates["c00"]
    opened = client.receive(run.states["shares"]["c00"], shown["c00"])
    for bad in (update[:-1], update.astype(np.int64), update * np.nan, update * 1e9, [0.0] * 80):
        with pytest.raises(ConfigurationError):
            client.upload(opened, bad, randomness=FRESH)
    with pytest.raises(ConfigurationError, match="randomness"):
        client.upload(opened, update, randomness=bytes(32))
    client.upload(opened, update, randomness=FRESH)


def test_receive_can_read_no_vector_and_draw_no_randomness():
    assert list(inspect.signature(client.receive).parameters) == ["state", "inbox", "late"]
    assert "inbox" not in inspect.signature(client.upload).parameters


def test_mask_checks_the_vector_first_and_gives_the_state_back():
    run, shown = inboxes()
    state, update = run.states["shares"]["c00"], run.world.updates["c00"]
    broken = edit(Inbox, boxes=lambda _: ())(shown["c00"])
    for inbox, vector, error in (
        (shown["c00"], update[:-1], ConfigurationError),
        (broken, update, ProtocolError),
        (shown["c00"], update * np.nan, ConfigurationError),
    ):
        with pytest.raises(error):
            client.mask(state, inbox, vector, randomness=FRESH)
    client.mask(state, shown["c00"], update, randomness=FRESH)
