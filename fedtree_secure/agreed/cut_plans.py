"""From which layer on each node of a merge tree is split: the best of all nested cuts.

Dynamic programming over the tree, children first; `cuts` says what is weighed and why.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from fedtree_secure.agreed.cut_costs import Flags, Floats, Nodes, Numbers, Splits
from fedtree_secure.errors import ConfigurationError

SUBTREES = 4.158883  # 2 log 8: what each further split adds to the square of the quantile


@dataclass(frozen=True)
class Rule:
    """How sure a split must be. Public: all parties of a run use the same.

    Attributes:
        caution: Standard errors that a split must save beyond the noise it adds.
        false_splits: Chance at which clients without groups may be split; 1 asks nothing of it.
    """

    caution: float = 1.0
    false_splits: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what is no rule."""
        if not 0 <= self.caution < np.inf:
            raise ConfigurationError(f"caution {self.caution}; allowed are numbers of at least 0")
        if not 0 < self.false_splits <= 1:
            raise ConfigurationError(
                f"false_splits {self.false_splits}; allowed is a chance above 0, up to 1"
            )

    def quantile(self, layers: int, further: Numbers | int = 0) -> Floats:
        """How many standard deviations of chance a split and some further ones must save."""
        if self.false_splits == 1:
            return np.zeros_like(further, dtype=np.float64)
        # Rounded: the logarithm behind it may differ in its last bit between machines.
        first = round(NormalDist().inv_cdf(1 - self.false_splits / layers), 6)
        found: Floats = np.sqrt(first**2 + SUBTREES * np.asarray(further))
        return found


USUAL = Rule()


def _tail(values: Floats) -> Floats:
    """(layers, ...) sums over this and all deeper layers, added up from the deepest."""
    summed: Floats = np.cumsum(values[::-1], axis=0)[::-1]
    return summed


@dataclass(frozen=True)
class Plans:
    """What becomes of a node's members in this and all deeper layers, for each node and each layer
    from which it stands by itself; arrays are (nodes, layers). Filled from the clients up.

    Attributes:
        cost: Estimated cost, margins included.
        saves, null: Saving and V0 of all splits that are made, summed.
        made: Number of these splits.
        end: Layer from which the node is no cluster any more; `layers` if it stays one.
        home: Whether its members go home then, each by itself.
    """

    cost: Floats
    saves: Floats
    null: Floats
    made: Numbers
    end: Numbers
    home: Flags

    @classmethod
    def everyone_at_home(cls, home: Floats) -> "Plans":
        """Start with clients, and nodes too small to share, at home from the first layer on."""
        none = np.zeros(home.shape, np.int64)
        zero = np.zeros_like(home)
        return cls(home.copy(), zero, zero.copy(), none, none.copy(), np.ones(home.shape, np.bool_))

    def of_both(self, left: int, right: int) -> "_Way":
        """What two nodes do from each layer on, added up."""
        return _Way(*(field[left] + field[right] for field in self._sums()))

    def take(self, at: int, layer: int, cost: float, way: "_Way | None", end: int) -> None:
        """Note the plan of a node from a layer on: no end, or a way from the layer `end` on."""
        self.cost[at, layer] = cost
        self.end[at, layer] = end
        self.home[at, layer] = way is not None and way.home
        if way is not None:
            self.saves[at, layer], self.null[at, layer] = way.saves[end], way.null[end]
            self.made[at, layer] = way.made[end]

    def _sums(self) -> tuple[Floats, Floats, Floats, Numbers]:
        return self.cost, self.saves, self.null, self.made


@dataclass(frozen=True)
class _Way:
    """One way to end a cluster, by the layer from which it ends; arrays are (layers,), as in
    `Plans`.
    """

    cost: Floats
    saves: Floats
    null: Floats
    made: Numbers
    home: bool = False

    def after(self, splits: Splits, merge: int, rule: Rule) -> "_Way":
        """Make a split before this: infinitely dear where what is saved may be chance."""
        saves = self.saves + _tail(splits.saves[:, merge])
        null = self.null + _tail(splits.null[:, merge])
        margin = rule.caution * np.sqrt(_tail(splits.variance[:, merge]))
        quantile = rule.quantile(len(saves), self.made)
        cost = np.where(saves > quantile * np.sqrt(null), self.cost + margin, np.inf)
        return _Way(cost, saves, null, self.made + 1, self.home)


def plan(nodes: Nodes, min_group: int, rule: Rule) -> Plans:
    """Decide for all nodes, children first, until when they stay a cluster."""
    stays = np.cumsum(nodes.within + nodes.noise, axis=0).T
    plans = Plans.everyone_at_home(_tail(nodes.home).T)
    none = np.zeros(len(nodes.within))
    into_two, home = Splits.into_two(nodes, min_group), Splits.home(nodes)
    for merge, (left, right) in enumerate(nodes.children):
        at = nodes.clients + merge
        if nodes.size[at] < min_group:
            continue
        ways = (
            plans.of_both(left, right).after(into_two, merge, rule),
            _Way(plans.cost[at], none, none, none.astype(np.int64), True).after(home, merge, rule),
        )
        _decide(plans, at, stays[at], ways)
    return plans


def _decide(plans: Plans, at: int, stays: Floats, ways: tuple[_Way, ...]) -> None:
    """Choose the end of a node for each layer it may begin in: the least cost of its layers until
    then and of what follows. Ties go to the later end, and to a split before going home.
    """
    depth = len(stays)
    before = np.concatenate([[0.0], stays])
    least, chosen, end = before[depth], None, depth
    for layer in range(depth - 1, -1, -1):
        for way in ways:
            cost = before[layer] + way.cost[layer]
            if cost < least:
                least, chosen, end = cost, way, layer
        plans.take(at, layer, least - before[layer], chosen, end)
