"""What sharing costs: by hand, through noise and sketch, and evidence that cannot be."""

import numpy as np
import pytest
from cut_cases import DIMENSION, EXACT, SKETCH, THREE, exact, line, noise_of, sketched
from scipy.cluster.hierarchy import linkage

from fedtree_secure.agreed.cut_costs import GradientEvidence, Nodes, checked_children
from fedtree_secure.agreed.cut_plans import Rule
from fedtree_secure.agreed.cuts import noise_aware_cuts, one_honest_member
from fedtree_secure.errors import ConfigurationError

# --- costs by hand. Clients at 0, 2, 10, 12: W is 104 for all and 2 for each pair.


@pytest.mark.parametrize(
    ("energy", "labels", "cost"),
    [(3, (0, 0, 1, 1), 10), (200, (0, 0, 0, 0), 304), (1, (0, 1, 2, 3), 4)],
    ids=["two pairs", "one group", "at home"],
)
def test_the_cheapest_of_sharing_splitting_and_staying_home(energy, labels, cost):
    squared, merges = line(0, 2, 10, 12)
    found = noise_aware_cuts(merges, exact(squared, energy), 2)
    assert found.labels == (labels,)
    (layer,) = found.layers
    assert layer.cost == pytest.approx(cost)
    assert layer.one_group == pytest.approx(104 + energy)
    assert layer.finest == pytest.approx(4 + 2 * energy)
    assert layer.alone == pytest.approx(4 * energy)


def test_a_cluster_has_the_mean_noise_of_its_members():
    squared, merges = line(0, 2, 10, 12)
    (layer,) = noise_aware_cuts(merges, exact(squared, [1, 3, 5, 7]), 2).layers
    assert (layer.groups, layer.cost) == ((2, 2), pytest.approx(4 + 2 + 6))
    assert layer.one_group == pytest.approx(104 + 4)
    assert layer.alone == pytest.approx(16)


def test_noise_shared_in_the_masks_falls_with_the_honest_members():
    squared, merges = line(0, 2, 10, 12)
    own, shared = (
        noise_aware_cuts(merges, exact(squared, 60), 2, honest).layers[0]
        for honest in (one_honest_member, lambda size: size - 1)
    )
    assert own.one_group - shared.one_group == pytest.approx(60 - 20)
    assert own.finest - shared.finest == pytest.approx(0)
    assert own.alone == shared.alone


def test_the_refused_split_is_reported():
    squared, merges = line(0, 2, 10, 12)
    (layer,) = noise_aware_cuts(merges, exact(squared, 200), 2).layers
    assert (layer.saves, layer.costs) == (pytest.approx(100), pytest.approx(200, rel=1e-5))
    assert layer.describe(0) == "layer 0 is shared by 4: a split would cost 1.00 and save 0.50"


def test_a_layer_that_is_split_says_what_that_is_worth():
    squared, merges = line(0, 2, 10, 12)
    for energy, sentence in (
        (4, "layer 3 is shared by 2, 2: that costs 24.00 less than one group"),
        (1, "layer 3 is not shared, kept at home by 4: that costs 101.00 less than one group"),
    ):
        (layer,) = noise_aware_cuts(merges, exact(squared, energy), 2).layers
        assert layer.describe(3) == sentence


def test_members_of_a_cluster_too_small_keep_the_layer_at_home():
    squared, merges = line(0, 1, 2, 50, 51)
    found = noise_aware_cuts(merges, exact(squared, 5), 3)
    assert found.labels == ((0, 0, 0, 1, 2),)
    (layer,) = found.layers
    assert (layer.groups, layer.at_home) == ((3,), 2)
    assert layer.cost == pytest.approx(2 + 5 + 2 * 5)
    assert layer.finest == layer.one_group  # every split would leave somebody alone


def test_too_few_clients_for_a_group_stay_home():
    squared, merges = line(0, 2)
    assert noise_aware_cuts(merges, exact(squared, 1e6), 3).labels == ((0, 1),)


def test_known_noise_is_taken_out_of_the_distances():
    squared, merges = line(0, 2, 10, 12)
    noise = np.array([1.0, 20.0, 300.0, 4000.0])
    added = noise[:, None] + noise[None, :]
    np.fill_diagonal(added, 0)
    plan = np.full((1, 4), 3.0)
    seen = GradientEvidence(squared + added, noise, plan, EXACT, EXACT)
    by_layer = GradientEvidence(squared + added, noise[None], plan, EXACT, EXACT)
    for evidence in (seen, by_layer):
        found = noise_aware_cuts(merges, evidence, 2)
        assert found.labels == ((0, 0, 1, 1),)
        assert found.layers[0].cost == pytest.approx(10)


