"""What clients are given after their keys were dealt, and two attempts that are open at once."""

import numpy as np
import pytest
from harness import (
    FRESH,
    World,
    flat_plan,
    names,
    nested_plan,
    opened_sums,
    plain_sums,
    refused,
    session_id,
    shares_in,
)

from fedtree_secagg import ConfigurationError, client, server
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Survivors, Votes

GIVEN, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture
def world():
    return World.nested(late=True)


def test_late_lie_all_that_were_given_the_same_open_as_ever(world):
    run = world.run({"masked": ["c01"]}, late=GIVEN)
    assert opened_sums(run) == plain_sums(run, set(names(9)) - {"c01"})


def test_late_lie_a_client_that_was_given_something_else_is_opened_by_nobody(world):
    """The server gives c00 other experts. It trains on them and uploads; nobody opens that."""
    run = world.run(upto="shares", late=GIVEN)
    routed, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    masked = {
        name: client.mask(
            run.states["shares"][name],
            inboxes[name],
            world.updates[name],
            randomness=FRESH,
            late=OTHER if name == "c00" else GIVEN,
        )
        for name in names(9)
    }
    uploads = {name: data for name, (_, data) in masked.items()}
    with refused("under another late context"):
        server.collect_masked(routed, uploads, late=GIVEN)
    shown = messages.encode(Survivors(session_id(run), Group.of(names(9), names(9)).bits))
    confirmed = {name: client.confirm(masked[name][0], shown) for name in names(9)}
    agreed = tuple(confirmed[name][1] for name in names(9)[1:])
    alone = confirmed["c00"][1]
    head = messages.detach(uploads["c00"])[0]

    def reveals(name, votes, heads):
        told = messages.encode(Votes(session_id(run), votes, heads))
        return client.reveal(confirmed[name][0], told)

    for name in names(9)[1:]:
        with refused("'c00' was shown other sharers or another late context"):
            reveals(name, agreed, (head,))
        with refused("'c00' was shown another survivor set"):
            reveals(name, (alone, *agreed), ())
        with refused("no signed word of 'c00'"):
            reveals(name, agreed, ())
    with refused("another survivor set"):  # and c00 opens nobody
        reveals("c00", agreed, (head,))


@pytest.mark.parametrize("given", [GIVEN, OTHER])
def test_late_lie_masks_of_clients_that_were_given_other_bytes_do_not_cancel(given):
    """Even where somebody knew every seed: the masks of pairs are left over."""
    run = World.of(flat_plan(4, 64, late=True)).run(upto="shares", late=GIVEN)
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    (node,), plan = run.world.plan.nodes, run.world.plan
    total = np.zeros(64, "<u4")
    for name in names(4):
        state, late = run.states["shares"][name], given if name == "c00" else GIVEN
        (seed,) = state.seeds
        own = keys.self_mask_key(seed.reveal(), session_id(run), name, node.name, late)
        nothing = np.zeros(64, np.int64)
        _, data = client.mask(
            state, inboxes[name], nothing, randomness=FRESH, on_grid=True, late=late
        )
        words = np.frombuffer(data[-4 * 64 :], "<u4").copy()
        plan.ring.add_masks(words, [(own, -1)])
        total += words
    assert total.any() == (given is OTHER)
    assert keys.self_mask_key(FRESH, FRESH, "c00", "n", GIVEN) not in (
        keys.self_mask_key(FRESH, FRESH, "c00", "n", OTHER),
        keys.self_mask_key(FRESH, FRESH, "c00", "n"),
    )


def test_late_lie_a_plan_that_says_late_goes_on_with_nothing_less(world):
    """Else a server could let a client forget what it was given."""
    for plan, late in ((nested_plan(late=True), b""), (nested_plan(), GIVEN)):
        run = World.of(plan).run(upto="shares")
        routed, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
        state, inbox = run.states["shares"]["c00"], inboxes["c00"]
        with pytest.raises(ConfigurationError, match="32 bytes for a plan that says late"):
            client.receive(state, inbox, late=late)
        with pytest.raises(ConfigurationError, match="32 bytes for a plan that says late"):
            client.mask(state, inbox, run.world.updates["c00"], randomness=FRESH, late=late)
        with pytest.raises(ConfigurationError, match="32 bytes for a plan that says late"):
            server.collect_masked(routed, {}, late=late)
        client.receive(state, inbox, late=GIVEN if plan.late else b"")
    assert nested_plan(late=True).hash != nested_plan().hash
    assert nested_plan(late=True).tree == nested_plan().tree


def two(world, **second):
    """Two attempts of the same clients: of a round, and of the next that was dealt ahead."""
    return world.run(late=GIVEN), world.run(round=1, late=GIVEN, **second)


def test_two_sessions_messages_of_one_are_refused_in_the_other(world):
    now, ahead = two(world)
    fresh = World.nested(late=True)
    fresh.random = world.random
    again = fresh.run(round=1, late=GIVEN, upto="shares")
    inboxes = server.route_shares(again.server_states["adverts"], again.sent["shares"])[1]
    with refused("advert of .c00.: the signature does not match roster, session"):
        stale = fresh.run(round=1, attempt=1, upto="advert")
        own = stale.sent["advert"]["c01"]
        rows = sorted([own, *(d for n, d in now.sent["advert"].items() if n != "c01")], key=_name)
        shown = messages.encode(messages.Adverts(session_id(now), bytes(32), tuple(rows)))
        client.share(stale.states["advert"]["c01"], shown, randomness=FRESH)
    state = again.states["shares"]["c00"]
    for other in (now, ahead):
        with refused("another session"):
            client.receive(state, other.received["inbox"]["c00"], late=GIVEN)
    uploaded, _ = client.mask(
        state, inboxes["c00"], world.updates["c00"], randomness=FRESH, late=GIVEN
    )
    with refused("another session"):
        client.confirm(uploaded, now.received["survivors"]["c00"])
    everyone = messages.encode(Survivors(session_id(again), Group.of(names(9), names(9)).bits))
    confirmed, _ = client.confirm(uploaded, everyone)
    with refused("another session"):
        client.reveal(confirmed, now.received["votes"]["c00"])


def _name(signed):
    return messages.decode(messages.Advert, signed[messages.SIGNATURE_BYTES :]).sender


def test_two_sessions_seeds_of_one_and_the_key_of_the_other_open_neither(world):
    """c00 survives the round and is declared gone in the one that was dealt ahead: its holders give
    its seeds there and its key here, which belong to different masks.
    """
    now, ahead = two(world, drops={"masked": ["c00"]})
    nodes = len(world.plan.nodes_of("c00"))
    for holder in names(9)[1:]:
        assert shares_in(now, holder, "c00") == list(range(1, nodes + 1))
        assert shares_in(ahead, holder, "c00") == [0]
        first, second = (run.states["vote"][holder].bundles["c00"] for run in (now, ahead))
        assert not set(first) & set(second)
    first, second = (run.states["shares"]["c00"] for run in (now, ahead))
    assert first.mask.public_bytes != second.mask.public_bytes
    pairs = zip(first.seeds, second.seeds, strict=True)
    assert all(a.reveal() != b.reveal() for a, b in pairs)
