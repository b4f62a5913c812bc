"""What terms, plans, sketches and votes are bound to, and which distances are read at all."""

import dataclasses

import numpy as np
import pytest
from small_jobs import make_job

from fedtree_secagg import Identity, Roster
from fedtree_secure import Masking, Topology
from fedtree_secure.agreed.messages import NodeDigest, ProposeTree, WireError
from fedtree_secure.agreed.round_plan import (
    check_members,
    evidence_of,
    plan_of_round,
    sketch_context,
    vote_bytes,
)
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree, trivial_tree
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout

NAMES = tuple(f"c{i}" for i in range(6))
FACTS = ModelFacts(bytes(32), Layout(((0, 4), (4, 8))), 16, 2, (0, 1), np.zeros(8, np.float32))
TREE = trivial_tree(NAMES, 2, "one_group", 3)
DIGESTS = (NodeDigest("node", bytes(32), bytes(32)),)


def key(number):
    return Identity.generate(bytes([number, *range(1, 32)])).public_bytes


def roster(count=6, first=0):
    return Roster({f"c{i}": key(first + i) for i in range(count)})


def terms(**changes):
    fields = {"job": make_job("unused"), "roster": roster(), "server_key": key(99), "run": "run"}
    return Terms(**{**fields, **changes})


def others():
    """Terms that differ in one thing."""
    return {
        "job": terms(job=make_job("unused", rounds=3)),
        "roster": terms(roster=roster(first=10)),
        "server's key": terms(server_key=key(98)),
        "run": terms(run="another"),
    }


def test_terms_tell_apart_jobs_rosters_servers_and_runs():
    every = [terms(), *others().values()]
    assert len({found.digest for found in every}) == len(every)
    assert terms() == terms()


@pytest.mark.parametrize("colluders", [1, 2, 3])
def test_two_quorums_share_more_clients_than_collude(colluders):
    for count in range(colluders + 2, 14):
        job = make_job("unused", masking=Masking(min_group=colluders + 2, colluders=colluders))
        quorum = terms(job=job, roster=roster(count)).quorum
        assert 2 * quorum - count > colluders


def context(**changes):
    given = {"terms": terms(), "facts": FACTS, "tree": TREE, "evidence": "", "digests": DIGESTS}
    merge = changes.pop("merge", False)
    return plan_of_round(**{"clip": 3.0, **given, **changes}, merge=merge).context


def test_a_plan_is_bound_to_all_that_members_must_hold_alike():
    """Whoever was told something else masks under another plan, and nothing opens."""
    found = [
        context(),
        *(context(terms=other) for other in others().values()),
        context(facts=dataclasses.replace(FACTS, digest=bytes([1] * 32))),
        context(tree=Tree(NAMES, ((1,) * 6,) * 2, 3)),  # the same groups under another label
        context(evidence="ab"),
        context(digests=(NodeDigest("node", bytes([1] * 32), bytes(32)),)),
        context(digests=(NodeDigest("node", bytes(32), bytes([1] * 32)),)),
    ]
    assert len(set(found)) == len(found)
    assert context() == found[0]


def test_a_merge_is_no_round_and_one_that_sums_nothing_is_none():
    warmed_up = terms(job=make_job("unused", topology=Topology(source="lora_b")))
    assert context(terms=warmed_up, merge=True) != context(terms=warmed_up)
    with pytest.raises(WireError, match="would sum nothing"):
        context(merge=True)


def test_a_sketch_is_bound_to_its_attempt():
    """Two sketches under one projection would differ by the noise's own digits alone."""
    found = {sketch_context(given, bytes(32), 1) for given in (terms(), *others().values())}
    found |= {sketch_context(terms(), bytes(32), 2), sketch_context(terms(), bytes([1] * 32), 1)}
    assert len(found) == 7


def proposal(**changes):
    squared = np.ones((2, 6, 6)) - np.eye(6)
    fields = {
        "attempt": 1,
        "members": NAMES,
        "noise": (1.0,) * 6,
        "squared": squared.tobytes(),
        "labels": ((0,) * 6,) * 2,
    }
    return ProposeTree(**{**fields, **changes})


def test_a_vote_is_bound_to_its_run_and_its_proposal():
    found = {vote_bytes(given, proposal()) for given in (terms(), *others().values())}
    found |= {vote_bytes(terms(), proposal(attempt=2)), vote_bytes(terms(), proposal(labels=()))}
    assert len(found) == 7


@pytest.mark.parametrize(
    "members",
    [NAMES[:3], (*NAMES, "stranger"), (*NAMES[:5], NAMES[4]), (NAMES[0], *NAMES), NAMES[::-1], ()],
)
def test_hostile_invented_distances_members_must_be_a_quorum_of_the_roster(members):
    check_members(NAMES, terms())
    check_members(NAMES[1:5], terms())
    with pytest.raises(WireError):
        check_members(members, terms())


def squared(place, value):
    data = np.ones((2, 6, 6)) - np.eye(6)
    data[place] = value
    return data.tobytes()


@pytest.mark.parametrize(
    "lie",
    [
        {"squared": b""},
        {"squared": bytes(8 * 71)},
        {"squared": bytes(8 * 73)},
        {"noise": (1.0,) * 5},
        {"noise": (1.0,) * 5 + (float("nan"),)},
        {"noise": (1.0,) * 5 + (float("inf"),)},
        {"noise": (1.0,) * 5 + (-1.0,)},
        {"squared": np.full(72, np.nan).tobytes()},
        {"squared": np.full(72, np.inf).tobytes()},
        {"squared": np.full(72, -1.0).tobytes()},
        {"squared": squared((1, 2, 3), 2.0)},
    ],
)
def test_hostile_invented_distances_that_are_none_raise_one_class(lie):
    job = make_job("unused", topology=Topology(sketch_size=64))
    assert evidence_of(proposal(), job, FACTS).squared.shape == (2, 6, 6)
    with pytest.raises(WireError, match="distances"):
        evidence_of(proposal(**lie), job, FACTS)
