"""Sparse graphs: neighbours from a beacon, sums that stay in one piece, and what a server may try
against them.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from harness import (
    CONTEXT,
    FRESH,
    World,
    adverts_message,
    edit,
    forge,
    opened_sums,
    plain_sums,
    session_id,
)

from fedtree_secagg import (
    Beacon,
    ConfigurationError,
    Node,
    Plan,
    ProtocolError,
    Quantiser,
    Sparse,
    ThresholdError,
    client,
    server,
)
from fedtree_secagg.agreed.graph import Rings
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.parameters import find_neighbourhood
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Adverts, Inbox, Masked, Survivors, Votes
from fedtree_secagg.rounds.session import Session, view_hash

N, COLLUDERS, DROPOUTS = 60, 2, 4
NAMES = tuple(f"c{i:02d}" for i in range(N))
CHOICE = find_neighbourhood(N, Fraction(COLLUDERS, N), Fraction(DROPOUTS, N))


def draft(**changes):
    """Sixty clients: a trunk of all, two branches, and a leaf of five that masks with everybody."""
    nodes = (
        Node("trunk", NAMES, ((0, 30),)),
        Node("left", NAMES[:35], ((30, 50),)),
        Node("right", NAMES[35:], ((30, 50),)),
        Node("leaf", NAMES[:5], ((50, 60),)),
    )
    given = {
        "length": 60,
        "nodes": nodes,
        "threshold": CHOICE.threshold,
        "quantiser": Quantiser(clip=1.0, bits=16),
        "context": CONTEXT,
        "min_group": COLLUDERS + 2,
        "colluders": COLLUDERS,
        "sparse": Sparse(CHOICE.neighbours, DROPOUTS),
    }
    return Plan(**{**given, **changes})


def drawn(plan=None, value=b"\x07" * 32):
    plan = plan or draft()
    return plan.with_beacon(Beacon(value, plan.tree))


def refused(match, error=ProtocolError):
    return pytest.raises(error, match=match)


@pytest.fixture(scope="module")
def plan():
    return drawn()


# The graph


def test_rings_are_regular_mutual_and_smaller_than_everybody(plan):
    graph = plan.graph
    assert isinstance(graph, Rings)
    assert CHOICE.neighbours < N - 1
    for name in NAMES:
        holders = graph.holders(name)
        assert len(set(holders)) == CHOICE.neighbours
        assert name not in holders
        assert list(graph.dealers(name)) == sorted(holders)
        assert all(name in graph.holders(holder) for holder in holders)
        for node in plan.nodes_of(name):
            peers = graph.peers(name, node)
            assert name not in peers
            assert set(peers) <= set(node.members)
            assert all(name in graph.peers(peer, node) for peer in peers)
    trunk, _, _, leaf = plan.nodes
    assert len(graph.peers("c00", trunk)) == 2 * graph.ring(trunk).half < N - 1
    assert graph.ring(leaf) is None
    assert len(graph.peers("c00", leaf)) == 4
    assert set(graph.committee) <= set(NAMES)
    assert len(graph.committee) == CHOICE.neighbours


def test_another_beacon_draws_other_neighbours_and_every_pair_is_as_likely():
    counts = np.zeros((N, N))
    trials = 400
    for i in range(trials):
        plan = drawn(value=i.to_bytes(32, "big"))
        for name in NAMES[:3]:
            for holder in plan.graph.holders(name):
                counts[plan.place[name], plan.place[holder]] += 1
    share = CHOICE.neighbours / (N - 1)
    seen = np.delete(
        counts[0], 0
    )  # each a binomial count; 59 of them, 5 standard deviations: false alarm below 1e-4
    assert np.abs(seen - trials * share).max() < 5 * np.sqrt(trials * share * (1 - share))
    assert seen.std() > 0.5 * np.sqrt(trials * share * (1 - share))


def test_a_beacon_of_another_tree_is_refused_and_a_plan_without_one_cannot_run():
    plan = draft()
    moved = draft(nodes=(*plan.nodes[:3], Node("leaf", NAMES[1:6], ((50, 60),))))
    with refused("drawn for another tree", ConfigurationError):
        moved.with_beacon(Beacon(FRESH, plan.tree))
    for change in ({"colluders": 1}, {"min_group": 5}):
        with refused("drawn for another tree", ConfigurationError):
            replace(drawn(plan), **change)
    assert draft(context=bytes(32)).tree == plan.tree  # a new round's context keeps the graph
    world = World.of(plan)
    with refused("needs a beacon", ConfigurationError):
        Session(world.roster, plan, 0, 0)
    with refused("needs a beacon", ConfigurationError):
        _ = plan.graph
    with refused("only a sparse plan", ConfigurationError):
        draft(sparse=None, threshold=32).with_beacon(Beacon(FRESH, plan.tree))
    assert drawn(plan).hash != drawn(plan, FRESH).hash != plan.hash


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"threshold": CHOICE.threshold - 1}, f"allowed are {CHOICE.threshold} to"),
        ({"threshold": CHOICE.neighbours + 1}, f"allowed are {CHOICE.threshold} to"),
        ({"sparse": Sparse(CHOICE.neighbours + 1, DROPOUTS)}, "must be even"),
        ({"sparse": Sparse(N, DROPOUTS)}, "below the number of clients"),
        ({"sparse": Sparse(0, DROPOUTS)}, "must be even"),
        ({"sparse": Sparse(CHOICE.neighbours, N + 1)}, "dropouts"),
        ({"sparse": Sparse(4, DROPOUTS), "threshold": 4}, "take more neighbours"),
        (
            {"colluders": 20, "min_group": 22, "nodes": (Node("trunk", NAMES, ((0, 60),)),)},
            "threshold is",
        ),
    ],
)
def test_parameters_outside_the_bounds_are_refused(changes, match):
    with refused(match, ConfigurationError):
        draft(**changes)


# Rounds


@pytest.mark.parametrize(
    "drops",
    [
        {},
        {"advert": ["c03"]},
        {"shares": ["c07", "c40"]},
        {"masked": ["c00", "c59"]},
        {"vote": ["c01"]},
    ],
    ids=str,
)
def test_sums_are_exact_bit_for_bit(plan, drops):
    run = World.of(plan).run(drops)
    gone = {name for stage in ("advert", "shares", "masked") for name in drops.get(stage, ())}
    assert opened_sums(run) == plain_sums(run, set(NAMES) - gone)
    assert len(opened_sums(run)) == 4


def test_a_client_reads_the_messages_of_its_contacts_only(plan):
    run = World.of(plan).run()
    for name in ("c00", "c59"):
        contacts = plan.graph.contacts(name)
        senders = [
            messages.decode(messages.Advert, data[64:]).sender
            for data in messages.decode(Adverts, run.received["adverts"][name]).adverts
        ]
        assert senders == sorted(contacts)
        assert len(contacts) < N
        assert len(messages.decode(Inbox, run.received["inbox"][name]).boxes) == CHOICE.neighbours
        votes = messages.decode(Votes, run.received["votes"][name])
        assert len(votes.votes) == CHOICE.threshold
        assert len(votes.heads) <= CHOICE.neighbours


def stretch(plan, node, survivors_left):
    """Names of a stretch of the node's ring of which only so many survive."""
    ring, circle = plan.graph.ring(node), plan.graph._circles[node.name]
    return circle.order[: ring.half - survivors_left]


