"""Decoders and what the server checks beyond the attack table."""

import pytest
from harness import CONTEXT, World, adverts_message, forge, lead_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedtree_secagg import Identity, ProtocolError, Roster, client, server
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Advert,
    Adverts,
    Inbox,
    Masked,
    Reveal,
    Shares,
    Survivors,
    Vote,
    Votes,
)

FRESH = bytes(range(32))
KEY = keys.Pair(FRESH).public_bytes


# Messages


def test_messages_have_one_encoding():
    vote = Vote(FRESH, "c00", CONTEXT)
    data = messages.encode(vote)
    assert messages.decode(Vote, data) == vote
    # 2 as a 32-bit integer, a name as str32, an array as array16: legal MessagePack, not our
    # encoding
    wide_array = b"\xdc\x00\x04" + data[1:]
    long_name = data.replace(b"\xa3c00", b"\xdb\x00\x00\x00\x03c00")
    for other in (wide_array, long_name):
        assert other != data
        with pytest.raises(ProtocolError, match="one encoding"):
            messages.decode(Vote, other)
    for broken in (
        b"",
        data[:-1],
        data + b"\0",
        messages.encode(Survivors(FRESH, b"")),
        b"\xff" * 100,
        b"\x91" * 5000,
    ):
        with pytest.raises(ProtocolError, match="no such message"):
            messages.decode(Vote, broken)
    with pytest.raises(ProtocolError, match="expected bytes"):
        messages.decode(Vote, "text")


@pytest.mark.parametrize(
    "fields", [(b"x" * 31, "c00", CONTEXT), (FRESH, "", CONTEXT), (FRESH, "n" * 65, CONTEXT)]
)
def test_field_lengths_are_checked(fields):
    with pytest.raises(ProtocolError, match="no such message"):
        messages.decode(Vote, messages.encode(Vote(*fields)))


KINDS = [Advert, Adverts, Shares, Inbox, Masked, Survivors, Vote, Votes, Reveal]


@pytest.mark.parametrize("kind", KINDS)
@given(st.binary(max_size=300))
def test_decoders_refuse_noise_with_their_own_error(kind, data):
    with pytest.raises(ProtocolError):
        messages.decode(kind, data)


