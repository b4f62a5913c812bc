"""The cut by bias and variance: the best nested cut, what noise may not do, equal for all."""

import itertools
import tracemalloc

import numpy as np
import pytest
from cut_cases import DIMENSION, SKETCH, THREE, exact, federation, line, partition
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

from fedtree_secure.agreed.cut_costs import GradientEvidence, Nodes, checked_children
from fedtree_secure.agreed.cut_plans import Rule
from fedtree_secure.agreed.cuts import noise_aware_cuts, one_honest_member

ALL = Rule(caution=0.0, false_splits=1.0)


# --- all layers at once


def _all_plans(nodes, at, begin, least):
    """Costs by brute force of every way in which a node may go on from a layer."""
    depth = len(nodes.within)
    home = nodes.home[:, at]
    if nodes.size[at] < least:
        return [home[begin:].sum()]
    stays = nodes.within[:, at] + nodes.noise[:, at]
    found = [stays[begin:].sum()]
    for end in range(begin, depth):
        so_far = stays[begin:end].sum()
        found.append(so_far + home[end:].sum())
        children = (_all_plans(nodes, c, end, least) for c in nodes.children[at - nodes.clients])
        found.extend(so_far + a + b for a, b in itertools.product(*children))
    return found


def test_no_nested_cut_of_the_tree_is_cheaper():
    rng = np.random.default_rng(0)
    kinds = set()
    for least in (2, 3) * 30:
        x = rng.normal(size=(3, 7, 2))
        squared = np.array([squareform(pdist(layer, "sqeuclidean")) for layer in x])
        evidence = exact(squared, rng.uniform(0, 3, size=(3, 7)))
        merges = linkage(rng.normal(size=(7, 2)), "ward")
        found = noise_aware_cuts(merges, evidence, least, rule=ALL)
        nodes = Nodes.weigh(checked_children(merges, 7), evidence, one_honest_member, least)
        cheapest = min(_all_plans(nodes, 12, 0, least)) * 2.0**nodes.exponent
        assert sum(layer.cost for layer in found.layers) == pytest.approx(cheapest)
        kinds.add(found.layers[-1].groups)
    assert len(kinds) > 5


def test_a_lucky_shallow_layer_does_not_split_the_layers_below():
    """Layer 0 would gain 96 by a split that costs 50 in each of four layers."""
    apart, merges = line(0, 2, 10, 12)
    squared = np.concatenate([apart, np.zeros((3, 4, 4))])
    found = noise_aware_cuts(merges, exact(squared, 50), 2)
    assert found.labels == ((0, 0, 0, 0),) * 4
    assert "not with those that it asks of deeper layers" in found.layers[0].describe(0)


def test_a_node_is_split_for_the_sake_of_its_children():
    """Four groups at the ends of a cross: the means of opposite pairs are one point."""
    x = np.repeat([[5.0, 0], [-5, 0], [0, 5], [0, -5]], 3, axis=0)
    merges = linkage(np.repeat([0.0, 1, 10, 11], 3)[:, None], "ward")
    squared = squareform(pdist(x, "sqeuclidean"))[None]
    found = noise_aware_cuts(merges, exact(squared, 1), 3)
    assert found.layers[0].groups == (3, 3, 3, 3)


def test_weak_evidence_of_many_layers_counts_together():
    """A split that each layer alone makes in half of the cases is made by six together."""
    alone, together = 0, 0
    for seed in range(10):
        merges, evidence = federation(seed, signal=0.8)
        together += sum(max(row) > 0 for row in noise_aware_cuts(merges, evidence, 3).labels)
        for squared, plan in zip(evidence.squared, evidence.plan_noise, strict=True):
            layer = GradientEvidence(squared[None], evidence.noise, plan[None], DIMENSION, SKETCH)
            alone += max(noise_aware_cuts(merges, layer, 3).labels[0]) > 0
    assert together >= 54
    assert alone <= 42


def test_all_go_home_where_only_all_together_is_sure():
    """Each split's saving is half a standard error above its price, and there are 15 of them."""
    error = np.sqrt(2 / SKETCH + 2 / DIMENSION)  # of a saving, at noise 1 and few differences
    squared = 2 * (1 + 1.5 * error) * (1 - np.eye(16))[None]
    evidence = GradientEvidence(squared, np.ones(16), np.full((1, 16), error), DIMENSION, SKETCH)
    merges = linkage(np.arange(16.0)[:, None] ** 1.01, "ward")
    for caution, groups, at_home in ((1.0, (), 16), (4.0, (16,), 0)):
        (layer,) = noise_aware_cuts(merges, evidence, 3, rule=Rule(caution)).layers
        assert (layer.groups, layer.at_home) == (groups, at_home)


# --- what follows from the noise


@pytest.mark.parametrize("rounds", [1, 10, 100])
@pytest.mark.parametrize("energy", [1.0, np.geomspace(0.25, 4, 9)], ids=["equal", "unequal"])
def test_clients_without_groups_stay_together(rounds, energy):
    """At the stated chance of .01, six splits of 100 have a chance below .001."""
    split = 0
    for seed in range(100):
        merges, evidence = federation(seed, signal=0.0, rounds=rounds, energy=energy)
        split += noise_aware_cuts(merges, evidence, 3).layers[-1].groups != (9,)
    assert split <= 5


def test_without_the_question_of_chance_they_would_not():
    """The condition has work to do: one standard error alone splits one in four."""
    split = 0
    for seed in range(40):
        merges, evidence = federation(seed, signal=0.0, rounds=100)
        found = noise_aware_cuts(merges, evidence, 3, rule=Rule(1.0, 1.0))
        split += found.layers[-1].groups != (9,)
    assert split >= 8