def test_a_node_whose_ring_has_a_thin_stretch_is_not_opened(plan):
    """A server that calls a victim's neighbours dropped out would else see the victim alone."""
    everyone = set(NAMES)
    for node in plan.nodes[:2]:
        ring = plan.graph.ring(node)
        just_enough = stretch(plan, node, ring.least)
        too_few = stretch(plan, node, ring.least - 1)
        assert plan.graph.holds_together(node, Group.of(NAMES, everyone - set(just_enough)))
        assert not plan.graph.holds_together(node, Group.of(NAMES, everyone - set(too_few)))
    run = World.of(plan).run({"masked": list(too_few)})  # of the left branch
    assert "left" not in opened_sums(run)
    sums = opened_sums(run)
    assert {"trunk", "right"} <= sums.keys()
    assert sums == {
        name: row for name, row in plain_sums(run, everyone - set(too_few)).items() if name in sums
    }
    # no holder opened a seed of that branch
    left = plan.nodes[1]
    for holder, data in run.sent["reveal"].items():
        for dealer, bundle in run.states["masked"][holder].bundles.items():
            if dealer in left.members:
                assert bundle[1 + plan.nodes_of(dealer).index(left)] not in data


def test_a_node_of_all_stands_on_the_ring_of_holders(plan):
    """So that a client works with the wider of two neighbourhoods and not with both."""
    trunk, left, graph = *plan.nodes[:2], plan.graph
    for name in NAMES:
        near, wide = sorted((set(graph.peers(name, trunk)), set(graph.holders(name))), key=len)
        assert near <= wide
    assert not all(
        set(graph.peers(name, left)) <= set(graph.holders(name)) for name in left.members
    )