@pytest.mark.parametrize(
    "stage",
    ["advert", "shares", "masked", "vote", "reveal", "adverts", "inbox", "survivors", "votes"],
)
@given(data=st.data())
def test_mutated_real_messages_are_refused_or_equal(stage, data):
    run = HONEST
    kind = {k.__struct_config__.tag: k for k in KINDS}[stage]
    signed = stage in run.sent
    real = (run.sent if signed else run.received)[stage]["c00"]
    real = messages.detach(real)[0] if stage == "masked" else real
    real = real[lead_bytes(kind) if signed else 0 :]
    changed = bytearray(real)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(changed), 400) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if how == "set":
            changed[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del changed[at]
        else:
            changed.insert(at, data.draw(st.integers(0, 255)))
    try:
        message = messages.decode(kind, bytes(changed))
    except ProtocolError:
        return
    assert messages.encode(message) == bytes(changed)


HONEST = World.nested().run()


# What the server checks beyond the attack table


def at(stage):
    run = World.nested().run(upto=stage)
    step = {
        "advert": server.collect_adverts,
        "shares": server.route_shares,
        "masked": server.collect_masked,
        "vote": server.collect_votes,
    }[stage]
    before = {"advert": "begin", "shares": "adverts", "masked": "inbox", "vote": "survivors"}[stage]
    return run, step, run.server_states[before]


@pytest.mark.parametrize(
    ("stage", "kind", "changes", "match"),
    [
        ("advert", Advert, {"commitments": (FRESH,)}, "one commitment per node"),
        ("shares", Shares, {"boxes": ()}, "one digest per holder"),
        ("shares", Shares, {"digests": (FRESH,)}, "one digest per holder"),
        ("shares", Shares, {"boxes": (b"",) * 8}, "boxes must have"),
        ("vote", Vote, {"view": FRESH}, "other sets"),
    ],
)
def test_the_server_names_a_client_that_breaks_the_format_and_can_go_on_without_it(
    stage, kind, changes, match
):
    run, step, before = at(stage)
    with pytest.raises(ProtocolError, match=match) as error:
        step(before, {**run.sent[stage], "c03": forge(run, kind, "c03", **changes)})
    assert error.value.sender == "c03"
    assert error.value.blames == (
        None if stage == "vote" else "c03"
    )  # a false set may come from the network
    rest = {n: d for n, d in run.sent[stage].items() if n != "c03"}
    following, out = step(before, rest)
    assert set(out) == set(rest)
    assert following is not None


def test_messages_of_those_who_are_out_are_refused():
    late = HONEST.sent
    for stage, name in (
        ("shares", "advert"),
        ("masked", "shares"),
        ("vote", "masked"),
        ("reveal", "masked"),
    ):
        run = World.nested().run({name: ["c08"]}, upto="vote" if stage == "reveal" else stage)
        if stage == "reveal":
            state, _ = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
            step, before, sent = server.open_sums, state, {}
        else:
            _, step, _ = at(stage)
            before = run.server_states[
                {"shares": "adverts", "masked": "inbox", "vote": "survivors"}[stage]
            ]
            sent = run.sent[stage]
        with pytest.raises(ProtocolError, match="c08"):
            step(before, {**sent, "c08": late[stage]["c08"]})


def test_an_advert_from_outside_the_plan_is_refused():
    world = World.nested()
    stranger = Identity.generate(FRESH)
    world.roster = Roster({**world.roster.keys, "zz": stranger.public_bytes})
    run = world.run(upto="advert")
    instance = run.server_states["begin"].session.instance
    advert = messages.sign(stranger, instance, Advert(instance, "zz", FRESH, CONTEXT, ()), "zz")
    with pytest.raises(ProtocolError, match="not in this plan"):
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "zz": advert})


def test_adverts_out_of_order_or_twice_are_refused_by_the_client():
    run = World.nested().run(upto="advert")
    rows = tuple(run.sent["advert"].values())
    for forged, match in ((rows[::-1], "order"), ((*rows, rows[-1]), "twice")):
        with pytest.raises(ProtocolError, match=match):
            client.share(
                run.states["advert"]["c00"], adverts_message(KEY, forged), randomness=FRESH
            )


def test_two_uploads_in_one_stream_are_refused():
    run, step, before = at("masked")
    pairs = [*run.sent["masked"].items(), ("c00", run.sent["masked"]["c00"])]
    with pytest.raises(ProtocolError, match="two uploads"):
        step(before, iter(pairs))


@pytest.mark.parametrize(
    "bad",
    [b"", b"\0", b"\xff\xff", b"\0\0", "text", b"\0\x40" + bytes(500), b"\0\x40" + b"x" * 500],
)
def test_uploads_that_are_none_are_refused(bad):
    run, step, before = at("masked")
    with pytest.raises(ProtocolError):
        step(before, {**run.sent["masked"], "c00": bad})


def test_a_reveal_of_the_wrong_length_is_refused():
    run = World.nested().run(upto="vote")
    state, _ = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    short = forge(HONEST, Reveal, "c00", body=b"x")
    with pytest.raises(ProtocolError, match="1 bytes") as error:
        server.open_sums(state, {**HONEST.sent["reveal"], "c00": short})
    assert error.value.blames == "c00"


def test_an_inbox_with_rows_missing_is_refused():
    run = World.nested().run(upto="shares")
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    inbox = messages.decode(Inbox, inboxes["c00"])
    short = Inbox(inbox.session, inbox.sharers, inbox.digests[:-1], inbox.boxes)
    with pytest.raises(ProtocolError, match="one digest and one box"):
        client.mask(
            run.states["shares"]["c00"],
            messages.encode(short),
            run.world.updates["c00"],
            randomness=FRESH,
        )
