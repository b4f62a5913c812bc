"""The tree: cuts, their null distribution, small groups, and the nodes made of it."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from fedtree_secure.agreed.tree import (
    Evidence,
    Tree,
    build_tree,
    null_silhouette,
    silhouette,
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
    return Evidence(squared, np.ones(len(groups)), dimension, 256)


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


def test_trivial_trees():
    assert trivial_tree("abc", 2, "single", 3).nodes(((0, 1), (1, 2))) == {
        ("a", "b", "c"): ((0, 2),)
    }
    assert trivial_tree("abc", 2, "alone", 3).nodes(((0, 1), (1, 2))) == {}
