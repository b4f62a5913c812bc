"""Rows 1 to 6 of the attack table: `test_row_NN_...`; `mutants.py` removes each guard and sees
these fail.
"""

import hashlib
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from harness import (
    FRESH,
    Randomness,
    World,
    adverts_message,
    edit,
    flat_plan,
    forge,
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
    Node,
    Plan,
    ProtocolError,
    ThresholdError,
    client,
    server,
)
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.plan import check_succession
from fedtree_secagg.journal import Journal
from fedtree_secagg.primitives import keys, shamir
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
from fedtree_secagg.rounds.session import view_hash

# Row 1: one client dropped in one node and alive in another


def test_row_01_no_holder_opens_key_and_seed_of_one_client():
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


def test_row_01_an_upload_for_some_nodes_only_is_refused():
    run = World.nested().run(upto="masked")
    part = forge_upload(run, "c03", run.sent["masked"]["c03"][-4 * 40 :])
    with refused("160 bytes, the plan asks for 320", blames="c03"):
        server.collect_masked(run.server_states["inbox"], {**run.sent["masked"], "c03": part})


# Row 2: both kinds of share by a split view


def test_row_02_a_split_view_of_the_survivors_reveals_nothing():
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
def test_row_02_own_name_dead_or_an_unknown_client_ends_the_attempt(change, match):
    run = World.nested().run({"shares": ["c08"]}, upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    forged = edit(Survivors, survivors=change)(shown["c02"])
    with refused(match):
        client.confirm(run.states["masked"]["c02"], forged)


def test_row_02_a_survivor_that_never_shared_is_refused():
    run = World.nested().run({"shares": ["c08"]}, upto="masked")
    _, shown = server.collect_masked(run.server_states["inbox"], run.sent["masked"])
    forged = edit(Survivors, survivors=those(lambda all_names: (*all_names, "c08")))(shown["c02"])
    with refused("did not share is among them"):
        client.confirm(run.states["masked"]["c02"], forged)


def test_row_02_a_client_that_is_shown_other_adverts_than_their_root_stands_for_refuses():
    run = World.nested().run(upto="advert")
    _, shown = server.collect_adverts(run.server_states["begin"], run.sent["advert"])
    without = edit(Adverts, adverts=lambda rows: rows[:-1])(shown["c00"])
    with refused("not those that their root stands for"):
        client.share(run.states["advert"]["c00"], without, randomness=FRESH)


def fewer_adverts(data, n):
    message = messages.decode(Adverts, data)
    return adverts_message(message.server_key, message.adverts[:n])


@pytest.mark.parametrize("stage", ["adverts", "inbox", "survivors", "votes"])
def test_row_02_too_few_at_any_stage_ends_the_attempt_at_the_client(stage):
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


def test_row_02_a_vote_counts_once_and_only_from_survivors():
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
def test_row_02_thresholds_that_let_two_sets_reach_t_are_refused(n, colluders):
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


def test_row_02_a_client_that_was_shown_fewer_sharers_is_opened_by_nobody():
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


def test_row_02_the_heads_of_survivors_that_do_not_vote_stand_for_them():
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


def test_row_02_the_view_that_a_vote_signs_covers_session_sharers_and_survivors():
    views = {
        view_hash(session, sharers, survivors)
        for session in (bytes(32), FRESH)
        for sharers in (group(9), group(8))
        for survivors in (group(7), group(6))
    }
    assert len(views) == 8


def list_of(message):
    return [getattr(message, field) for field in message.__struct_fields__]


# Row 3: a masked vector that arrives after its sender's key was revealed


def test_row_03_a_late_upload_stays_masked_after_its_key_was_revealed():
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


# Row 4: replay


def test_row_04_adverts_of_another_attempt_are_refused():
    world = World.nested()
    old = world.run(upto="advert").sent["advert"]
    with refused("signature does not match"):
        world.run(tamper={("advert", "c01"): lambda _: old["c01"]}, attempt=1)
    with refused("signature does not match"):
        world.run(
            tamper={
                ("adverts", "c00"): edit(Adverts, adverts=lambda r: (r[0], old["c01"], *r[2:]))
            },
            round=1,
        )


def test_row_04_an_advert_that_its_sender_dates_otherwise_is_refused():
    run = World.nested().run(upto="advert")
    wrong = forge(run, Advert, "c01", instance=bytes(32))
    with refused("another round, attempt or plan", blames="c01"):
        server.collect_adverts(run.server_states["begin"], {**run.sent["advert"], "c01": wrong})


def test_row_04_boxes_of_another_session_do_not_open():
    world = World.nested()
    old = world.run(upto="shares")
    _, old_inbox = server.route_shares(old.server_states["adverts"], old.sent["shares"])
    world.random = Randomness(
        0
    )  # a client that rolled back to the same keys: only the session id differs
    stale = messages.decode(Inbox, old_inbox["c00"]).boxes[0]
    with refused("changed on its way or made for another session"):
        world.run(
            tamper={("inbox", "c00"): edit(Inbox, boxes=lambda b: (stale, *b[1:]))}, attempt=1
        )
    with refused("another session"):
        world.run(tamper={("inbox", "c00"): lambda _: old_inbox["c00"]}, attempt=2)


@pytest.mark.parametrize(("stage", "received"), [("survivors", "survivors"), ("votes", "votes")])
def test_row_04_server_messages_of_another_session_are_refused(stage, received):
    world = World.nested()
    old = world.run(round=1).received[stage]["c00"]
    with refused("another session"):
        world.run(tamper={(stage, "c00"): lambda _: old}, round=2)


@pytest.mark.parametrize("stage", ["shares", "masked", "vote", "reveal"])
def test_row_04_client_messages_of_another_session_are_refused(stage):
    world = World.nested()
    old = world.run().sent[stage]["c00"]
    with refused("(signature|tag) does not match"):
        world.run(tamper={(stage, "c00"): lambda _: old}, attempt=1)


@pytest.mark.parametrize("kind", [Shares, Masked, Vote, Reveal])
def test_row_04_a_session_field_that_differs_from_the_signed_one_blames_its_sender(kind):
    # The same randomness gives the same session, so that what one world signed fits the other.
    wrong = forge(World.nested().run(), kind, "c04", session=bytes(32))
    with refused("another session", blames="c04"):
        World.nested().run(tamper={(kind.__struct_config__.tag, "c04"): lambda _: wrong})


# Row 5: the same update in two sums


def test_row_05_every_state_serves_once_and_a_refused_step_gives_it_back():
    world = World.nested()
    run = world.run()
    received = run.received
    state = run.states
    again = [
        lambda: client.share(state["advert"]["c00"], received["adverts"]["c00"], randomness=FRESH),
        lambda: client.mask(
            state["shares"]["c00"], received["inbox"]["c00"], world.updates["c00"], randomness=FRESH
        ),
        lambda: client.confirm(state["masked"]["c00"], received["survivors"]["c00"]),
        lambda: client.reveal(state["vote"]["c00"], received["votes"]["c00"]),
        lambda: server.collect_adverts(run.server_states["begin"], run.sent["advert"]),
        lambda: server.open_sums(run.server_states["votes"], run.sent["reveal"]),
    ]
    for step in again:
        with refused("used already"):
            step()
    fresh = world.run(upto="shares", attempt=1)
    _, inboxes = server.route_shares(fresh.server_states["adverts"], fresh.sent["shares"])
    for bad in (b"", inboxes["c01"]):
        with pytest.raises(ProtocolError):
            client.mask(fresh.states["shares"]["c00"], bad, world.updates["c00"], randomness=FRESH)
    client.mask(
        fresh.states["shares"]["c00"], inboxes["c00"], world.updates["c00"], randomness=FRESH
    )


def test_row_05_the_same_updates_in_two_attempts_would_show_one(tmp_path):
    """c00 to c02 reveal nothing at first, and others open their node: what the journal refuses
    their updates for.
    """
    world, c = World.nested(), names(9)
    first = world.run(drops={"reveal": c[:3]})
    second = world.run(drops={"masked": c[3:4]}, attempt=1)
    sums = [run.opened["left-deep"] for run in (first, second)]
    assert [len(found.members_summed) for found in sums] == [4, 3]
    victim = sums[0].node.gather(world.updates["c03"])
    assert (
        np.abs(sums[0].values() - sums[1].values() - victim).max() <= 8 * world.plan.quantiser.step
    )
    with Journal(tmp_path / "c00") as journal:
        for refuses in (False, True):
            journal.begin(0)
            journal.record("advertised")
            journal.record("shared")
            with refused("fresh noise") if refuses else nullcontext():
                journal.record(
                    "masked", update=hashlib.sha256(world.updates["c00"].tobytes()).digest()
                )


# Row 6: differencing between rounds


def test_row_06_membership_moves_by_none_or_by_min_group():
    before = flat_plan(
        n=9, nodes=(Node("a", names(9)[:5], ((0, 40),)), Node("b", names(9)[5:], ((0, 40),)))
    )

    def after(first, second, ranges=((0, 40),)):
        return replace(
            before, nodes=(Node("a", first, ranges), Node("b", second, ranges)), threshold=6
        )

    c = names(9)
    check_succession(before, before)
    check_succession(before, after(c[:5], c[5:], ((0, 20),)))
    with refused("1 members leave", error=ConfigurationError):
        check_succession(before, after(c[:4], c[4:]))
    with refused("1 members join", error=ConfigurationError):
        check_succession(
            before,
            replace(before, nodes=(Node("a", c[:6], ((5, 6),)), Node("b", c[6:], ((5, 6),)))),
        )
    big = flat_plan(
        n=12, nodes=(Node("a", names(12)[:6], ((0, 40),)), Node("b", names(12)[6:], ((0, 40),)))
    )
    moved = (Node("a", names(12)[:3], ((0, 40),)), Node("b", names(12)[3:], ((0, 40),)))
    check_succession(big, replace(big, nodes=moved))
    disjoint = replace(before, length=80, nodes=(Node("a", c, ((40, 80),)),))
    check_succession(before, disjoint)