def test_the_windows_are_those_of_a_plain_loop(plan):
    rng = np.random.default_rng(1)
    trunk = plan.nodes[0]
    ring, order = plan.graph.ring(trunk), plan.graph._circles["trunk"].order
    seen = set()
    for _ in range(200):
        alive = {name for name in NAMES if rng.random() < 0.75}
        windows = ([order[(at + i) % N] for i in range(ring.half)] for at in range(N))
        expected = all(len(alive.intersection(window)) >= ring.least for window in windows)
        assert plan.graph.holds_together(trunk, Group.of(NAMES, alive)) == expected
        seen.add(expected)
    assert seen == {True, False}


def test_honest_survivors_of_an_opened_node_are_connected_for_all_corrupt_sets_that_are_not_bad(
    plan,
):
    """The theorem on its own ground: where no two disjoint stretches hold `least` corrupt clients,
    no set parts.
    """
    rng = np.random.default_rng(2)
    trunk, graph = plan.nodes[0], plan.graph
    ring, order = graph.ring(trunk), graph._circles["trunk"].order
    checked = 0
    for _ in range(3000):
        corrupt = set(rng.choice(NAMES, COLLUDERS, replace=False))
        # an adversary that knows the ring: it drops most of two stretches around a random victim
        at = int(rng.integers(N))
        near = [order[(at + i) % N] for i in range(-2 * ring.half, 2 * ring.half)]
        dead = {name for name in near if name not in corrupt and rng.random() < 0.6}
        survivors = Group.of(NAMES, set(NAMES) - dead)
        if not graph.holds_together(trunk, survivors):
            continue
        checked += 1
        honest = set(survivors.names()) - corrupt
        reached, todo = set(), [min(honest)]
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += [peer for peer in graph.peers(name, trunk) if peer in honest]
        assert reached == honest
    assert checked > 100


# Attacks


