"""Who is counted as alive: no server can have two answers about one client."""

import numpy as np
import pytest
from harness import (
    FRESH,
    World,
    adverts_message,
    edit,
    flat_plan,
    forge_upload,
    group,
    names,
    opened_sums,
    plain_sums,
    refused,
    session_id,
    shares_in,
    those,
)

from fedtree_secagg import (
    ConfigurationError,
    Plan,
    ThresholdError,
    client,
    server,
)
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.primitives import keys, shamir
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Adverts,
    Inbox,
    Masked,
    Survivors,
    Vote,
    Votes,
)
from fedtree_secagg.rounds.session import view_hash

# One client dropped in one node and alive in another


def test_mixed_state_no_holder_opens_key_and_seed_of_one_client():
    run = World.nested().run({"masked": ["c00", "c01"]})
    for holder in run.sent["reveal"]:
        for dealer in names(9):
            slots = shares_in(run, holder, dealer)
            assert slots == [0] if dealer in {"c00", "c01"} else 0 not in slots
    cohort = run.server_states["adverts"].cohort
    for dead in ({"c00"}, {"c00", "c01"}, {"c04", "c05", "c06"}):
        alive = Group.of(names(9), set(names(9)) - dead)
        for dealer in names(9):
            key, *seeds = cohort.opened_slots(dealer, alive)
            assert not (key and any(seeds))


def test_mixed_state_an_upload_for_some_nodes_only_is_refused():
    run = World.nested().run(upto="masked")
    part = forge_upload(run, "c03", run.sent["masked"]["c03"][-4 * 40 :])
    with refused("160 bytes, the plan asks for 320", blames="c03"):
        server.collect_masked(run.server_states["inbox"], {**run.sent["masked"], "c03": part})


# Both kinds of share by a split view


