"""Which trees may follow: the disclosure rule over all trees of a run, and what a change must say.

Names of tests carry `late_client`: each forbidden move is one.
"""

import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from small_jobs import make_job
from twelve import KEYS, NAMES, make_terms

from fedtree_secagg import Node
from fedtree_secure import Cohort, ConfigurationError, Topology
from fedtree_secure.agreed.cohort import (
    Era,
    Roll,
    change_digest,
    first_roll,
    follow,
    leave_bytes,
    line_of,
    may_follow,
    next_tree,
    successor,
)
from fedtree_secure.agreed.messages import Change, ProposeTree, WireError
from fedtree_secure.agreed.round_plan import nodes_of
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout

LAYOUT = Layout(((0, 4), (4, 8)))
FACTS = ModelFacts(bytes(32), LAYOUT, 16, 2, (0, 1), np.zeros(8, np.float32))
LEFT, RIGHT, LATE = NAMES[:4], NAMES[4:8], NAMES[8:]
STEM = NAMES[:8]


TERMS = make_terms()


def tree_of_groups(*layers, least=3):
    """The tree with these groups in each layer; everybody else stays alone."""
    rows = []
    for groups in layers:
        of = {name: number for number, group in enumerate(groups) for name in group}
        rows.append(tuple(of.get(name, 100 + i) for i, name in enumerate(NAMES)))
    return Tree(NAMES, tuple(rows), least)


BRANCHED = tree_of_groups([STEM], [LEFT, RIGHT])
ROLL = Roll((Era(BRANCHED, ""),), frozenset(STEM))


def path(*groups):
    return tuple(groups)


def distances_to(near):
    """Distances in which each late client lies at one of those who were there."""
    members = (*STEM, *near)
    spots = np.array([0.0 if n in LEFT else 9.0 for n in STEM] + [near[n] for n in near])
    squared = np.repeat(((spots[:, None] - spots[None]) ** 2)[None], 2, axis=0)
    order = np.argsort(members)
    squared = np.ascontiguousarray(squared[:, order][:, :, order])
    noise = (0.0,) * len(members)
    return ProposeTree(2, tuple(sorted(members)), noise, squared.tobytes(), ())


def change_of(roll, *, late=None, gone=(), signed=(), **changes):
    """The change that an honest server proposes."""
    signatures = {n: KEYS[n].sign(leave_bytes(TERMS, n)) for n in signed}
    told = tuple(sorted({**dict.fromkeys(gone, b""), **signatures}.items()))
    distances = None if late is None else distances_to(late)
    draft = Change(
        len(roll.eras), roll.eras[-1].evidence, told, tuple(sorted(late or ())), distances, ()
    )
    draft = msgspec.structs.replace(draft, **changes)
    tree, _ = next_tree(TERMS, FACTS, roll, draft)
    return msgspec.structs.replace(draft, labels=tree.labels)


# --- the rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "members", "allowed"),
    [
        (["abcdef"], "abcdef", True),
        (["abcdef"], "abcdefghi", True),
        (["abcdef"], "abcdefgh", False),  # two come
        (["abcdef"], "abc", True),
        (["abcdef"], "abcd", False),  # two leave
        (["abcdef"], "abcdxyz", False),  # three come, two leave
        (["abcde"], "abvwxyz", False),  # two stay
        (["abc", "abcdef"], "abcdefghi", True),
        (["abc", "abcdef"], "bcdefg", False),  # far apart: one of the first
        (["abcdefghi", "abcdefghijkl"], "abcdefgjkl", False),  # legal against the last alone
    ],
)
def test_late_client_moves_of_a_sum(earlier, members, allowed):
    assert may_follow(earlier, members, 3) is allowed


def test_late_client_rule_is_about_all_combinations_of_sums():
    """Each two of these differ by nobody or by three; the three together tell of one client."""
    first, second, third = "abcdef", "abcdefwxyz", "defgxyz"
    assert all(may_follow([a], b, 3) for a, b in itertools.combinations((first, second), 2))
    assert not may_follow([first, second], third, 3)
    assert not may_follow([first, "abcdefwxyz"], "bcdefxyz", 3)


# --- who comes where ----------------------------------------------------------------------------


