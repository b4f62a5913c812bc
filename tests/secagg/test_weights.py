"""Weighted means come out right, and no message shows a weight."""

import numpy as np
import pytest
from harness import CONTEXT, World, names

from fedtree_secagg import ConfigurationError, Node, NodeSum, Plan, ProtocolError, Quantiser
from fedtree_secagg.weights import Weighting

NODES = (Node("all", names(5), ((0, 6), (9, 12))), Node("some", names(3), ((6, 9),)))
GRID = Quantiser(clip=2.0, bits=26)
WEIGHTING = Weighting(12, NODES, clip=2.0, max_weight=1000)
FIELDS = {"threshold": Plan.full_threshold(5), "quantiser": GRID, "context": CONTEXT}


def world(weights):
    w = World.of(WEIGHTING.plan(**FIELDS))
    plain = {name: update[:12] for name, update in w.updates.items()}
    w.updates = {name: WEIGHTING.extend(plain[name], weights[name]) for name in plain}
    return w, plain


def test_weighted_means_of_every_node():
    weights = dict(zip(names(5), (1.0, 1000.0, 37.5, 600.0, 2.0), strict=True))
    w, plain = world(weights)
    opened = w.run({"masked": ["c03"]}).opened
    for node in NODES:
        alive = [m for m in node.members if m != "c03"]
        expected = np.average(
            [node.gather(plain[m]) for m in alive], axis=0, weights=[weights[m] for m in alive]
        )
        np.testing.assert_allclose(WEIGHTING.mean(opened[node.name]), expected, atol=20 * GRID.step)
        assert WEIGHTING.total(opened[node.name]) == pytest.approx(
            sum(weights[m] for m in alive), abs=1e-3
        )


def test_metadata_lengths_do_not_depend_on_weights():
    first, _ = world(dict.fromkeys(names(5), 1.0))
    second, _ = world(dict.fromkeys(names(5), 1000.0))
    sizes = [
        {s: {n: len(d) for n, d in batch.items()} for s, batch in w.run().sent.items()}
        for w in (first, second)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("weight", [0, -1, 1000.1, np.nan, np.inf])
def test_weights_out_of_range_are_refused(weight):
    with pytest.raises(ConfigurationError, match="a weight must be in"):
        WEIGHTING.extend(np.zeros(12), weight)


def test_other_misuse_is_refused():
    with pytest.raises(ConfigurationError, match="shape"):
        WEIGHTING.extend(np.zeros(11), 1)
    with pytest.raises(ConfigurationError, match="clip is 2"):
        WEIGHTING.plan(**{**FIELDS, "quantiser": Quantiser(1.0, 20)})
    for bad in (0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigurationError, match="max_weight"):
            Weighting(12, NODES, 2.0, bad)
    empty = NodeSum(NODES[1], names(3), np.zeros(4, np.int64), GRID)
    with pytest.raises(ProtocolError, match="sum to nothing"):
        WEIGHTING.mean(empty)
