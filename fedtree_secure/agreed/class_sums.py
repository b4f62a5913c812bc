"""A group's head from sums by class: what members upload, and the head that follows from its mean.

The head is a public function of the opened sum, so the server and every member compute it, each
for itself. One IEEE operation at a time, and totals that are rounded once: all machines get the
same bits. The release itself is `fedtree_dp.randomness.class_sums`; its form in the layout is that
of the head: features by class, then numbers of records.

The head is that of the nearest class mean: of features of norm 1, with the means' own lengths cut
to 1, which no mean of such features exceeds.
"""

import math
from typing import Any

import numpy as np

from fedtree_secagg import Node
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.config import Job
from fedtree_secure.model.facts import FEATURE_NORM, ModelFacts

Floats = np.ndarray[Any, np.dtype[np.float32]]
Wide = np.ndarray[Any, np.dtype[np.float64]]

COUNT_SHARE = 0.25  # of a record's norm: a sixteenth of its square tells that it is there
SHARPNESS = 12.0  # of the logits: distances of means are far below 1
BIAS = 0.5  # of the means' squares that noise has not made
LEAST_SHARE = 0.1  # of an average class: a class with fewer records is taken for absent
ABSENT = -3.0 * SHARPNESS  # bias of an absent class, below what any other's logit is
LARGEST_VALUE = 4.0 * SHARPNESS  # bound on a head's value
LARGEST_SUM = 16.0  # bound on an uploaded value of as many records as are declared


def upload_of(joint: Wide, records: int) -> Wide:
    """Return a release as it stands in the layout, over a number that is the same for all.

    Args:
        joint: (classes, in_features + 1), see `fedtree_dp.class_sums`.
        records: Declared by the job, whatever the client's own number is: sums must add up.
    """
    return np.concatenate([joint[:, :-1].reshape(-1), joint[:, -1]]) / records


def take_sum(
    job: Job, facts: ModelFacts, node: Node, values: NodeValues, mean: Wide, *, merge: bool
) -> None:
    """Move a node by the mean that its opened sum says: see `NodeValues`, or make its head."""
    if merge and sums_classes(job) and node.ranges[0] in facts.layout.heads:
        values.values = head_of(mean, classes_in(node.width, facts))
    elif merge or job.training.local_steps > 1:
        values.add(mean)
    else:
        values.follow_gradient(mean, job.training.learning_rate)


def classes_in(width: int, facts: ModelFacts) -> int:
    """Return the classes of a head of so many values, a bias among those of each; 0 if it has
    another form.
    """
    classes, rest = divmod(width, facts.hidden_size + 1)
    return 0 if rest else classes


def head_of(mean: Wide, classes: int) -> Floats:
    """Return the head that follows from sums by class, over whatever number.

    Args:
        mean: (classes * (in_features + 1),) as `upload_of` makes it, or a mean of several.
        classes: Of the head.

    Returns:
        The same shape: weights, then biases, as a head stands in the layout.
    """
    sums = mean[:-classes].reshape(classes, -1) / math.sqrt(1.0 - COUNT_SHARE * COUNT_SHARE)
    counts = np.maximum(mean[-classes:] / COUNT_SHARE, 0.0)
    least = LEAST_SHARE * math.fsum(counts) / classes
    weights, biases = np.zeros_like(sums), np.full(classes, ABSENT)
    for number, count in enumerate(counts):
        if count > least:
            found = sums[number] / count
            length = math.sqrt(math.fsum(found * found))
            weights[number] = found / max(length, 1.0)
            square = min(length * length, 1.0)
            biases[number] = -SHARPNESS * BIAS * square / 2.0
    weights *= SHARPNESS / FEATURE_NORM
    flat = np.concatenate([weights.reshape(-1), biases])
    finite = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(finite, -LARGEST_VALUE, LARGEST_VALUE).astype(np.float32)
