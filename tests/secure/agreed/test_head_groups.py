"""Who shares a head follows from declared labels, and is pinned."""

import dataclasses
import os

import numpy as np
import pytest
from small_jobs import make_job

from fedtree_secagg import Identity, Roster
from fedtree_secure import ConfigurationError, Training
from fedtree_secure.agreed.head_groups import HeadGroup, head_groups, labels_digest
from fedtree_secure.agreed.moves import within_reach
from fedtree_secure.agreed.round_plan import reach, reach_of_parts
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree, with_heads
from fedtree_secure.model.layout import Layout

DECLARED = {"a": ("x", "y"), "c": ("x", "y"), "b": ("x", "y"), "d": ("p", "q", "r")}
NAMES = ("a", "b", "c", "d")


def terms(heads, **changes):
    roster = Roster({name: Identity.generate(os.urandom(32)).public_bytes for name in NAMES})
    return Terms(make_job("m", **changes), roster, bytes(32), "run", heads)


def test_clients_with_one_declared_label_set_are_a_group():
    (group,) = head_groups(DECLARED, 3)
    assert group == HeadGroup(("a", "b", "c"), 2, labels_digest(("x", "y")))


def test_a_label_set_of_too_few_clients_makes_no_group():
    assert head_groups(DECLARED, 4) == ()
    assert head_groups({}, 2) == ()


def test_one_set_in_two_orders_is_refused_by_name():
    with pytest.raises(ConfigurationError, match=r"clients a and b .* another order"):
        head_groups({**DECLARED, "b": ("y", "x")}, 3)


@pytest.mark.parametrize(
    ("one", "other"), [(("x", "y"), ("xy",)), (("x",), ("x", "")), (("1",), ("01",))]
)
def test_label_sets_have_digests_of_their_own(one, other):
    assert labels_digest(one) != labels_digest(other)


def test_terms_with_other_groups_are_other_terms():
    groups = head_groups(DECLARED, 3)
    known = terms(groups)
    assert dataclasses.replace(known, heads=()).digest != known.digest
    other = (dataclasses.replace(groups[0], outputs=3),)
    assert dataclasses.replace(known, heads=other).digest != known.digest


@pytest.mark.parametrize(
    ("heads", "changes", "says"),
    [
        ((HeadGroup(("a", "b"), 2, b""),), {}, "at least min_group = 3"),
        ((HeadGroup(("a", "b", "stranger"), 2, b""),), {}, "of the roster"),
        ((HeadGroup(("a", "b", "c"), 2, b""), HeadGroup(("b", "c", "d"), 3, b"")), {}, "disjoint"),
        ((HeadGroup(("a", "b", "c"), 2, b""),), {"training": Training(head="local")}, "are local"),
    ],
)
def test_groups_that_cannot_be_are_refused(heads, changes, says):
    with pytest.raises(ConfigurationError, match=says):
        terms(heads, **changes)


def test_a_head_is_a_part_of_the_tree_that_its_group_alone_shares():
    tree = with_heads(Tree(NAMES, ((0, 0, 0, 0),), 3), [("a", "b", "c")])
    assert tree.released(1) == (("a", "b", "c"),)
    assert tree.group_of("d", 1) is None
    layout = Layout(((0, 10),), ((10, 16),))
    assert tree.nodes(layout.parts) == {
        NAMES: ((0, 10),),
        ("a", "b", "c"): ((10, 16),),
    }


def test_a_head_may_have_moved_further_than_a_layer_and_no_further():
    job = make_job("m", training=Training(records=60, head_steps=8, learning_rate=1e-3))
    layout = Layout(((0, 10),), ((10, 16),))
    before, after = reach_of_parts(job, layout, 0), reach_of_parts(job, layout, 2)
    assert (before == 0).all()
    assert (after[:10] == reach(job, 2)).all()
    assert (after[10:] > 100 * after[0]).all()
    initial, moved = np.zeros(16, np.float32), np.zeros(16, np.float32)
    moved[12] = after[12]
    assert within_reach(moved, initial, after)
    moved[2] = after[12]
    assert not within_reach(moved, initial, after)
