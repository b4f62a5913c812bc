"""The tree: cuts, their null distribution, small groups, and the nodes made of it."""

import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import cut_tree, linkage
from sklearn.metrics import silhouette_score

from fedtree_secure.agreed.tree import (
    Tree,
    TreeInputs,
    _labels,
    _nested_silhouettes,
    _null_distances,
    build_tree,
    null_silhouette,
    silhouette,
    tree_of,
    trivial_tree,
)
from fedtree_secure.config import Topology as Settings

NAMES = tuple(f"c{i:02}" for i in range(12))
GROUPS = np.repeat(np.arange(4), 3)


def evidence(signal, layers=8, dimension=384, seed=0, groups=GROUPS):
    """Clients with unit noise; no groups in the first 2 layers, two in the next 2, four in the
    rest.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, dimension)) / np.sqrt(dimension)
    squared = np.zeros((layers, len(groups), len(groups)))
    for layer in range(layers):
        shown = {0: groups * 0, 1: groups // 2}.get(layer // 2, groups)
        x = rng.normal(size=(len(groups), dimension)) / np.sqrt(dimension) + signal * centres[shown]
        y = x @ rng.normal(size=(dimension, 256)) / 16
        squared[layer] = ((y[:, None] - y[None]) ** 2).sum(-1)
    return TreeInputs(squared, np.ones(len(groups)), dimension, 256)


def test_silhouette_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        d = rng.random((9, 9))
        d = d + d.T
        np.fill_diagonal(d, 0)
        labels = np.array([*rng.integers(0, 3, size=6), 0, 1, 2])
        assert silhouette(d, labels) == pytest.approx(
            silhouette_score(d, labels, metric="precomputed")
        )


@pytest.mark.parametrize("method", ["ward", "average", "complete"])
def test_cuts_agree_with_scipy(method):
    rng = np.random.default_rng(1)
    for count in (2, 3, 7, 40):
        merges = linkage(rng.random(count * (count - 1) // 2), method=method)
        for clusters in range(1, count + 1):
            assert (_labels(merges, clusters) == cut_tree(merges, [clusters])[:, 0]).all()


def test_the_threshold_needs_memory_for_one_draw_alone():
    """All 200 draws of 60 clients in 4 layers together are 23 MB."""
    e = TreeInputs(np.zeros((4, 60, 60)), np.ones(60), 380, 64)
    null_silhouette(2, e, Settings(), 3)  # imports
    tracemalloc.start()
    null_silhouette(2, e, Settings(), 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21


def test_a_threshold_does_not_depend_on_which_were_asked_for_before():
    first, second = (TreeInputs(np.zeros((2, 9, 9)), np.ones(9), 50, size) for size in (64, 64))
    rising = [null_silhouette(n, first, Settings(window=3), 3) for n in range(2, 9)]
    wide = [null_silhouette(n, second, Settings(window=5), 3) for n in range(8, 1, -1)]
    assert rising == wide[::-1]


def test_sparse_cohorts_silhouettes_of_nested_cuts_are_those_of_each():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(30, 4))
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    merges = linkage(points, method="ward")
    cuts = [_labels(merges, count) for count in range(2, 9)]
    found = _nested_silhouettes(distances, cuts, 3)
    assert found == pytest.approx([silhouette(distances, labels, 3) for labels in cuts])


@pytest.mark.parametrize("dimension", [400, 24])
def test_sparse_cohorts_chance_has_one_law_whichever_gram_matrix_is_drawn(dimension):
    """Mean and spread of distances of 40 clients without groups, in 30 rows."""
    scale, rng = np.ones(40), np.random.default_rng(5)
    off = ~np.eye(40, dtype=bool)
    few = np.stack([_null_distances(rng, scale, dimension, 30)[off] for _ in range(300)])
    # the same with the vectors themselves
    true = []
    for _ in range(300):
        vectors = rng.normal(size=(dimension, 40)) / np.sqrt(dimension)
        views = rng.normal(size=(30, dimension)) @ vectors / np.sqrt(30)
        true.append(((views[:, :, None] - views[:, None, :]) ** 2).sum(0)[off])
    for measure in (np.mean, np.std):
        assert measure(few) == pytest.approx(measure(np.stack(true)), rel=0.03)


def test_layers_are_cut_where_the_groups_begin():
    tree = build_tree(NAMES, evidence(1.5), Settings(), 3)
    assert tree.cuts == (1, 1, 2, 2, 4, 4, 4, 4)
    assert tree.released(7) == (NAMES[:3], NAMES[3:6], NAMES[6:9], NAMES[9:])


def test_noise_alone_is_not_split():
    """At significance .99 with few candidate cuts a layer, more than 8 of 40 trees have a chance
    below 1e-4.
    """
    split = sum(
        max(build_tree(NAMES, evidence(0.0, layers=3, seed=s), Settings(), 3).cuts) > 1
        for s in range(40)
    )
    assert split <= 8


def test_a_stricter_significance_never_lowers_the_threshold():
    e = evidence(0.0, layers=2)
    for clusters in (2, 3):
        loose, strict = (
            null_silhouette(clusters, e, Settings(significance=q), 3) for q in (0.9, 0.99)
        )
        assert strict > loose


def test_rows_are_nested_and_cuts_never_fall():
    for seed in range(10):
        tree = build_tree(NAMES, evidence(0.6, seed=seed), Settings(), 3)
        assert list(tree.cuts) == sorted(tree.cuts)
        for shallow, deep in zip(tree.labels, tree.labels[1:], strict=False):
            parents = {}
            assert all(parents.setdefault(d, s) == s for s, d in zip(shallow, deep, strict=True))


def test_the_window_limits_how_fast_the_tree_grows():
    tree = build_tree(NAMES, evidence(3.0), Settings(window=2), 3)
    assert all(b - a <= 1 for a, b in zip((1, *tree.cuts), tree.cuts, strict=False))
    assert build_tree(NAMES, evidence(3.0), Settings(window=1), 3).cuts == (1,) * 8


def test_a_pair_is_never_released():
    groups = np.array([0] * 5 + [1] * 5 + [2] * 2)
    tree = build_tree(NAMES, evidence(3.0, groups=groups), Settings(), 3)
    for part in range(8):
        assert all(len(group) >= 3 for group in tree.released(part))
    deep = tree.group_of("c11", 7)
    assert deep is None or len(deep) >= 3


def test_the_same_evidence_gives_the_same_tree():
    assert build_tree(NAMES, evidence(0.8), Settings(), 3) == build_tree(
        NAMES, evidence(0.8), Settings(), 3
    )


def test_nodes_cover_each_clients_coordinates_once():
    tree = Tree(
        ("a", "b", "c", "d", "e", "f", "g"),
        ((0,) * 7, (0, 0, 0, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1, 2)),
        3,
    )
    nodes = tree.nodes(((0, 10), (10, 20), (20, 30)))
    assert nodes == {
        ("a", "b", "c", "d", "e", "f", "g"): ((0, 10),),
        ("a", "b", "c"): ((10, 30),),
        ("d", "e", "f", "g"): ((10, 20),),
        ("d", "e", "f"): ((20, 30),),
    }
    assert tree.group_of("g", 2) is None
    assert tree.externals_of("g", 2) == (("a", "b", "c"), ("d", "e", "f"))
    assert tree.externals_of("a", 0) == ()


def test_clients_look_up_their_groups():
    tree = tree_of(tuple("abcdefg"), ((0, 0, 0, 1, 1, 1, 2), (0, 0, 0, 0, 0, 1, 1)), 3)
    assert tree is tree_of(tree.members, tree.labels, 3)
    for part in range(2):
        for name in tree.members:
            found = [group for group in tree.released(part) if name in group]
            assert tree.group_of(name, part) == (found[0] if found else None)
            assert set(tree.externals_of(name, part)) == set(tree.released(part)) - set(found)
    assert tree.group_of("g", 1) is None  # a pair


def test_trivial_trees():
    assert trivial_tree("abc", 2, "one_group", 3).nodes(((0, 1), (1, 2))) == {
        ("a", "b", "c"): ((0, 2),)
    }
    assert trivial_tree("abc", 2, "none", 3).nodes(((0, 1), (1, 2))) == {}