@pytest.mark.parametrize("depth", [0, 2, 5])
def test_a_planted_depth_is_found_where_noise_allows(depth):
    for seed in range(20):
        merges, evidence = federation(seed, depth=depth, signal=4.0, rounds=3)
        found = noise_aware_cuts(merges, evidence, 3)
        assert [partition(row) for row in found.labels] == [
            partition(THREE if layer >= depth else 0 * THREE) for layer in range(6)
        ]


def test_groups_that_are_not_worth_their_noise_are_left_together():
    """A split would save a tenth of what it adds in noise, and that is seen well."""
    for seed in range(20):
        merges, evidence = federation(seed, signal=0.03, rounds=1)
        assert noise_aware_cuts(merges, evidence, 3).labels == ((0,) * 9,) * 6


def test_a_client_with_a_larger_budget_goes_home_first():
    """Client 8 stands apart and has a tenth of the others' noise; client 0 has as much as they."""
    squared, merges = line(-9, 0, 0, 0, 0, 0, 0, 0, 9)
    energy = np.full(9, 100.0)
    energy[8] = 1.0
    (layer,) = noise_aware_cuts(merges, exact(squared, energy), 3).layers
    found = noise_aware_cuts(merges, exact(squared, energy), 3).labels[0]
    assert layer.at_home == 1
    assert found.count(found[8]) == 1


# --- the same for everybody


def test_rows_are_nested_and_small_clusters_are_never_shared():
    groups = np.array([0] * 5 + [1] * 4 + [2] * 2 + [3])
    shapes = set()
    for seed in range(30):
        merges, evidence = federation(seed, groups=groups, depth=seed % 3, signal=30.0)
        found = noise_aware_cuts(merges, evidence, 3)
        for shallow, deep in itertools.pairwise(found.labels):
            assert all(
                any(part <= whole for whole in partition(shallow)) for part in partition(deep)
            )
        for row, layer in zip(found.labels, found.layers, strict=True):
            sizes = sorted((len(part) for part in partition(row)), reverse=True)
            assert 2 not in sizes
            assert layer.groups == tuple(size for size in sizes if size > 1)
            assert layer.at_home == sizes.count(1)
            shapes.add((layer.groups, layer.at_home))
    assert any(home for _, home in shapes)
    assert len(shapes) > 2


def test_the_order_of_the_clients_does_not_matter():
    rng = np.random.default_rng(3)
    energy = np.geomspace(0.5, 2, 9)
    for seed in range(20):
        merges, evidence = federation(seed, depth=2, signal=2.0, energy=energy)
        # A merge tree of the same heights, with the clients renamed.
        order = rng.permutation(9)
        renamed = merges.copy()
        place = np.concatenate([np.argsort(order), np.arange(9, 17)])
        renamed[:, :2] = place[merges[:, :2].astype(int)][:, ::-1]
        moved = GradientEvidence(
            evidence.squared[:, order][:, :, order],
            evidence.noise[order],
            evidence.plan_noise[:, order],
            DIMENSION,
            SKETCH,
        )
        one, other = noise_aware_cuts(merges, evidence, 3), noise_aware_cuts(renamed, moved, 3)
        for row, found in zip(one.labels, other.labels, strict=True):
            assert partition(np.array(row)[order]) == partition(found)
        assert [layer.groups for layer in one.layers] == [layer.groups for layer in other.layers]


@pytest.mark.parametrize("scale", [2.0**-980, 2.0**980, 1e-300, 1e300])
def test_only_ratios_count(scale):
    merges, evidence = federation(1, depth=2, signal=2.0)
    # Distances of a few units stay finite at the largest scale.
    scale /= 64
    scaled = GradientEvidence(
        evidence.squared * scale,
        evidence.noise * scale,
        evidence.plan_noise * scale,
        DIMENSION,
        SKETCH,
    )
    one, other = noise_aware_cuts(merges, evidence, 3), noise_aware_cuts(merges, scaled, 3)
    assert one.labels == other.labels
    assert other.layers[0].cost == pytest.approx(one.layers[0].cost * scale)


def test_layers_of_very_different_size():
    squared, merges = line(0, 2, 10, 12)
    both = np.concatenate([squared * 1e-300, squared * 1e290])
    energy = np.array([[3e-300], [3e290]]) * np.ones(4)
    found = noise_aware_cuts(merges, exact(both, energy), 2)
    assert found.labels[1] == (0, 0, 1, 1)
    assert all(np.isfinite(layer.cost) for layer in found.layers)


def test_nothing_known_and_nothing_to_gain_is_one_group():
    _, merges = line(0, 2, 10, 12)
    found = noise_aware_cuts(merges, exact(np.zeros((2, 4, 4)), 0.0), 2)
    assert found.labels == ((0, 0, 0, 0),) * 2
    assert "save nothing" in found.layers[0].describe(0)


def test_repeated_and_from_copies_it_is_the_same_and_inputs_stay():
    merges, evidence = federation(2, depth=2)
    before = evidence.squared.copy()
    first = noise_aware_cuts(merges, evidence, 3)
    copies = GradientEvidence(
        np.asfortranarray(evidence.squared),
        evidence.noise.copy(),
        np.asfortranarray(evidence.plan_noise),
        DIMENSION,
        SKETCH,
    )
    assert noise_aware_cuts(merges, copies, 3) == first == noise_aware_cuts(merges, evidence, 3)
    assert (evidence.squared == before).all()


def test_memory_is_that_of_one_layer_of_distances():
    """Three layers of 400 clients are 3.8 MB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20))
    evidence = exact(np.stack([squareform(pdist(x, "sqeuclidean"))] * 3), 1.0)
    merges = linkage(x, "ward")
    tracemalloc.start()
    noise_aware_cuts(merges, evidence, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 400 * 400 * 8 * 1.5
