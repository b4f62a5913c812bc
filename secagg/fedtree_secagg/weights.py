"""Weighted means with hidden weights: the weight travels inside the masked vector.

Each node gets one more coordinate. A client sends w/w_max * x in place of x, and w/w_max * clip in
the extra one; the quotient of the two sums is the weighted mean, and the server sees the sum of a
node's weights but no client's. Lengths stay the same for all weights. w_max is public and the same
for everyone: bind it in `Plan.context`.

Rounding: with N members and grid step s, numerator and denominator are off by at most N * s and N *
s / clip; clients whose w is far below w_max lose precision, so choose w_max near the largest real
weight.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.node import Node
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import ConfigurationError, ProtocolError
from fedtree_secagg.server import NodeSum


@dataclass(frozen=True)
class Weighting:
    """How a weighted vector is laid out: the plain vector, then one weight coordinate per node.

    Args:
        length: values of the plain vector.
        nodes: the nodes over the plain vector.
        clip: the plan's clip, which the plain values must keep.
        max_weight: largest weight any client may have, public.
    """

    length: int
    nodes: tuple[Node, ...]
    clip: float
    max_weight: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_weight) and self.max_weight > 0):
            raise ConfigurationError(
                f"weights: max_weight is {self.max_weight}; give a finite positive number"
            )

    def plan(self, **fields: Any) -> Plan:
        """Return the plan over the longer vector; fields are `Plan`'s but length and nodes."""
        nodes = tuple(
            replace(node, ranges=(*node.ranges, (self.length + i, self.length + i + 1)))
            for i, node in enumerate(self.nodes)
        )
        plan = Plan(length=self.length + len(nodes), nodes=nodes, **fields)
        if plan.quantiser.clip != self.clip:
            raise ConfigurationError(
                f"weights: clip is {self.clip}, the plan's quantiser has {plan.quantiser.clip}"
            )
        return plan

    def extend(self, vector: npt.NDArray[Any], weight: float) -> npt.NDArray[np.float64]:
        """Return what the client passes to `client.mask`: shape (length + nodes,).

        Raises:
            ConfigurationError: the weight is not in (0, max_weight], or the vector has another
                length.
        """
        if not 0 < weight <= self.max_weight:
            raise ConfigurationError(f"weights: a weight must be in (0, {self.max_weight}]")
        if vector.shape != (self.length,):
            raise ConfigurationError(
                f"weights: the vector has shape {vector.shape}, not ({self.length},)"
            )
        out = np.full(self.length + len(self.nodes), weight / self.max_weight * self.clip)
        np.multiply(vector, weight / self.max_weight, out=out[: self.length])
        return out

    def mean(self, node_sum: NodeSum) -> npt.NDArray[np.float64]:
        """Return the weighted mean over the node's plain coordinates.

        Raises:
            ProtocolError: the weights do not sum to a positive number.
        """
        values = node_sum.values()
        if not values[-1] > 0:
            raise ProtocolError(f"node {node_sum.node.name!r}: its weights sum to nothing")
        mean: npt.NDArray[np.float64] = values[:-1] * (self.clip / values[-1])
        return mean

    def total(self, node_sum: NodeSum) -> float:
        """Return the sum of the weights of the node's members."""
        return float(node_sum.values()[-1]) * self.max_weight / self.clip