# --- how well a saving is known


@pytest.mark.parametrize("energy", [np.ones(9), np.geomspace(0.2, 5, 9)], ids=["equal", "unequal"])
@pytest.mark.parametrize("signal", [0.0, 4.0])
def test_the_error_of_a_saving_is_what_its_formula_says(energy, signal):
    """3,000 draws give a variance a relative standard error of .026: a tenth is four of them."""
    rng = np.random.default_rng(5)
    centres = np.sqrt(signal) * rng.normal(size=(3, DIMENSION)) / np.sqrt(DIMENSION)
    children = checked_children(linkage(THREE[:, None] + np.arange(9)[:, None] / 99, "ward"), 9)
    plan = np.ones((3000, 9))
    squared = [sketched(rng, centres[THREE] + noise_of(rng, energy)) for _ in range(3000)]
    nodes = Nodes.weigh(
        children,
        GradientEvidence(np.array(squared), energy, plan, DIMENSION, SKETCH),
        one_honest_member,
        3,
    )
    left, right = nodes.children.T
    saves = (nodes.within[:, 9:] - nodes.within[:, left] - nodes.within[:, right])[:, -2:]
    said = nodes.variance[:, -2:].mean(axis=0)
    assert saves.var(axis=0) == pytest.approx(said, rel=0.12)
    if signal == 0:
        assert saves.var(axis=0) == pytest.approx(nodes.null[0, -2:], rel=0.12)
        assert (np.abs(saves.mean(axis=0)) < 4 * saves.std(axis=0) / np.sqrt(3000)).all()
    else:
        assert (nodes.null[0, -2:] < 0.8 * said).all()


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"squared": np.zeros((4, 4))}, r"shape \(4, 4\); allowed is \(layers, clients, clients\)"),
        ({"squared": np.zeros((0, 4, 4))}, "squared distances of shape"),
        ({"squared": np.full((1, 4, 4), np.nan)}, "finite and symmetric"),
        ({"squared": np.triu(np.ones((1, 4, 4)))}, "finite and symmetric"),
        ({"noise": np.zeros(3)}, r"noise of shape \(3,\); allowed is \(4,\) or \(1, 4\)"),
        ({"noise": np.full(4, -1.0)}, "noise must be finite energies"),
        ({"plan_noise": np.zeros(4)}, r"plan noise of shape \(4,\); allowed is \(1, 4\)"),
        ({"plan_noise": np.full((1, 4), np.inf)}, "plan noise must be finite energies"),
        ({"dimension": 0}, "dimension 0; at least 1"),
        ({"sketch_size": 0}, "sketch size 0; at least 1"),
    ],
)
def test_evidence_that_cannot_be_is_refused(changes, said):
    fine = {
        "squared": np.zeros((1, 4, 4)),
        "noise": np.zeros(4),
        "plan_noise": np.zeros((1, 4)),
        "dimension": 5,
        "sketch_size": 5,
    }
    GradientEvidence(**fine)
    with pytest.raises(ConfigurationError, match=said):
        GradientEvidence(**fine | changes)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([[0, 1], [2, 3]], "a merge tree of shape"),
        ([[0, 1], [2, 3], [4, 4]], "every earlier merge once"),
        ([[0, 6], [2, 3], [4, 1]], "every earlier merge once"),
        ([[0, 1], [2, 3], [4, np.nan]], "every earlier merge once"),
        ([[0, 1], [2, 3], [4, 5.5]], "every earlier merge once"),
    ],
)
def test_what_is_no_merge_tree_of_these_clients_is_refused(pairs, said):
    squared, _ = line(0, 2, 10, 12)
    merges = np.concatenate([np.array(pairs, float), np.ones((len(pairs), 2))], axis=1)
    with pytest.raises(ConfigurationError, match=said):
        noise_aware_cuts(merges, exact(squared, 1), 2)


def test_groups_of_one_and_rules_that_are_none_are_refused():
    squared, merges = line(0, 2, 10, 12)
    with pytest.raises(ConfigurationError, match="min_group 1; a group has at least 2 members"):
        noise_aware_cuts(merges, exact(squared, 1), 1)
    with pytest.raises(ConfigurationError, match="honest members"):
        noise_aware_cuts(merges, exact(squared, 1), 2, lambda size: 0)
    for caution, false_splits, said in ((-1, 0.1, "caution -1"), (1, 0, "false_splits 0")):
        with pytest.raises(ConfigurationError, match=said):
            Rule(caution, false_splits)
