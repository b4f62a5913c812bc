"""Attack `two-rounds` (docs/threats.md), carried out against real participants by a server that
holds the right key: rounds whose keys were dealt with the round before.
"""

import pytest
from small_jobs import make_clients
from takeover import by_itself, changed, hostile

from fedtree_secure import Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import Protocol, Refused

VICTIM, OTHER, POOR = "t0-c0", "t0-c1", "t0-c2"
JOB = {
    "topology": Topology(source="one_group"),
    "training": Training(records=20, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 3,
}


def state(server, name=VICTIM):
    party = server.party(name)
    return (
        party.store.journal.last,
        party.store.record.known_round,
        party.store.state.to_bytes(),
        server.charges(name),
    )


@pytest.fixture(scope="module")
def asked(tiny_bert, tmp_path_factory):
    """What the server is told, and what came of it, in one run that turns hostile in round 2.

    Each attack is tried where it would have worked, and all of them before the honest request that
    it stands in for, which must then still be answered.
    """
    found = {}

    def script(server, requests):
        mask = requests[VICTIM]
        begin = by_itself(server, VICTIM, 2, mask.experts)
        stages = {stage: told for stage, told, _ in server.seen}
        read = lambda stage: server.read(VICTIM, stages[stage][VICTIM]).message  # noqa: E731
        dealt = read("round-1/confirm").adverts  # of round 2
        before = state(server)

        def refused(what, message):
            reply = server.send(VICTIM, message)
            found[what] = (None if reply is None else reply, state(server) == before)

        refused("no experts", changed(mask, experts=None))
        refused("the inbox of the round before", changed(mask, inbox=read("round-1/mask").inbox))
        refused("begun without experts", changed(begin, experts=None))
        for what, fields in {
            "this round ahead": {"round": 2},
            "a round too far": {"round": 4},
            "an attempt below all": {"attempt": 0},
            "a merge ahead": {"round": 0, "merge": True},
            "experts ahead": {"experts": mask.experts},
        }.items():
            refused(what, changed(mask, ahead=changed(mask.ahead, **fields)))
        narrow = changed(mask.ahead, clip=0.5 * mask.ahead.clip)
        refused("another clip ahead", changed(mask, ahead=narrow))
        beacon = changed(mask.ahead, beacon=bytes(range(32)))
        refused("a graph that nobody drew", changed(mask, ahead=beacon))
        found["charged before"] = server.charges(VICTIM)
        poor = server.party(POOR)
        affords, poor.store.affords = poor.store.affords, lambda _: False
        found["poor"] = server.send(POOR, requests[POOR]).ahead
        poor.store.affords = affords
        found["honest"] = server.send(VICTIM, mask)
        found["charged"] = server.charges(VICTIM)

        before = state(server)
        refused("the mask again", mask)
        survivors = changed(read("round-1/confirm"), adverts=b"")
        refused("survivors of the round before", survivors)
        refused("votes before the survivors", wire.Reveal(b""))
        found["adverts of the round before"] = server.send(
            VICTIM, wire.Confirm(read("round-1/confirm").survivors, dealt)
        )
        found["adverts of a round that nobody began"] = server.send(
            POOR, wire.Confirm(read("round-1/confirm").survivors, dealt)
        )
        party = server.party(OTHER)
        join = wire.Join(party.terms.digest, party.facts.digest)
        found["join"] = server.send(OTHER, join)
        found["after another request"] = server.send(OTHER, requests[OTHER])
        found["charged after another request"] = server.charges(OTHER)

    out = tmp_path_factory.mktemp("ahead") / "run"
    clients = make_clients(count=20)[:5]
    hostile(tiny_bert, out, "round-2/mask", script, clients=clients, **JOB)
    return found


@pytest.mark.parametrize(
    "what",
    [
        "no experts",
        "the inbox of the round before",
        "begun without experts",
        "this round ahead",
        "a round too far",
        "an attempt below all",
        "a merge ahead",
        "experts ahead",
        "the mask again",
        "survivors of the round before",
        "votes before the survivors",
    ],
)
def test_hostile_two_rounds_what_does_not_fit_is_no_request(asked, what):
    """No answer, nothing written down, nothing charged, no value moved."""
    assert asked[what] == (None, True)


def test_hostile_two_rounds_what_is_dealt_ahead_is_checked_like_any_round(asked):
    assert asked["another clip ahead"] == (Refused("clip"), True)
    assert asked["a graph that nobody drew"] == (Refused("graph"), True)


def test_hostile_two_rounds_the_later_one_is_charged_with_its_own_upload(asked):
    """Keys ahead cost nothing; whoever cannot pay for the round after this one makes none."""
    assert asked["charged before"] == ["round 1"]
    assert isinstance(asked["honest"], Protocol)
    assert asked["honest"].ahead
    assert asked["charged"] == ["round 1", "round 2"]
    assert asked["poor"] == b""


def test_hostile_two_rounds_adverts_of_another_round_deal_nothing(asked):
    assert asked["adverts of the round before"] is None
    assert asked["adverts of a round that nobody began"] is None


def test_hostile_two_rounds_any_other_request_gives_up_what_was_dealt(asked):
    """A new tree, a graph, a join: what was dealt before is of no use after it."""
    assert isinstance(asked["join"], wire.Joined)
    assert asked["after another request"] is None
    assert asked["charged after another request"] == ["round 1"]