def test_split_view_a_split_view_of_the_survivors_reveals_nothing():
    run = World.nested().run(upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    without = edit(
        Survivors, survivors=those(lambda all_names: [n for n in all_names if n != "c08"])
    )
    confirmed = {}
    for i, name in enumerate(names(8)):
        confirmed[name] = client.confirm(
            run.states["masked"][name], without(shown[name]) if i % 2 else shown[name]
        )
    votes = messages.encode(
        Votes(session_id(run), tuple(vote for _, vote in confirmed.values()), ())
    )
    for following, _ in confirmed.values():
        with refused("another survivor set"):
            client.reveal(following, votes)
    mine = [vote for i, (_, vote) in enumerate(confirmed.values()) if i % 2 == 0]
    with refused("4 participants are left, the threshold is 6", error=ThresholdError):
        client.reveal(confirmed["c00"][0], messages.encode(Votes(session_id(run), tuple(mine), ())))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            those(lambda all_names: [n for n in all_names if n != "c02"]),
            "counts this client as dropped",
        ),
        (lambda bits: bits[:1] + bytes([bits[1] | 2]), "no set of the plan's 9 clients"),
        (lambda bits: bits + b"\0", "no set of the plan's 9 clients"),
        (lambda bits: bits[:1], "no set of the plan's 9 clients"),
    ],
)
def test_split_view_own_name_dead_or_an_unknown_client_ends_the_attempt(change, match):
    run = World.nested().run({"shares": ["c08"]}, upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    forged = edit(Survivors, survivors=change)(shown["c02"])
    with refused(match):
        client.confirm(run.states["masked"]["c02"], forged)


def test_split_view_a_survivor_that_never_shared_is_refused():
    run = World.nested().run({"shares": ["c08"]}, upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    forged = edit(Survivors, survivors=those(lambda all_names: (*all_names, "c08")))(shown["c02"])
    with refused("did not share is among them"):
        client.confirm(run.states["masked"]["c02"], forged)


def test_split_view_a_client_that_is_shown_other_adverts_than_their_root_stands_for_refuses():
    run = World.nested().run(upto="advert")
    _, shown = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    without = edit(Adverts, adverts=lambda rows: rows[:-1])(shown["c00"])
    with refused("not those that their root stands for"):
        client.share(run.states["advert"]["c00"], without, randomness=FRESH)


def fewer_adverts(data, n):
    message = messages.decode(Adverts, data)
    return adverts_message(message.server_key, message.adverts[:n])


@pytest.mark.parametrize("stage", ["adverts", "inbox", "survivors", "votes"])
def test_split_view_too_few_at_any_stage_ends_the_attempt_at_the_client(stage):
    short = {
        "adverts": lambda data: fewer_adverts(data, 5),
        "inbox": edit(
            Inbox, sharers=those(lambda n: n[:5]), digests=lambda d: d[:4], boxes=lambda b: b[:4]
        ),
        "survivors": edit(Survivors, survivors=those(lambda n: n[:5])),
        "votes": edit(Votes, votes=lambda v: v[:5]),
    }[stage]
    with refused("5 participants are left, the threshold is 6", error=ThresholdError):
        World.nested().run(tamper={(stage, "c00"): short})


def test_split_view_a_vote_counts_once_and_only_from_survivors():
    run = World.nested().run(upto="vote")
    _, shown = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    twice = edit(Votes, votes=lambda votes: (votes[0],) * 6)(shown["c00"])
    with refused("votes twice"):
        client.reveal(run.states["vote"]["c00"], twice)
    gone = World.nested().run({"masked": ["c08"]}, upto="vote")
    vote = Vote(session_id(gone), "c08", view_hash(session_id(gone), *map(group, (9, 8))))
    signed = messages.sign(gone.world.identities["c08"], session_id(gone), vote, "c08")
    _, shown = server.collect_votes(gone.server_states["survivors"], gone.sent["vote"])
    with refused("votes twice, is no survivor"):
        client.reveal(
            gone.states["vote"]["c00"],
            edit(Votes, votes=lambda votes: (*votes, signed))(shown["c00"]),
        )


@pytest.mark.parametrize("n", [4, 8, 9, 20])
@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_split_view_thresholds_that_let_two_sets_reach_t_are_refused(n, colluders):
    least = Plan.full_threshold(n, colluders)
    assert 2 * least > n + colluders >= 2 * (least - 1)
    flat_plan(n=n, colluders=colluders, threshold=least, min_group=max(3, colluders + 2))
    with refused("threshold is", error=ConfigurationError):
        flat_plan(n=n, colluders=min(colluders, 1), threshold=(n + min(colluders, 1)) // 2)
    with refused("threshold is", error=ConfigurationError):
        flat_plan(n=n, threshold=n + 1)


def hidden_peers(run, inboxes, victim, hidden):
    """The inbox of a victim that is told that some of its peers did not share."""
    inbox = messages.decode(Inbox, inboxes[victim])
    others = [name for name in Group(names(9), inbox.sharers).names() if name != victim]
    kept = [i for i, name in enumerate(others) if name not in hidden]
    rows = (tuple(part[i] for i in kept) for part in (inbox.digests, inbox.boxes))
    left = those(lambda sharers: [n for n in sharers if n not in hidden])(inbox.sharers)
    return messages.encode(Inbox(inbox.session, left, *rows))


def test_split_view_a_client_that_was_shown_fewer_sharers_is_opened_by_nobody():
    """The server hides c00's peers in its small node, so that c00 masks with none of them; everyone
    else sees all.

    Were the others to reveal c00's seed of that node, as of a survivor, its values would lie open.
    """
    run = World.nested().run(upto="shares")
    routed, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    lied = hidden_peers(run, inboxes, "c00", {"c01", "c02", "c03"})
    masked = {}
    for name in names(9):
        inbox = lied if name == "c00" else inboxes[name]
        masked[name] = client.mask(
            run.states["shares"][name], inbox, run.world.updates[name], randomness=FRESH
        )
    with refused(
        "masked with other sharers"
    ):  # an honest server sees it at once; the network may have lied to c00
        server.collect_masked(routed, {n: data for n, (_, data) in masked.items()})
    # a dishonest one goes on: all others confirm nine survivors, c00's word is its upload's head
    shown = messages.encode(Survivors(session_id(run), group(9).bits))
    with refused("did not share is among them"):
        client.confirm(masked["c00"][0], shown)
    confirmed = {n: client.confirm(masked[n][0], shown) for n in names(9)[1:]}
    votes = tuple(vote for _, vote in confirmed.values())
    head = messages.detach(masked["c00"][1])[0]
    for heads, match in (
        ((head,), "'c00' was shown other sharers"),
        ((), "no signed word of 'c00'"),
    ):
        for following, _ in confirmed.values():
            with refused(match):
                client.reveal(following, messages.encode(Votes(session_id(run), votes, heads)))


def test_split_view_the_heads_of_survivors_that_do_not_vote_stand_for_them():
    world = World.nested()
    run = world.run({"vote": ["c03", "c07"]})
    votes = messages.decode(Votes, run.received["votes"]["c00"])
    assert [len(votes.votes), len(votes.heads)] == [
        6,
        3,
    ]  # a threshold votes, the uploads speak for the others
    assert opened_sums(run) == plain_sums(run, names(9))
    again = World.nested().run({"vote": ["c03", "c07"]}, upto="vote")
    _, shown = server.collect_votes(again.server_states["survivors"], again.sent["vote"])
    state = again.states["vote"]["c00"]
    foreign = messages.decode(Masked, votes.heads[0][64:])
    stale = messages.sign(
        world.identities["c03"],
        session_id(run),
        Masked(bytes(32), "c03", *list_of(foreign)[2:]),
        "c03",
    )
    for heads, match, blames in (
        (lambda h: h[:1], "no signed word of 'c07'", None),
        (lambda h: (h[0], h[0], *h[1:]), "votes twice", None),
        (lambda h: (h[0], h[1][:-1] + b"x", h[2]), "signature does not match", None),
        (lambda h: (stale, *h[1:]), "another session", "c03"),
    ):
        with refused(match, blames=blames):
            client.reveal(state, edit(Votes, heads=heads)(shown["c00"]))
    client.reveal(state, shown["c00"])


def test_split_view_the_view_that_a_vote_signs_covers_session_sharers_and_survivors():
    views = {
        view_hash(session, sharers, survivors)
        for session in (bytes(32), FRESH)
        for sharers in (group(9), group(8))
        for survivors in (group(7), group(6))
    }
    assert len(views) == 8


def list_of(message):
    return [getattr(message, field) for field in message.__struct_fields__]


# A masked vector that arrives after its sender's key was revealed


def test_late_upload_a_late_upload_stays_masked_after_its_key_was_revealed():
    dropped = World.nested().run(upto="masked")
    late = dropped.sent["masked"].pop("c00")
    state, shown = server.collect_masked(dropped.server_states["inbox"], dropped.sent["masked"])
    confirmed = {n: client.confirm(dropped.states["masked"][n], shown[n]) for n in shown}
    state, votes = server.collect_votes(state, {n: vote for n, (_, vote) in confirmed.items()})
    reveals = {n: client.reveal(confirmed[n][0], votes[n]) for n in votes}
    # The server now has c00's key: it strips every pair mask from the late upload.
    cohort, plan = state.cohort, dropped.world.plan
    holders = sorted(reveals)[: plan.threshold]
    shares = [dropped.states["masked"][h].bundles["c00"][0] for h in holders]
    assert all(share in reveals[h] for h, share in zip(holders, shares, strict=True))
    pair = keys.Pair(shamir.combine(shares, shamir.weights_at_zero(cohort.points("c00", holders))))
    words = np.frombuffer(late[-4 * 80 :], "<u4").copy()
    plain, at = [], 0
    for node in plan.nodes_of("c00"):
        masks = []
        for peer in cohort.peers("c00", node, group(9)):
            agreed = pair.agree(cohort.id, peer, cohort.adverts[peer].mask_key)
            masks.append((keys.pair_mask_key(agreed, node.name), -1 if peer > "c00" else 1))
        plan.ring.add_masks(words[at : at + node.width], masks)
        plain.append(words[at : at + node.width].view(np.int32).astype(np.int64))
        at += node.width
    limit = plan.quantiser.max_integer
    assert (
        np.mean(np.abs(np.concatenate(plain)) <= limit) < 0.2
    )  # still uniform: 2^19 of 2^31 would be inside
    for holder, data in reveals.items():
        held = dropped.states["masked"][holder].bundles["c00"]
        assert not any(share in data for share in held[1:])
    with refused("used already"):
        server.collect_masked(dropped.server_states["inbox"], {"c00": late})


def test_an_honest_world_still_opens_exactly():
    run = World.nested().run()
    assert opened_sums(run) == plain_sums(run, names(9))