def test_late_client_batch_comes_into_each_sum_of_its_path():
    nearest = dict.fromkeys(LATE[:3], path(STEM, LEFT))
    after = successor(ROLL, 2, nearest, frozenset())
    assert after.released(0) == ((*STEM, *LATE[:3]),)
    assert set(after.released(1)) == {tuple(sorted((*LEFT, *LATE[:3]))), RIGHT}


def test_late_client_branch_that_too_few_come_to_stays_as_it_is():
    """The trunk takes all four in; two and two keep the branches' layer to themselves."""
    nearest = {
        **dict.fromkeys(LATE[:2], path(STEM, LEFT)),
        **dict.fromkeys(LATE[2:], path(STEM, RIGHT)),
    }
    after = successor(ROLL, 2, nearest, frozenset())
    assert after.released(0) == (NAMES,)
    assert set(after.released(1)) == {LEFT, RIGHT}
    assert all(after.group_of(name, 1) is None for name in LATE)


def test_late_client_batch_of_two_comes_nowhere():
    nearest = dict.fromkeys(LATE[:2], path(STEM, LEFT))
    assert successor(ROLL, 2, nearest, frozenset()) is BRANCHED


def test_late_client_is_placed_by_the_nearest_members():
    change = change_of(ROLL, late={"c08": 1.0, "c09": 2.0, "c10": 0.5, "c11": 8.0})
    tree, came = next_tree(TERMS, FACTS, ROLL, change)
    assert came == set(LATE)
    assert tree.group_of("c00", 1) == (*LEFT, "c08", "c09", "c10")
    assert tree.group_of("c11", 1) is None
    assert tree.group_of("c04", 1) == RIGHT


# --- who leaves ---------------------------------------------------------------------------------


def test_late_client_rule_for_leaving_two_stay_members_and_three_go():
    wide = Roll((Era(tree_of_groups([NAMES], [NAMES[:6], NAMES[6:]]), ""),), frozenset(NAMES))
    two = successor(wide, 2, {}, frozenset(NAMES[:2]))
    assert two is wide.tree
    three = successor(wide, 2, {}, frozenset(NAMES[:3]))
    assert three.released(0) == (NAMES[3:],)
    assert set(three.released(1)) == {NAMES[3:6], NAMES[6:]}


def test_late_client_node_closes_where_fewer_than_a_group_stay():
    after = successor(ROLL, 2, {}, frozenset(LEFT[:2]))
    assert after.released(0) == (STEM,)  # two left, and still count
    assert after.released(1) == (RIGHT,)
    assert all(after.group_of(name, 1) is None for name in LEFT)
    later = Roll((*ROLL.eras, Era(after, "x")), ROLL.seated, frozenset(LEFT[:2]))
    nearest = dict.fromkeys(LATE, path(STEM, None))
    again = successor(later, 2, nearest, frozenset(LEFT[:2]))
    assert again.released(1) == (RIGHT,)  # what is closed takes nobody in


def test_late_client_that_came_may_not_leave_alone_for_earlier_sums_sake():
    """Three leave, which is enough for the last tree; but one of them came late with two."""
    came = successor(ROLL, 2, dict.fromkeys(LATE[:3], path(STEM, LEFT)), frozenset())
    roll = Roll((*ROLL.eras, Era(came, "x")), frozenset((*STEM, *LATE[:3])))
    after = successor(roll, 2, {}, frozenset((*RIGHT[:2], LATE[0])))
    assert after.released(0) == came.released(0)
    assert RIGHT not in after.released(1)  # two of four stayed there


def test_late_client_change_makes_no_two_sums_one():
    """Members of the first layer would become those of the second: one node, with one optimiser."""
    two = Roll((Era(tree_of_groups([NAMES[:9]], [NAMES[:6]]), ""),), frozenset(NAMES[:9]))
    after = successor(two, 2, {}, frozenset(NAMES[6:9]))
    assert after is two.tree


def test_late_client_lines_of_nodes_lead_back_to_the_first_tree():
    came = successor(ROLL, 2, dict.fromkeys(LATE[:3], path(STEM, LEFT)), frozenset())
    for node in nodes_of(came, LAYOUT):
        (now, same), (then, before) = line_of((BRANCHED, came), LAYOUT, node)
        assert (now, same, then) == (1, node, 0)
        assert isinstance(before, Node)
        assert before.ranges == node.ranges
        assert set(before.members) <= set(node.members)


# --- what a change must say ---------------------------------------------------------------------

BATCH = {"c08": 1.0, "c09": 2.0, "c10": 0.5}


