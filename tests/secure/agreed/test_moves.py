"""Attack `other-experts` (docs/threats.md): what members compare, and which sums they believe."""

import numpy as np
import pytest

from fedtree_secagg import Node, Quantiser
from fedtree_secure.agreed.messages import OpenedSum, WireError
from fedtree_secure.agreed.moves import NodeValues, mean_of, node_digest, within_reach

NODE = Node("node", ("a", "b", "c", "d"), ((0, 2), (4, 6)))
GRID = Quantiser(clip=1.0, bits=8, saturate=True)
EXTERNAL = np.arange(6, dtype=np.float32)


def held(**changes):
    four = np.linspace(0.1, 0.4, 4)
    fields = {"values": four.astype(np.float32), "first": four, "second": four**2, "steps": 3}
    return NodeValues(**{**fields, **changes})


def changed_at(values, place):
    other = values.copy()
    other[place] = np.nextafter(other[place], np.inf)
    return other


@pytest.mark.parametrize("field", ["values", "first", "second"])
def test_hostile_other_experts_have_other_digests(field):
    """Without the moments a server could give one member others, which tell a round later."""
    same = node_digest(NODE, held(), EXTERNAL)
    assert node_digest(NODE, held(), EXTERNAL.copy()) == same
    for place in range(4):
        lie = held(**{field: changed_at(getattr(held(), field), place)})
        assert node_digest(NODE, lie, EXTERNAL).values != same.values
    assert node_digest(NODE, held(steps=4), EXTERNAL).values != same.values
    for place, own in enumerate((True, True, False, False, True, True)):
        external = node_digest(NODE, held(), changed_at(EXTERNAL, place)).external
        assert (external != same.external) == own


def opened(total, survivors=4):
    return OpenedSum(1, "node", survivors, 1.0, np.asarray(total, dtype="<i4").tobytes())


def test_hostile_other_experts_from_impossible_sums():
    most = GRID.max_integer
    for survivors in (3, 4):
        edge = [survivors * most, -survivors * most, 0, 1]
        assert mean_of(opened(edge, survivors), NODE, GRID, 3).max() == pytest.approx(1.0)
    for lie in (
        opened([0, 0, 0]),
        opened([0, 0, 0, 0, 0]),
        opened([0, 0, 0, 0], survivors=2),
        opened([0, 0, 0, 0], survivors=5),
        opened([3 * most + 1, 0, 0, 0], survivors=3),
        opened([0, 0, 0, -4 * most - 1]),
        opened([-(2**31), 0, 0, 0]),
    ):
        with pytest.raises(WireError):
            mean_of(lie, NODE, GRID, 3)


@pytest.mark.parametrize(
    ("value", "inside"),
    [(0.5, True), (-0.5, True), (0.51, False), (-0.51, False)]
    + [(bad, False) for bad in (np.nan, np.inf, -np.inf)],
)
def test_within_reach_is_every_value_and_no_other(value, inside):
    initial = np.zeros(6, dtype=np.float32)
    for place in range(6):
        given = initial.copy()
        given[place] = value
        assert within_reach(given, initial, 0.5) == inside


def test_adam_never_moves_a_value_further_than_its_reach():
    """Kingma and Ba 2015, section 2.1; gradients that stay away and then come are its worst."""
    from fedtree_secure.agreed.moves import REACH

    rng = np.random.default_rng(0)
    for quiet in (0, 1, 10, 300):
        node = NodeValues(np.zeros(8, dtype=np.float32))
        for step in range(quiet + 20):
            before = node.values.astype(np.float64)
            node.follow_gradient(rng.normal(size=8) * (step >= quiet), 1.0)
            assert np.abs(node.values - before).max() <= REACH
