"""Plans, nodes, thresholds and what a client refuses about them."""

import numpy as np
import pytest
from harness import World, flat_plan, names

from fedtree_secagg import ConfigurationError, Node, Plan, client
from fedtree_secagg.rounds.session import Session

FRESH = bytes(range(32))
WHOLE = Node("all", names(5), ((0, 40),))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"length": 0, "nodes": (WHOLE,)}, "length is 0"),
        ({"length": 39, "nodes": (WHOLE,)}, "ends at 40, the vector at 39"),
        ({"context": b"short"}, "context must be 32 bytes"),
        ({"context": "x" * 32}, "context must be 32 bytes"),
        ({"nodes": ()}, "no nodes"),
        (
            {"nodes": (Node("a", names(5), ((0, 1),)), Node("a", names(5), ((1, 2),)))},
            "share a name",
        ),
        ({"colluders": -1}, "colluders -1"),
        ({"min_group": 6}, "min_group is 6"),
    ],
)
def test_bad_plans_are_refused(changes, match):
    with pytest.raises(ConfigurationError, match=match):
        flat_plan(**changes)


@pytest.mark.parametrize(
    ("members", "ranges", "match"),
    [
        (("a", "a", "b"), ((0, 1),), "twice"),
        (names(3), (), "no coordinates"),
        (names(3), ((3, 3),), "empty"),
        (names(3), ((3, 2),), "empty"),
        (names(3), ((-1, 2),), "negative"),
        (names(3), ((0, 5), (4, 6)), "not after"),
        (names(3), ((4, 6), (0, 2)), "not after"),
        (("a\0", "b", "c"), ((0, 1),), "printable"),
    ],
)
def test_bad_nodes_are_refused(members, ranges, match):
    with pytest.raises(ConfigurationError, match=match):
        Node("node", members, ranges)


def test_a_cohort_beyond_the_share_points_is_refused(monkeypatch):
    monkeypatch.setattr("fedtree_secagg.agreed.plan.LARGEST_COHORT", 4)
    with pytest.raises(ConfigurationError, match="at most 4"):
        flat_plan(n=5)


@pytest.mark.parametrize(("n", "colluders"), [(2, 0), (5, 4), (5, -1)])
def test_threshold_helper_refuses_what_no_plan_allows(n, colluders):
    with pytest.raises(ConfigurationError, match="threshold: n is"):
        Plan.full_threshold(n, colluders)


def test_threshold_reference_values():
    assert Plan.full_threshold(20, colluders=2) == 12
    assert Plan.full_threshold(8, colluders=1) == 5


def test_gather_and_scatter_are_inverse():
    node = Node("n", names(3), ((2, 4), (7, 10)))
    vector = np.arange(12.0)
    assert node.width == 5
    assert node.gather(vector).tolist() == [2, 3, 7, 8, 9]
    out = np.zeros(12)
    node.scatter(node.gather(vector), out)
    assert np.flatnonzero(out).tolist() == [2, 3, 7, 8, 9]
    assert flat_plan().nodes_of("nobody") == ()


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, "0"])
def test_counters_out_of_range_are_refused(bad):
    world = World.nested()
    for counters in ({"round": bad, "attempt": 0}, {"round": 0, "attempt": bad}):
        with pytest.raises(ConfigurationError, match="session"):
            Session(world.roster, world.plan, **counters)


def test_a_client_outside_the_plan_cannot_advertise():
    world = World.nested()
    with pytest.raises(ConfigurationError, match="no node of this plan"):
        client.advertise(
            world.identities["c00"],
            "zz",
            world.roster,
            world.plan,
            round=0,
            attempt=0,
            randomness=FRESH,
        )


@pytest.mark.parametrize(
    "bad", [np.zeros(79), np.zeros((80, 1)), np.zeros(80, np.int64), [0.0] * 80]
)
def test_vectors_of_another_shape_or_type_are_refused(bad):
    run = World.nested().run(upto="shares")
    with pytest.raises(ConfigurationError, match="the update"):
        client.mask(run.states["shares"]["c00"], b"", bad, randomness=FRESH)