def test_the_committee_decides_for_all_and_two_views_cannot_both_win(plan):
    run = World.of(plan).run(upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    committee = plan.graph.committee
    liar_view = edit(Survivors, survivors=lambda b: Group.of(NAMES, set(NAMES) - {"c10"}).bits)
    victim = next(name for name in NAMES if name not in committee and name != "c10")
    confirmed = {}
    for name in NAMES:
        if name != "c10":
            data = liar_view(shown[name]) if name == victim else shown[name]
            confirmed[name] = client.confirm(run.states["masked"][name], data)
    votes = tuple(vote for name, (_, vote) in confirmed.items() if name in committee)[
        : plan.threshold
    ]
    with refused("another survivor set"):
        client.reveal(confirmed[victim][0], messages.encode(Votes(session_id(run), votes, ())))
    # votes of clients outside the committee do not count
    outside = tuple(
        vote for name, (_, vote) in confirmed.items() if name not in committee and name != victim
    )
    other = next(name for name in confirmed if name != victim)
    with refused("has no say here"):
        client.reveal(confirmed[other][0], messages.encode(Votes(session_id(run), outside, ())))
    with refused("participants are left", ThresholdError):
        client.reveal(confirmed[other][0], messages.encode(Votes(session_id(run), votes[:-1], ())))
    least = plan.threshold
    assert 2 * least > CHOICE.neighbours + COLLUDERS


def test_a_dealer_whose_word_on_the_sharers_is_missing_or_different_is_not_opened(plan):
    run = World.of(plan).run(upto="vote")
    _, shown = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    with refused("no signed word of"):
        client.reveal(run.states["vote"]["c00"], edit(Votes, heads=lambda h: h[1:])(shown["c00"]))
    votes = messages.decode(Votes, shown["c00"])
    names_of = [messages.decode(Masked, head[64:]).sender for head in votes.heads]
    other = Group.of(NAMES, NAMES[:50])
    head = messages.decode(Masked, votes.heads[0][64:])
    lied = Masked(
        head.session, head.sender, view_hash(head.session, other, other), head.nonce, head.tag
    )
    signed = messages.sign(run.world.identities[names_of[0]], session_id(run), lied, names_of[0])
    stranger = next(
        n for n in NAMES if n not in plan.graph.dealers("c00") and n not in plan.graph.committee
    )
    foreign = messages.detach(run.sent["masked"][stranger])[0]
    with refused("has no say here"):
        client.reveal(
            run.states["vote"]["c00"], edit(Votes, heads=lambda h: (*h, foreign))(shown["c00"])
        )
    with refused(f"'{names_of[0]}' was shown other sharers"):
        client.reveal(
            run.states["vote"]["c00"], edit(Votes, heads=lambda h: (signed, *h[1:]))(shown["c00"])
        )


def test_a_neighbour_that_is_said_to_share_must_have_been_shown(plan):
    """Else the client would leave out a mask that the neighbour puts in, or mask with nobody."""
    run = World.of(plan).run(upto="advert")
    state, shown = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    message = messages.decode(Adverts, shown["c00"])
    peer = next(
        n for n in plan.graph.peers("c00", plan.nodes[0]) if n not in plan.graph.holders("c00")
    )
    kept = tuple(
        a for a in message.adverts if messages.decode(messages.Advert, a[64:]).sender != peer
    )
    blind = messages.encode(Adverts(message.server_key, message.root, kept))
    dealt = {
        n: client.share(
            run.states["advert"][n],
            blind if n == "c00" else shown[n],
            randomness=run.world.random(),
        )
        for n in NAMES
    }
    _, inboxes = server.route_shares(state, {n: data for n, (_, data) in dealt.items()})
    with refused(f"'{peer}' is said to have shared"):
        client.mask(dealt["c00"][0], inboxes["c00"], run.world.updates["c00"], randomness=FRESH)


def test_adverts_of_strangers_or_of_too_few_holders_are_refused(plan):
    run = World.of(plan).run(upto="advert")
    _, shown = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    message = messages.decode(Adverts, shown["c00"])
    everyone = adverts_message(message.server_key, run.sent["advert"].values())
    with refused("is no contact of this client"):
        client.share(run.states["advert"]["c00"], everyone, randomness=FRESH)
    holders = set(plan.graph.holders("c00")[: plan.threshold - 1])
    few = [
        a
        for a in message.adverts
        if messages.decode(messages.Advert, a[64:]).sender in holders | {"c00"}
    ]
    with refused("participants are left", ThresholdError):
        client.share(
            run.states["advert"]["c00"], adverts_message(message.server_key, few), randomness=FRESH
        )


def test_a_holder_that_answers_other_shares_is_named(plan):
    run = World.of(plan).run()
    again = World.of(plan).run(upto="vote")
    state, _ = server.collect_votes(again.server_states["survivors"], again.sent["vote"])
    assert again.sent["vote"] == run.sent["vote"]  # the same randomness: the same attempt
    holder = plan.graph.holders("c00")[0]
    body = messages.decode(messages.Reveal, run.sent["reveal"][holder][32:]).body
    wrong = forge(
        run,
        messages.Reveal,
        holder,
        body=bytes([0, 1]) * (len(body) // 2) + body[len(body) // 2 * 2 :],
    )
    with refused("reveal of") as error:
        server.open_sums(state, {**run.sent["reveal"], holder: wrong})
    assert error.value.blames == error.value.sender == holder
    spare = {name: data for name, data in run.sent["reveal"].items() if name != holder}
    assert {n: s.ring.tolist() for n, s in server.open_sums(state, spare).items()} == {
        n: row for n, (_, row) in plain_sums(run, NAMES).items()
    }


def test_too_few_holders_of_one_client_open_nothing(plan):
    run = World.of(plan).run(upto="vote")
    state, shown = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    reveals = {n: client.reveal(run.states["vote"][n], shown[n]) for n in shown}
    for_good = set(plan.graph.committee)
    lone = next(
        n
        for n in NAMES
        if len(set(plan.graph.holders(n)) - for_good) > CHOICE.neighbours - plan.threshold
    )
    silent = [n for n in plan.graph.holders(lone) if n not in for_good][
        : CHOICE.neighbours - plan.threshold + 1
    ]
    with refused(f"{plan.threshold - 1} participants are left", ThresholdError):
        server.open_sums(state, {n: data for n, data in reveals.items() if n not in silent})
    assert len(server.open_sums(state, reveals)) == 4


# Parameters


def test_all_colluders_may_sit_in_one_node(plan):
    left = plan.nodes[1]
    assert plan.graph.limits(len(left.members))[0] == COLLUDERS


def test_neighbours_on_a_ring_are_the_nearest(plan):
    order = plan.graph._everyone.order
    for first, second in pairwise(order):
        assert second in plan.graph.holders(first)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_drops_out_a_node_is_opened_exactly_or_not_at_all(seed):
    """Dropouts at random stages, more than planned for: exact sums, unopened nodes or an end, never
    something else.
    """
    rng = np.random.default_rng(seed)
    members = tuple(f"c{i:02d}" for i in range(24))
    nodes = (Node("trunk", members, ((0, 6),)), Node("left", members[:18], ((6, 9),)))
    plan = drawn(
        draft(
            length=9,
            nodes=nodes,
            threshold=6,
            colluders=1,
            min_group=3,
            sparse=Sparse(8, dropouts=1),
        ),
        bytes([seed + 1] * 32),
    )
    stages = ("advert", "shares", "masked", "vote", "reveal")
    gone = rng.choice(members, rng.integers(1, 7), replace=False)
    drops = {stage: [] for stage in stages}
    for name in gone:
        drops[stages[rng.integers(5)]].append(str(name))
    alive = set(members).difference(*(drops[stage] for stage in stages[:3]))
    try:
        run = World.of(plan).run(drops)
    except ThresholdError:
        assert len(gone) > 1
        return
    expected = plain_sums(run, alive)
    opened = opened_sums(run)
    assert opened == {name: expected[name] for name in opened}
    held = {n.name for n in nodes if plan.graph.holds_together(n, Group.of(members, alive))}
    assert opened.keys() == held & expected.keys()


@pytest.mark.parametrize("drops", [{}, {"masked": ["c03"]}, {"shares": ["c20"], "reveal": ["c11"]}])
def test_sparse_sums_are_bit_for_bit_those_of_the_complete_graph(drops):
    """A trunk and two branches, the same updates and rounding; only the masks differ."""
    names = NAMES[:26]
    nodes = (
        Node("trunk", names, ((0, 30),)),
        Node("left", names[:13], ((30, 60),)),
        Node("right", names[13:], ((30, 60),)),
    )
    chosen = find_neighbourhood(26, Fraction(1, 26), Fraction(2, 26))
    given = {"nodes": nodes, "colluders": 1, "min_group": 3}
    one = drawn(draft(**given, threshold=chosen.threshold, sparse=Sparse(chosen.neighbours, 2)))
    other = draft(**given, threshold=Plan.full_threshold(26), sparse=None)
    assert len(one.graph.contacts("c00")) < 26 == len(other.graph.contacts("c00"))
    sums = [opened_sums(World.of(plan).run(drops)) for plan in (one, other)]
    assert sums[0] == sums[1]
    assert set(sums[0]) == {"trunk", "left", "right"}
