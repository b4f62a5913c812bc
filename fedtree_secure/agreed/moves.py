"""How the values of a node move from round to round: a public function of the opened sums.

The server opens a node's sum; from it the server and every member compute the node's next values,
each for itself. So no server can hand a member other values, last ones included. The arithmetic is
numpy's in float64, one IEEE operation at a time, so all machines get the same bits.

A member cannot see whether an opened sum is the true one. What it can see it checks: the sum is
within what its survivors can reach, all members got the same (the digests are part of the next
round's plan, or nothing opens), and Adam moves a value by at most `REACH` learning rates a step.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedtree_secagg import Node, Quantiser
from fedtree_secure.agreed.messages import NodeDigest, OpenedSum, WireError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Wide = np.ndarray[Any, np.dtype[np.float64]]

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's constants (Kingma and Ba 2015)
REACH = 3.2  # bound on a step of Adam in learning rates: (1 - b1) / sqrt(1 - b2), section 2.1
_SLACK = 1e-5  # of a comparison in float32


@dataclass
class NodeValues:
    """Values of one node and Adam's moments, each of the node's width.

    Attributes:
        values: float32, what members load.
        first, second: Adam's moments.
        steps: Steps of Adam so far.
    """

    values: Floats
    first: Wide = field(default_factory=lambda: np.zeros(0))
    second: Wide = field(default_factory=lambda: np.zeros(0))
    steps: int = 0

    def __post_init__(self) -> None:
        if not len(self.first):
            self.first, self.second = np.zeros(len(self.values)), np.zeros(len(self.values))

    def follow_gradient(self, mean: Wide, learning_rate: float) -> None:
        """Take one step of Adam against ``-mean``, the mean of the uploaded descent directions."""
        self.steps += 1
        gradient = -mean
        self.first = FIRST * self.first + (1.0 - FIRST) * gradient
        self.second = SECOND * self.second + (1.0 - SECOND) * (gradient * gradient)
        scale = learning_rate / (1.0 - _power(FIRST, self.steps))
        root = np.sqrt(self.second / (1.0 - _power(SECOND, self.steps)))
        moved = self.values.astype(np.float64) - scale * self.first / (root + TINY)
        self.values = moved.astype(np.float32)

    def add(self, mean: Wide) -> None:
        """Add the mean of the uploaded changes (FedAvg)."""
        self.values = (self.values.astype(np.float64) + mean).astype(np.float32)


def _power(base: float, exponent: int) -> float:
    """Return a power by multiplications alone: the library function differs between machines."""
    result = 1.0
    for _ in range(exponent):
        result *= base
    return result


def start(node: Node, initial: Floats) -> NodeValues:
    """Return a node's values before the first round."""
    return NodeValues(np.concatenate([initial[a:b] for a, b in node.ranges]).astype(np.float32))


def mean_of(opened: OpenedSum, node: Node, quantiser: Quantiser, least: int) -> Wide:
    """Return the mean change that an opened sum says.

    Args:
        opened: The sum, as sent.
        node: Whose sum it is.
        quantiser: The grid of its round.
        least: Fewest survivors with which a node opens.

    Raises:
        WireError: Another length, an impossible number of survivors, or beyond what they can reach.
    """
    if len(opened.total) != 4 * node.width:
        raise WireError(f"a sum of {len(opened.total)} bytes for {node.width} values")
    if not least <= opened.survivors <= len(node.members):
        raise WireError(f"a sum over {opened.survivors} of {len(node.members)} clients")
    total = np.frombuffer(opened.total, dtype="<i4").astype(np.int64)
    if int(np.abs(total).max(initial=0)) > opened.survivors * quantiser.max_integer:
        raise WireError("a sum beyond what its survivors can reach")
    return quantiser.decode(total) / opened.survivors


def within_reach(given: Floats, initial: Floats, bound: float | Wide) -> bool:
    """Say whether every value is finite and at most ``bound`` from where it began.

    Args:
        bound: For all values, or one for each.
    """
    distance = np.abs(given.astype(np.float64) - initial.astype(np.float64))
    allowed = bound * (1.0 + _SLACK) + _SLACK * np.abs(initial.astype(np.float64))
    return bool((distance <= allowed).all())


def node_digest(node: Node, held: NodeValues, external: Floats) -> NodeDigest:
    """Return the digest of what all members of a node must hold alike.

    Args:
        held: The node's values and moments.
        external: (layout length,) the external expert; only the node's coordinates are read.
    """
    outside = np.ascontiguousarray(node.gather(external), dtype="<f4")
    own = hashlib.sha256(b"fedtree-secure/node/v1\n" + held.steps.to_bytes(8, "big"))
    own.update(np.ascontiguousarray(held.values, dtype="<f4").tobytes())
    for moment in (held.first, held.second):
        own.update(np.ascontiguousarray(moment, dtype="<f8").tobytes())
    return NodeDigest(
        node.name,
        own.digest(),
        hashlib.sha256(b"fedtree-secure/external/v1\n" + outside.tobytes()).digest(),
    )
