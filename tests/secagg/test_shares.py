"""False shares are noticed, and named when signed words prove whose fault they are."""

import pytest
from harness import (
    FRESH,
    World,
    edit,
    forge,
    refused,
    session_id,
)

from fedtree_secagg import client, server
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import bundles, messages
from fedtree_secagg.rounds.messages import (
    Inbox,
    Reveal,
)

# False shares, and who is named


def test_false_shares_a_holder_that_answers_other_shares_is_named():
    run = World.nested().run()
    body = bytearray(messages.decode(Reveal, run.sent["reveal"]["c01"][32:]).body)
    body[40] ^= 1  # inside the first opened share
    false = forge(run, Reveal, "c01", body=bytes(body))
    again = World.nested().run(tamper={}, upto="vote")
    state, _ = server.collect_votes(again.server_states["survivors"], again.sent["vote"])
    with refused("not the shares that 'c00' dealt", blames="c01"):
        server.open_sums(state, {**run.sent["reveal"], "c01": false})
    rest = {n: d for n, d in run.sent["reveal"].items() if n != "c01"}
    assert set(server.open_sums(state, rest)) == {n.name for n in run.world.plan.nodes}


def test_false_shares_a_dealer_whose_shares_are_of_another_secret_is_named(monkeypatch):
    original = client._deal

    def lie(slot):
        def deal(state, cohort, stream):
            if state.name == "c03" and slot == 0:
                state.mask = keys.Pair(bytes(range(1, 33)))
            if state.name == "c03" and slot:
                state.seeds = (type(state.seeds[0])(bytes(32)), *state.seeds[1:])
            return original(state, cohort, stream)

        return deal

    monkeypatch.setattr(client, "_deal", lie(1))
    with refused("rebuild another secret", blames="c03"):
        World.nested().run()
    monkeypatch.setattr(client, "_deal", lie(0))
    with refused("rebuild another secret", blames="c03"):
        World.nested().run({"masked": ["c03"]})


def test_false_shares_shares_that_are_no_secret_at_all_name_the_dealer(monkeypatch):
    original = client._deal

    def deal(state, cohort, stream):
        dealt = original(state, cohort, stream)
        if state.name == "c03":
            dealt = {holder: (b"\0\0" + stream(64), *b[1:]) for holder, b in dealt.items()}
        return dealt

    monkeypatch.setattr(client, "_deal", deal)
    with refused("rebuild another secret", blames="c03"):
        World.nested().run({"masked": ["c03"]})


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (lambda bundle: (b"\xff" * 66, *bundle[1:]), "no field element"),
        (lambda bundle: (bundle[0][:65], *bundle[1:]), "wrong length"),
    ],
)
def test_false_shares_a_bundle_that_cannot_be_right_names_the_dealer(monkeypatch, lie, match):
    run = World.nested().run(upto="shares")
    session, holder = session_id(run), "c05"
    bundle = lie(tuple(bytes(66) for _ in range(4)))
    digest = bundles.digest(bundle, session, "c03", holder)
    channel = run.states["shares"]["c03"].channels[holder]
    box = keys.seal(channel, bytes(12), b"".join(bundle), session, "c03", holder, digest)
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    forged = edit(Inbox, boxes=put(3, box))(inboxes[holder])
    with refused(
        "changed on its way"
    ):  # the digest beside it is not the one this box was sealed with
        client.mask(
            run.states["shares"][holder], forged, run.world.updates[holder], randomness=FRESH
        )
    forged = edit(Inbox, digests=put(3, digest))(forged)
    with refused(match, blames="c03"):
        client.mask(
            run.states["shares"][holder], forged, run.world.updates[holder], randomness=FRESH
        )


def put(place, new):
    return lambda rows: (*rows[:place], new, *rows[place + 1 :])


def test_false_shares_a_bundle_that_differs_from_its_signed_digest_names_the_dealer():
    run = World.nested().run(upto="shares")
    dealt, session, holder = run.states["shares"]["c00"], session_id(run), "c05"
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    digest = messages.decode(Inbox, inboxes[holder]).digests[0]
    box = keys.seal(
        dealt.channels[holder], bytes(12), bytes(66 * 4), session, "c00", holder, digest
    )
    forged = edit(Inbox, boxes=lambda rows: (box, *rows[1:]))(inboxes[holder])
    with refused("not the one it signed for", blames="c00"):
        client.mask(
            run.states["shares"][holder], forged, run.world.updates[holder], randomness=FRESH
        )
