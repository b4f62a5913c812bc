"""Forged and changed messages, foreign speakers, and keys that are none."""

import pytest
from harness import (
    FRESH,
    World,
    adverts_message,
    attach,
    edit,
    forge,
    refused,
    session_id,
)

from fedtree_secagg import ProtocolError, client, server
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Advert,
    Adverts,
    Masked,
    Reveal,
    Shares,
    Vote,
    Votes,
)

SMALL_ORDER = bytes(32)

# Forged and changed messages


@pytest.mark.parametrize("stage", ["advert", "shares", "masked", "vote", "reveal"])
@pytest.mark.parametrize("byte", [0, 70, -1])
def test_identity_a_changed_byte_is_refused_and_blames_nobody(stage, byte):
    def flip(data):
        changed = bytearray(data)
        changed[byte] ^= 1
        return bytes(changed)

    with pytest.raises(ProtocolError) as error:
        World.nested().run(tamper={(stage, "c02"): flip})
    assert (error.value.blames, error.value.sender) == (None, "c02")


def test_identity_a_vector_changed_on_its_way_is_refused():
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


def test_identity_a_server_key_that_is_a_clients_or_of_small_order_is_refused():
    run = World.nested().run(upto="advert")
    _, broadcast = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    victim = messages.decode(Advert, run.sent["advert"]["c05"][64:]).channel_key
    for key, match in ((victim, "same key"), (SMALL_ORDER, "'the server' has small order")):
        with refused(match):
            forged = edit(Adverts, server_key=lambda _, key=key: key)(broadcast["c00"])
            client.share(run.states["advert"]["c00"], forged, randomness=FRESH)


def test_identity_a_man_in_the_middle_with_a_server_key_of_his_own_changes_the_session():
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
def test_identity_one_client_cannot_speak_for_another(kind):
    run = World.nested().run()
    stage = kind.__struct_config__.tag
    impersonated = forge(run, kind, "c02", signer="c03")
    with refused("(signature|tag) does not match"):
        World.nested().run(tamper={(stage, "c02"): lambda _: impersonated})
    with refused("names 'c03' as its sender"):
        World.nested().run(tamper={(stage, "c02"): lambda _: run.sent[stage]["c03"]})


def test_identity_a_signature_is_bound_to_version_stage_session_sender_and_content():
    base = (bytes(32), "vote", "c00", b"payload")
    inputs = {messages.signed_input(*base)}
    for place, other in enumerate([bytes(31) + b"\1", "votf", "c01", b"payloae"]):
        inputs.add(messages.signed_input(*base[:place], other, *base[place + 1 :]))
    assert len(inputs) == 5
    assert all(messages.VERSION in text for text in inputs)


def test_identity_a_tag_for_the_server_is_bound_to_session_stage_sender_and_content():
    def link(session):
        return keys.Pair(FRESH).agree(session, "the server", keys.Pair(bytes(32)).public_bytes)

    base = (bytes(32), "shares", "c00", b"payload")
    tags = set()
    for changes in ({}, {0: bytes(31) + b"\1"}, {1: "reveal"}, {2: "c01"}, {3: b"payloae"}):
        session, *rest = (changes.get(place, value) for place, value in enumerate(base))
        tags.add(keys.message_tag(link(session), *rest))
    assert len(tags) == 5


def test_identity_a_forged_advert_in_the_broadcast_is_refused_by_the_clients():
    world = World.nested()
    fake = forge(world.run(upto="advert"), Advert, "c01", signer="c02", mask_key=FRESH)
    with refused("signature does not match"):
        world.run(
            tamper={("adverts", "c00"): edit(Adverts, adverts=lambda r: (r[0], fake, *r[2:]))}
        )


def test_identity_a_forged_vote_is_refused_by_the_clients():
    run = World.nested().run()
    fake = forge(run, Vote, "c01", signer="c02")
    with refused("signature does not match"):
        World.nested().run(
            tamper={("votes", "c00"): edit(Votes, votes=lambda v: (v[0], fake, *v[2:]))}
        )


# Zero, small-order, duplicate and reflected keys


@pytest.mark.parametrize("field", ["mask_key", "channel_key"])
def test_weak_keys_a_key_of_small_order_is_refused_and_names_its_sender(field):
    run = World.nested().run(upto="advert")
    zero = forge(run, Advert, "c05", **{field: SMALL_ORDER})
    signed = {**run.sent["advert"], "c05": zero}
    with refused("small order", blames="c05"):
        server.collect_adverts(run.server_states["begin"], signed)
    broadcast = adverts_message(keys.Pair(FRESH).public_bytes, (signed[n] for n in sorted(signed)))
    with refused("small order", blames="c05"):
        client.share(run.states["advert"]["c00"], broadcast, randomness=FRESH)


def test_weak_keys_a_reflected_or_shared_key_is_refused():
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
