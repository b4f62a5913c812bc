"""What an upload shows and what it may hold: lengths, clips, sums that cannot wrap."""

import numpy as np
import pytest
from harness import (
    FRESH,
    World,
    flat_plan,
    refused,
)

from fedtree_secagg import ConfigurationError, Quantiser, client, server
from fedtree_secagg.primitives.ring import Ring

# Metadata, sparse coordinates


def test_metadata_and_sparse_coordinates_lengths_say_nothing_about_the_update():
    world = World.of(flat_plan(n=5, length=500))
    dense = world.run().sent
    for update in world.updates.values():
        update[1:] = 0
    sparse = world.run(attempt=1).sent
    for stage in ("shares", "masked", "vote", "reveal"):
        assert {len(data) for data in dense[stage].values()} == {
            len(data) for data in sparse[stage].values()
        }
        assert len({len(data) for data in sparse[stage].values()}) == 1


# Overflow and oversize contributions


def test_overflow_a_sum_that_could_wrap_is_refused_before_it_starts():
    flat_plan(n=8, quantiser=Quantiser(1.0, 29))
    with refused("at most 29 bits", error=ConfigurationError):
        flat_plan(n=8, quantiser=Quantiser(1.0, 30))
    with refused("at most 28 bits", error=ConfigurationError):
        flat_plan(n=9, quantiser=Quantiser(1.0, 29))
    with refused("at most 13 bits", error=ConfigurationError):
        flat_plan(n=8, ring=Ring(16), quantiser=Quantiser(1.0, 14))
    with refused("at most 13 bits", error=ConfigurationError):
        flat_plan(n=8, ring=Ring(16), quantiser=Quantiser(1.0, 20))


@pytest.mark.parametrize("value", [1.0001, -2.0, np.nan, np.inf, -np.inf])
def test_overflow_the_client_sends_nothing_beyond_the_clip(value):
    world = World.of(flat_plan())
    run = world.run(upto="shares")
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    update = world.updates["c00"].copy()
    update[7] = value
    with refused("beyond the clip|nan or infinite", error=ConfigurationError):
        client.mask(run.states["shares"]["c00"], inboxes["c00"], update, randomness=FRESH)
    client.mask(run.states["shares"]["c00"], inboxes["c00"], world.updates["c00"], randomness=FRESH)


def test_overflow_the_server_refuses_a_sum_beyond_n_times_the_clip(monkeypatch):
    monkeypatch.setattr(Quantiser, "quantise_into", lambda self, out, values, key: out.fill(2**20))
    with refused("beyond 5 times the clip"):
        World.of(flat_plan()).run()


def test_overflow_a_refused_sum_leaves_all_sums_masked_as_they_were(monkeypatch):
    world, quantise = World.nested(), Quantiser.quantise_into

    def beyond_in_the_last_node(self, out, values, key):
        quantise(self, out, values, key)
        if len(out) == world.plan.nodes[-1].width:
            out.fill(2**20)

    monkeypatch.setattr(Quantiser, "quantise_into", beyond_in_the_last_node)
    run = world.run(upto="vote")
    agreed, votes = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    reveals = {name: client.reveal(run.states["vote"][name], data) for name, data in votes.items()}
    before = {name: total.copy() for name, total in agreed.totals.items()}
    for _ in range(2):
        with refused("times the clip"):
            server.open_sums(agreed, reveals)
        assert all(np.array_equal(agreed.totals[name], total) for name, total in before.items())


def test_overflow_sums_that_were_half_opened_when_the_step_was_broken_off_are_never_shown(
    monkeypatch,
):
    run = World.nested().run(upto="vote")
    agreed, votes = server.collect_votes(run.server_states["survivors"], run.sent["vote"])
    reveals = {name: client.reveal(run.states["vote"][name], data) for name, data in votes.items()}
    original, calls = Ring.add_masks, []

    def interrupted(self, target, masks):
        calls.append(original(self, target, masks))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ring, "add_masks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.open_sums(agreed, reveals)
    with refused("run another attempt"):
        server.open_sums(agreed, reveals)


# Whole numbers of grid steps


def test_whole_numbers_are_summed_as_they_are_and_one_client_s_are_never_cut():
    """Noise that was added on the grid: one value may be beyond the clip while the sum is not."""
    world = World.of(flat_plan(n=5, length=64))
    most = world.plan.quantiser.max_integer
    rng = np.random.default_rng(3)
    for name in world.updates:
        world.updates[name] = rng.integers(-most, most + 1, 64)
    first, second = list(world.updates)[:2]
    world.updates[first][:3] = 3 * most + 5, -3 * most - 5, most + 1
    world.updates[second][:3] = -3 * most, 3 * most, -1
    (opened,) = world.run().opened.values()
    wanted = np.sum(list(world.updates.values()), axis=0)
    assert opened.ring.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("kind", "on_grid"),
    [(np.int32, False), (np.int64, False), (np.float16, False), (np.float64, True), (bool, True)],
)
def test_updates_of_other_types_are_refused(kind, on_grid):
    """Whole numbers are taken for grid steps only where the caller says that they are."""
    world = World.of(flat_plan())
    run = world.run(upto="shares")
    _, inboxes = server.route_shares(run.server_states["adverts"], run.sent["shares"])
    update = np.zeros(world.plan.length, dtype=kind)
    with refused("int64" if on_grid else "float32 or float64", error=ConfigurationError):
        client.mask(
            run.states["shares"]["c00"], inboxes["c00"], update, randomness=FRESH, on_grid=on_grid
        )
