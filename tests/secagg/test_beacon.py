"""The beacon ceremony: what it gives, and every way to steer it that is refused."""

from __future__ import annotations

import msgspec
import pytest
from harness import FRESH, Randomness, World, flat_plan
from test_sparse import NAMES, draft

from fedtree_secagg import ConfigurationError, ProtocolError, ThresholdError, beacon
from fedtree_secagg.rounds import messages

PLAN = draft()
WORLD = World.of(PLAN)


def ceremony(number=0, seed="beacon", tamper=None):
    """All states and messages of one ceremony; `tamper` maps 'commitments' or 'openings' to a
    change of the list.
    """
    fresh, tamper = Randomness(seed), tamper or {}
    states, sent = {}, {}
    for name in NAMES:
        states[name], sent[name] = beacon.commit(
            WORLD.identities[name], name, WORLD.roster, PLAN, number=number, randomness=fresh()
        )
    commitments = beacon.collect(WORLD.roster, PLAN, number, sent)
    shown = tamper.get("commitments", lambda data: data)(commitments)
    opened = {name: beacon.open_own(states[name], shown) for name in NAMES}
    replies = {name: data for name, (_, data) in opened.items()}
    openings = beacon.conclude(WORLD.roster, PLAN, number, commitments, replies)
    shown = tamper.get("openings", lambda data: data)(openings)
    return (
        {name: beacon.verify(state, shown) for name, (state, _) in opened.items()},
        commitments,
        replies,
    )


def swapped(data, at, value):
    message = messages.decode(beacon.Listed, data)
    values = message.values[: 32 * at] + value + message.values[32 * at + 32 :]
    return messages.encode(msgspec.structs.replace(message, values=values))


def test_all_clients_get_the_same_beacon_and_can_use_it():
    drawn, _, _ = ceremony()
    (value,) = set(drawn.values())
    assert value.tree == PLAN.tree
    assert PLAN.with_beacon(value).graph.holders("c00")


def test_the_beacon_depends_on_every_client_and_on_the_number():
    seen = {ceremony(number)[0]["c00"].value for number in (0, 1)} | {
        ceremony(seed="other")[0]["c00"].value
    }
    assert len(seen) == 3
    _, commitments, _ = ceremony()
    values = messages.decode(beacon.Listed, commitments).values
    assert len({values[i : i + 32] for i in range(0, len(values), 32)}) == len(NAMES)


def test_a_client_opens_only_when_its_own_commitment_is_listed():
    for change in (lambda d: swapped(d, 0, FRESH), lambda d: swapped(d, 0, d[-32:])):
        with pytest.raises(ProtocolError, match="own commitment is missing or changed"):
            ceremony(tamper={"commitments": change})


def test_an_opening_that_was_not_committed_to_is_refused():
    """Else the server could search for values of its accomplices once it knows those of the
    honest.
    """
    with pytest.raises(ProtocolError, match="shown for 'c05' is not what was committed to"):
        ceremony(tamper={"openings": lambda d: swapped(d, 5, FRESH)})
    _, commitments, replies = ceremony()
    message = beacon.Opening(beacon.instance_of(WORLD.roster, PLAN, 0), "c05", FRESH)
    forged = messages.sign(WORLD.identities["c05"], message.instance, message, "c05")
    with pytest.raises(ProtocolError, match="'c05' opens another value") as error:
        beacon.conclude(WORLD.roster, PLAN, 0, commitments, {**replies, "c05": forged})
    assert error.value.blames == error.value.sender == "c05"


def test_a_copied_commitment_cannot_be_opened():
    """An accomplice that repeats c00's commitment could later repeat c00's value, too."""
    states, sent = {}, {}
    fresh = Randomness("copy")
    for name in NAMES:
        states[name], sent[name] = beacon.commit(
            WORLD.identities[name], name, WORLD.roster, PLAN, number=0, randomness=fresh()
        )
    instance = beacon.instance_of(WORLD.roster, PLAN, 0)
    mine = messages.decode(beacon.Commitment, sent["c00"][64:])
    copied = beacon.Commitment(instance, "c05", mine.commitment)
    sent["c05"] = messages.sign(WORLD.identities["c05"], instance, copied, "c05")
    commitments = beacon.collect(WORLD.roster, PLAN, 0, sent)
    replies = {n: beacon.open_own(states[n], commitments)[1] for n in NAMES if n != "c05"}
    value = messages.decode(beacon.Opening, replies["c00"][64:]).value
    opening = beacon.Opening(instance, "c05", value)
    replies["c05"] = messages.sign(WORLD.identities["c05"], instance, opening, "c05")
    with pytest.raises(ProtocolError, match="'c05' opens another value") as error:
        beacon.conclude(WORLD.roster, PLAN, 0, commitments, replies)
    assert error.value.blames == "c05"


def test_lists_of_another_ceremony_or_length_are_refused():
    _, first, _ = ceremony(0)
    for shown in (
        lambda _: first,
        lambda d: messages.encode(beacon.Listed(messages.decode(beacon.Listed, d).instance, FRESH)),
    ):
        with pytest.raises(ProtocolError, match="another ceremony, or does not have one value"):
            ceremony(1, tamper={"commitments": shown})


def test_nobody_may_be_missing_and_forgeries_name_their_sender():
    states, sent = {}, {}
    for name in NAMES:
        states[name], sent[name] = beacon.commit(
            WORLD.identities[name], name, WORLD.roster, PLAN, number=3, randomness=FRESH
        )
    with pytest.raises(ThresholdError, match="59 participants are left, the threshold is 60"):
        beacon.collect(WORLD.roster, PLAN, 3, {n: d for n, d in sent.items() if n != "c07"})
    with pytest.raises(ProtocolError) as error:
        beacon.collect(WORLD.roster, PLAN, 3, {**sent, "c07": sent["c08"]})
    assert error.value.sender == "c07"
    assert error.value.blames is None
    with pytest.raises(ProtocolError, match="signature"):
        beacon.collect(WORLD.roster, PLAN, 4, sent)


def test_states_serve_once_and_do_not_print():
    state, _ = beacon.commit(
        WORLD.identities["c00"], "c00", WORLD.roster, PLAN, number=0, randomness=FRESH
    )
    assert repr(state) == "<Committed>"
    _, commitments, _ = ceremony()
    with pytest.raises(ProtocolError):
        beacon.open_own(
            state, commitments
        )  # other randomness: not this commitment, and the state is kept
    with pytest.raises(ProtocolError, match="own commitment"):
        beacon.open_own(state, commitments)


@pytest.mark.parametrize("number", [-1, 16, 1.0])
def test_there_are_sixteen_ceremonies_for_a_tree(number):
    with pytest.raises(ConfigurationError, match="at most 16 ceremonies"):
        beacon.instance_of(WORLD.roster, PLAN, number)


def test_wrong_plans_and_strangers_are_refused():
    with pytest.raises(ConfigurationError, match="draft of a sparse plan"):
        beacon.instance_of(WORLD.roster, flat_plan(), 0)
    with pytest.raises(ConfigurationError, match="draft of a sparse plan"):
        beacon.instance_of(WORLD.roster, PLAN.with_beacon(beacon.Beacon(FRESH, PLAN.tree)), 0)
    with pytest.raises(ConfigurationError, match="takes no part in its beacon"):
        beacon.commit(
            WORLD.identities["c00"], "zed", WORLD.roster, PLAN, number=0, randomness=FRESH
        )
    with pytest.raises(ConfigurationError, match="must be 32 bytes"):
        beacon.Beacon(b"short", PLAN.tree)
