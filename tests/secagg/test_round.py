"""Whole rounds: what the server opens is, bit for bit, the plain sum of what the clients
quantised.
"""

import numpy as np
import pytest
from harness import STAGES, World, flat_plan, names, nested_plan, opened_sums, plain_sums
from hypothesis import given
from hypothesis import strategies as st

from fedtree_secagg import Node, Plan, Quantiser, Ring, ThresholdError, server

MOST = 9 - Plan.full_threshold(9)


def survivors_of(drops, stage_names=("advert", "shares", "masked")):
    gone = set().union(*(set(drops.get(stage, ())) for stage in stage_names))
    return [name for name in names(9) if name not in gone]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how_many", [0, 1, MOST])
@pytest.mark.parametrize("who", ["first", "last", "spread"])
def test_opened_sums_equal_plain_integer_sums(stage, how_many, who):
    order = {"first": names(9), "last": names(9)[::-1], "spread": names(9)[::3] + names(9)[1::3]}[
        who
    ]
    drops = {stage: order[:how_many]}
    run = World.nested().run(drops)
    expected = plain_sums(run, survivors_of(drops))
    assert opened_sums(run) == expected
    assert "trunk" in expected


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_nothing_is_opened(stage):
    with pytest.raises(ThresholdError, match="nothing is opened"):
        World.nested().run({stage: names(9)[: MOST + 1]})


def test_dropouts_at_every_stage_at_once():
    world = World.of(flat_plan(n=14, length=33, colluders=1, threshold=8))
    drops = {
        "advert": ["c00"],
        "shares": ["c05"],
        "masked": ["c07", "c13"],
        "vote": ["c01"],
        "reveal": ["c02"],
    }
    run = world.run(drops)
    alive = [n for n in names(14) if n not in {"c00", "c05", "c07", "c13"}]
    assert opened_sums(run) == plain_sums(run, alive)
    assert run.opened["all"].members_summed == tuple(alive)


def test_a_node_below_min_group_is_absent_and_its_siblings_open():
    run = World.nested().run({"masked": ["c00", "c01"]})
    assert set(run.opened) == {"trunk", "right", "right-deep"}
    assert opened_sums(run) == plain_sums(run, names(9)[2:])


def test_values_and_mean_are_within_one_grid_step_per_member():
    world = World.nested()
    run = world.run()
    for name, node_sum in run.opened.items():
        node = next(node for node in world.plan.nodes if node.name == name)
        exact = np.sum(
            [node.gather(world.updates[m]).astype(np.float64) for m in node.members], axis=0
        )
        step = world.plan.quantiser.step
        assert np.abs(node_sum.values() - exact).max() <= len(node.members) * step
        np.testing.assert_allclose(
            node_sum.mean() * len(node.members), node_sum.values(), rtol=1e-12
        )


def test_extreme_values_at_the_ring_bound_do_not_wrap():
    plan = flat_plan(n=4, length=6, quantiser=Quantiser(clip=3.0, bits=30))
    world = World.of(plan, dtype=np.float64)
    for name in plan.cohort:
        world.updates[name] = np.array([3.0, -3.0, 3.0, -3.0, 0.0, 3.0])
    top = 4 * (2**29 - 1)
    assert world.run().opened["all"].ring.tolist() == [top, -top, top, -top, 0, top]


def test_sixteen_bit_ring_halves_the_upload_and_stays_exact():
    narrow = World.of(flat_plan(n=5, length=1000, ring=Ring(16), quantiser=Quantiser(1.0, 13)))
    run = narrow.run({"masked": ["c03"]})
    assert opened_sums(run) == plain_sums(run, ["c00", "c01", "c02", "c04"])
    wide = World.of(flat_plan(n=5, length=1000, quantiser=Quantiser(1.0, 13))).run()
    assert len(wide.sent["masked"]["c00"]) - len(run.sent["masked"]["c00"]) == 2000


def test_uploads_have_one_size_whatever_the_update_and_leave_home_coordinates_out():
    world = World.nested()
    first = world.run().sent["masked"]
    world.updates = {name: np.zeros_like(update) for name, update in world.updates.items()}
    second = world.run(attempt=1).sent["masked"]
    assert {n: len(d) for n, d in first.items()} == {n: len(d) for n, d in second.items()}
    overhead = len(first["c00"]) - 4 * 80
    assert len(first["c08"]) == 4 * 60 + overhead  # [50, 70) of c08 is in no node


def test_streamed_uploads_give_the_same_sums():
    run = World.nested().run(upto="masked")
    state, _ = server.collect_masked(run.server_states["inbox"], iter(run.sent["masked"].items()))
    assert state.survivors.names() == names(9)


def test_masks_hide_a_zero_update():
    world = World.of(flat_plan(n=3, length=4096))
    world.updates = {name: np.zeros(4096) for name in world.plan.cohort}
    body = world.run().sent["masked"]["c00"][-4 * 4096 :]
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    chi_square = float((((counts - 64.0) ** 2) / 64.0).sum())
    assert (
        120 < chi_square < 450
    )  # 255 degrees of freedom: false alarms below 1e-8; zeros would give 4e6


@st.composite
def plans(draw):
    """Random nested plans: a trunk split at every level, some leaves kept at home."""
    n = draw(st.integers(3, 9))
    everyone = names(n)
    nodes, start = [], 0
    groups = [everyone]
    for level in range(draw(st.integers(1, 3))):
        width = draw(st.integers(1, 12))
        for g, group in enumerate(groups):
            nodes.append(Node(f"{level}-{g}", group, ((start, start + width),)))
        start += width + draw(st.integers(0, 2))
        split = [part for group in groups for part in cut(draw, group)]
        groups = [group for group in split if len(group) >= 3] or groups
    bits = draw(st.integers(2, 32 - (n - 1).bit_length()))
    clip = draw(st.floats(1e-6, 1e6))
    threshold = draw(st.integers(Plan.full_threshold(n), n))
    return flat_plan(
        n, start, nodes=tuple(nodes), quantiser=Quantiser(clip, bits), threshold=threshold
    )


def cut(draw, group):
    at = draw(st.integers(0, len(group)))
    return [group[:at], group[at:]]


@given(plans(), st.data())
def test_random_plans_with_random_dropouts(plan, data):
    budget = len(plan.cohort) - plan.threshold
    gone = data.draw(st.lists(st.sampled_from(plan.cohort), max_size=budget, unique=True))
    drops = {}
    for name in gone:
        drops.setdefault(data.draw(st.sampled_from(STAGES)), []).append(name)
    run = World.of(plan, seed=data.draw(st.integers(0, 99))).run(drops)
    dead = {n for stage in ("advert", "shares", "masked") for n in drops.get(stage, ())}
    assert opened_sums(run) == plain_sums(run, set(plan.cohort) - dead)


def test_flat_plan_helper_matches_nested_plan_shape():
    assert nested_plan().cohort == names(9)
    assert nested_plan().width_of("c08") == 60
