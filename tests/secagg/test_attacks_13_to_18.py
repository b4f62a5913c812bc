"""Rows 13 to 18 of the attack table: `test_row_NN_...`; `mutants.py` removes each guard and sees
these fail.
"""

import numpy as np
import pytest
from harness import (
    FRESH,
    World,
    adverts_message,
    attach,
    edit,
    flat_plan,
    forge,
    names,
    opened_sums,
    plain_sums,
    refused,
    session_id,
)

from fedtree_secagg import ConfigurationError, ProtocolError, Quantiser, client, server
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
    Votes,
)

SMALL_ORDER = bytes(32)


# Row 13: false shares, and who is named


def test_row_13_a_holder_that_answers_other_shares_is_named():
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


def test_row_13_a_dealer_whose_shares_are_of_another_secret_is_named(monkeypatch):
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


def test_row_13_shares_that_are_no_secret_at_all_name_the_dealer(monkeypatch):
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
def test_row_13_a_bundle_that_cannot_be_right_names_the_dealer(monkeypatch, lie, match):
    run = World.nested().run(upto="shares")
    session, holder = session_id(run), "c05"
    bundle = lie(tuple(bytes(66) for _ in range(4)))
    digest = client._digest(bundle, session, "c03", holder)
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


def test_row_13_a_bundle_that_differs_from_its_signed_digest_names_the_dealer():
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


# Rows 14 and 15: metadata, sparse coordinates


def test_row_14_and_15_lengths_say_nothing_about_the_update():
    world = World.of(flat_plan(n=5, length=500))
    dense = world.run().sent
    for update in world.updates.values():
        update[1:] = 0
    sparse = world.run(attempt=1).sent
    for stage in ("shares", "masked", "vote", "reveal"):
        assert {len(data) for data in dense[stage].values()} == {
            len(data) for data in sparse[stage].values()
        }
        assert len({len(data) for data in sparse[stage].values()}) == 1


# Row 16: overflow and oversize contributions


def test_row_16_a_sum_that_could_wrap_is_refused_before_it_starts():
    flat_plan(n=8, quantiser=Quantiser(1.0, 29))
    with refused("at most 29 bits", error=ConfigurationError):
        flat_plan(n=8, quantiser=Quantiser(1.0, 30))
    with refused("at most 28 bits", error=ConfigurationError):
        flat_plan(n=9, quantiser=Quantiser(1.0, 29))
    with refused("at most 13 bits", error=ConfigurationError):
        flat_plan(n=8, ring=Ring(16), quantiser=Quantiser(1.0, 14))
    with refused("at most 13 bits", error=ConfigurationError):
        flat_plan(n=8, ring=Ring(16), quantiser=Quantiser(1.0, 20))


@pytest.mark.parametrize("value", [1.0001, -2.0, np.nan, np.inf, -np.inf])
def test_row_16_the_client_sends_nothing_beyond_the_clip(value):
    world = World.of(flat_plan())
    run = world.run(upto="shares")
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    update = world.updates["c00"].copy()
    update[7] = value
    with refused("beyond the clip|nan or infinite", error=ConfigurationError):
        client.mask(run.states["shares"]["c00"], inboxes["c00"], update, randomness=FRESH)
    client.mask(run.states["shares"]["c00"], inboxes["c00"], world.updates["c00"], randomness=FRESH)


def test_row_16_the_server_refuses_a_sum_beyond_n_times_the_clip(monkeypatch):
    monkeypatch.setattr(Quantiser, "quantise_into", lambda self, out, values, key: out.fill(2**20))
    with refused("beyond 5 times the clip"):
        World.of(flat_plan()).run()


def test_row_16_a_refused_sum_leaves_all_sums_masked_as_they_were(monkeypatch):
    world, quantise = World.nested(), Quantiser.quantise_into

    def beyond_in_the_last_node(self, out, values, key):
        quantise(self, out, values, key)
        if len(out) == world.plan.nodes[-1].width:
            out.fill(2**20)

    monkeypatch.setattr(Quantiser, "quantise_into", beyond_in_the_last_node)
    run = world.run(upto="vote")
    agreed, votes = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    reveals = {name: client.reveal(run.states["vote"][name], data) for name, data in votes.items()}
    before = {name: total.copy() for name, total in agreed.totals.items()}
    for _ in range(2):
        with refused("times the clip"):
            server.open_sums(agreed, reveals)
        assert all(np.array_equal(agreed.totals[name], total) for name, total in before.items())


def test_row_16_sums_that_were_half_opened_when_the_step_was_broken_off_are_never_shown(
    monkeypatch,
):
    run = World.nested().run(upto="vote")
    agreed, votes = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    reveals = {name: client.reveal(run.states["vote"][name], data) for name, data in votes.items()}
    original, calls = Ring.add_masks, []

    def interrupted(self, target, masks):
        calls.append(original(self, target, masks))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ring, "add_masks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.open_sums(agreed, reveals)
    with refused("run another attempt"):
        server.open_sums(agreed, reveals)


# Row 17: forged and changed messages


@pytest.mark.parametrize("stage", ["advert", "shares", "masked", "vote", "reveal"])
@pytest.mark.parametrize("byte", [0, 70, -1])
def test_row_17_a_changed_byte_is_refused_and_blames_nobody(stage, byte):
    def flip(data):
        changed = bytearray(data)
        changed[byte] ^= 1
        return bytes(changed)

    with pytest.raises(ProtocolError) as error:
        World.nested().run(tamper={(stage, "c02"): flip})
    assert (error.value.blames, error.value.sender) == (None, "c02")


