"""No sum of too few: small groups, complements, nodes that shrink, rounds that differ by few."""

from dataclasses import replace

import pytest
from harness import (
    World,
    flat_plan,
    names,
    refused,
    shares_in,
)

from fedtree_secagg import (
    ConfigurationError,
    Node,
)
from fedtree_secagg.agreed.plan import check_succession

# Differencing between rounds


def test_differencing_membership_moves_by_none_or_by_min_group():
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


# Complements and small clusters


@pytest.mark.parametrize("size", [1, 2])
def test_complement_a_cluster_of_one_or_two_is_refused(size):
    nodes = (Node("small", names(5)[:size], ((0, 40),)), Node("rest", names(5)[size:], ((0, 40),)))
    with refused("min_group is 3", error=ConfigurationError):
        flat_plan(n=5, nodes=nodes)
    with refused("min_group must be at least 3", error=ConfigurationError):
        flat_plan(n=5, min_group=size, colluders=0)


def test_complement_a_coordinate_of_a_client_is_in_one_sum_only():
    nodes = (Node("all", names(5), ((0, 40),)), Node("but-one", names(5)[:4], ((39, 40),)))
    with refused("share coordinate 39", error=ConfigurationError):
        flat_plan(n=5, nodes=nodes)


# A node that shrinks


def test_shrunken_node_a_node_below_min_group_is_not_opened_and_its_seeds_stay_hidden():
    run = World.nested().run({"masked": ["c00", "c01"]})
    assert "left" not in run.opened
    assert "left-deep" not in run.opened
    plan = run.world.plan
    for holder in run.sent["reveal"]:
        for dealer in ("c02", "c03"):
            opened = [
                plan.nodes_of(dealer)[slot - 1].name for slot in shares_in(run, holder, dealer)
            ]
            assert opened == ["trunk"]


def test_shrunken_node_the_key_of_one_who_dropped_out_is_kept_when_no_node_of_it_opens():
    c = names(9)
    plan = flat_plan(
        n=9, nodes=(Node("small", c[:3], ((0, 40),)), Node("large", c[3:], ((0, 40),)))
    )
    run = World.of(plan).run({"masked": ["c00"]})
    assert set(run.opened) == {"large"}
    assert not any(shares_in(run, holder, "c00") for holder in run.sent["reveal"])