def test_late_client_honest_changes_follow_one_another():
    first = change_of(ROLL, late=BATCH)
    roll = follow(TERMS, FACTS, ROLL, first)
    assert roll.seated == {*STEM, *BATCH}
    assert roll.eras[-1].evidence == change_digest(first)
    second = change_of(roll, gone=BATCH, signed=["c08"])
    roll = follow(TERMS, FACTS, roll, second)
    assert roll.gone == set(BATCH)
    assert roll.tree.released(0) == (STEM,)


def lie(honest, **fields):
    return msgspec.structs.replace(honest, **fields)


@pytest.mark.parametrize(
    ("forbidden", "why"),
    [
        (lambda c: lie(c, number=2), "does not follow"),
        (lambda c: lie(c, before="00"), "does not follow"),
        (lambda c: lie(c, labels=tree_of_groups([NAMES[:9]], [LEFT, RIGHT]).labels), "labels"),
        (lambda c: lie(c, labels=BRANCHED.labels), "labels"),
        (lambda c: lie(c, late=c.late[:2]), "a batch has at least"),
        (lambda c: lie(c, late=()), "nobody comes"),
        (lambda c: lie(c, late=(*c.late, "stranger")), "of the roster"),
        (lambda c: lie(c, late=c.late[::-1]), "sorted"),
        (lambda c: lie(c, late=("c00", *c.late)), "has its place"),
        (lambda c: lie(c, distances=None), "by distances"),
        (lambda c: lie(c, distances=lie(c.distances, members=STEM)), "by distances"),
        (lambda c: lie(c, gone=(("c10", b""),)), "or left"),
        (lambda c: lie(c, gone=(("stranger", b""),)), "who left"),
        (lambda c: lie(c, gone=(("c01", bytes(64)),)), "c01 did not sign"),
    ],
)
def test_late_client_forbidden_change(forbidden, why):
    honest = change_of(ROLL, late=BATCH)
    with pytest.raises(WireError, match=why):
        follow(TERMS, FACTS, ROLL, forbidden(honest))


def test_late_client_few_distances_are_no_evidence():
    """A victim is placed by a sketch of it and a few, which a server can choose."""
    honest = change_of(ROLL, late=BATCH)
    few = distances_to(BATCH)
    members = ("c00", *BATCH)
    depth = len(few.squared) // 8 // len(few.members) ** 2
    small = lie(few, members=members, noise=(0.0,) * 4, squared=bytes(8 * depth * 16))
    with pytest.raises(WireError, match="at least 7 must take part"):
        follow(TERMS, FACTS, ROLL, lie(honest, distances=small))


def test_late_client_that_left_stays_away():
    roll = follow(TERMS, FACTS, ROLL, change_of(ROLL, gone=LEFT[:2]))
    with pytest.raises(WireError, match="stay away"):
        follow(TERMS, FACTS, roll, change_of(roll, gone=RIGHT[:2]))


def test_late_client_change_that_changes_nothing_is_none():
    honest = change_of(ROLL, gone=LEFT[:1], signed=LEFT[:1])
    with pytest.raises(WireError, match="changes nothing"):
        follow(TERMS, FACTS, ROLL, honest)


def test_late_client_needs_a_job_that_takes_it_in():
    honest = change_of(ROLL, late=BATCH)
    with pytest.raises(WireError, match="takes nobody in late"):
        follow(make_terms(cohort=Cohort()), FACTS, ROLL, honest)


def test_late_client_tree_without_distances_has_the_whole_roster_from_the_beginning():
    one = tree_of_groups([NAMES], [NAMES])
    roll = first_roll(make_terms(topology=Topology(source="one_group")), one, None)
    assert roll.seated == set(NAMES)


@pytest.mark.parametrize("source", ["lora_b", "none"])
def test_late_client_setting_is_refused_where_nobody_could_be_placed(source):
    with pytest.raises(ConfigurationError, match=r"cohort\.late"):
        make_job("unused", cohort=Cohort(late=True), topology=Topology(source=source))


def test_late_client_settings_of_old_jobs_hash_as_before():
    job = make_job("unused")
    assert "cohort" not in job.to_dict()
    assert dataclasses.replace(job, cohort=Cohort(late=True)).digest() != job.digest()
    with pytest.raises(ConfigurationError, match=r"cohort\.gone_after"):
        Cohort(gone_after=0)