def test_row_17_a_vector_changed_on_its_way_is_refused():
    run = World.nested().run(upto="masked")
    for name, change in (
        ("c02", lambda d: d[:-1] + bytes([d[-1] ^ 1])),
        ("c02", lambda d: d[:-4]),
        ("c02", lambda d: d + d),
    ):
        with refused("does not match its tag"):
            server.collect_masked(
                run.server_states["inbox"],
                {**run.sent["masked"], name: change(run.sent["masked"][name])},
            )
    head = messages.detach(run.sent["masked"]["c02"])[0]
    moved = attach(head, messages.detach(run.sent["masked"]["c03"])[1])
    with refused("does not match its tag"):
        server.collect_masked(run.server_states["inbox"], {**run.sent["masked"], "c02": moved})


def test_row_17_a_server_key_that_is_a_clients_or_of_small_order_is_refused():
    run = World.nested().run(upto="advert")
    _, broadcast = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    victim = messages.decode(Advert, run.sent["advert"]["c05"][64:]).channel_key
    for key, match in ((victim, "same key"), (SMALL_ORDER, "'the server' has small order")):
        with refused(match):
            forged = edit(Adverts, server_key=lambda _, key=key: key)(broadcast["c00"])
            client.share(run.states["advert"]["c00"], forged, randomness=FRESH)


def test_row_17_a_man_in_the_middle_with_a_server_key_of_his_own_changes_the_session():
    meddle = {("adverts", "c00"): edit(Adverts, server_key=lambda _: keys.Pair(FRESH).public_bytes)}
    with refused("tag does not match"):
        World.nested().run(tamper=meddle)
    run = World.nested().run(upto="shares", tamper=meddle)
    assert (
        run.states["shares"]["c00"].cohort.id
        != session_id(run)
        == run.states["shares"]["c01"].cohort.id
    )


@pytest.mark.parametrize("kind", [Advert, Shares, Masked, Vote, Reveal])
def test_row_17_one_client_cannot_speak_for_another(kind):
    run = World.nested().run()
    stage = kind.__struct_config__.tag
    impersonated = forge(run, kind, "c02", signer="c03")
    with refused("(signature|tag) does not match"):
        World.nested().run(tamper={(stage, "c02"): lambda _: impersonated})
    with refused("names 'c03' as its sender"):
        World.nested().run(tamper={(stage, "c02"): lambda _: run.sent[stage]["c03"]})


def test_row_17_a_signature_is_bound_to_version_stage_session_sender_and_content():
    base = (bytes(32), "vote", "c00", b"payload")
    inputs = {messages.signed_input(*base)}
    for place, other in enumerate([bytes(31) + b"\1", "votf", "c01", b"payloae"]):
        inputs.add(messages.signed_input(*base[:place], other, *base[place + 1 :]))
    assert len(inputs) == 5
    assert all(messages.VERSION in text for text in inputs)


def test_row_17_a_tag_for_the_server_is_bound_to_session_stage_sender_and_content():
    def link(session):
        return keys.Pair(FRESH).agree(session, "the server", keys.Pair(bytes(32)).public_bytes)

    base = (bytes(32), "shares", "c00", b"payload")
    tags = set()
    for changes in ({}, {0: bytes(31) + b"\1"}, {1: "reveal"}, {2: "c01"}, {3: b"payloae"}):
        session, *rest = (changes.get(place, value) for place, value in enumerate(base))
        tags.add(keys.message_tag(link(session), *rest))
    assert len(tags) == 5


def test_row_17_a_forged_advert_in_the_broadcast_is_refused_by_the_clients():
    world = World.nested()
    fake = forge(world.run(upto="advert"), Advert, "c01", signer="c02", mask_key=FRESH)
    with refused("signature does not match"):
        world.run(
            tamper={("adverts", "c00"): edit(Adverts, adverts=lambda r: (r[0], fake, *r[2:]))}
        )


def test_row_17_a_forged_vote_is_refused_by_the_clients():
    run = World.nested().run()
    fake = forge(run, Vote, "c01", signer="c02")
    with refused("signature does not match"):
        World.nested().run(
            tamper={("votes", "c00"): edit(Votes, votes=lambda v: (v[0], fake, *v[2:]))}
        )


# Row 18: zero, small-order, duplicate and reflected keys


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_row_18_a_key_of_small_order_is_refused_and_names_its_sender(field):
    run = World.nested().run(upto="advert")
    zero = forge(run, Advert, "c05", **{field: SMALL_ORDER})
    signed = {**run.sent["advert"], "c05": zero}
    with refused("small order", blames="c05"):
        server.collect_adverts(run.server_states["begin"], signed)
    broadcast = adverts_message(keys.Pair(FRESH).public_bytes, (signed[n] for n in sorted(signed)))
    with refused("small order", blames="c05"):
        client.share(run.states["advert"]["c00"], broadcast, randomness=FRESH)


def test_row_18_a_reflected_or_shared_key_is_refused():
    run = World.nested().run(upto="advert")
    mine = messages.decode(Advert, run.sent["advert"]["c00"][64:])
    for field, key in (
        ("mask_key", mine.mask_key),
        ("channel_key", mine.mask_key),
        ("mask_key", mine.channel_key),
    ):
        echo = forge(run, Advert, "c05", **{field: key})
        with refused("same key"):
            server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c05": echo})
    disguised = bytes([*mine.mask_key[:31], mine.mask_key[31] | 0x80])  # X25519 ignores the top bit
    hidden = forge(run, Advert, "c05", mask_key=disguised)
    with refused("canonical form", blames="c05"):
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c05": hidden})
    both = forge(run, Advert, "c05", mask_key=FRESH, channel_key=FRESH)
    with refused("same key", blames="c05"):
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c05": both})


def test_an_honest_world_still_opens_exactly():
    run = World.nested().run()
    assert opened_sums(run) == plain_sums(run, names(9))
