"""A group's head from sums by class: what members upload, and the head that follows from its mean.

The head is a public function of the opened sum, so the server and every member compute it, each
for itself. One IEEE operation at a time, and totals that are rounded once: all machines get the
same bits. The release itself is `fedtree_dp.randomness.class_sums`; its form in the layout is that
of the head: features by class, then numbers of records.

The head is that of the nearest class mean, of features of norm 1. How much noise is in the sums is
public, so each mean is drawn to zero as far as noise made it: the posterior mean under a Gaussian
prior of the length that means of such features have.
"""

import math
from typing import Any

import numpy as np

from fedtree_secagg import Node
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.agreed.noise_plan import sums_noise
from fedtree_secure.config import Job
from fedtree_secure.model.facts import ModelFacts

Floats = np.ndarray[Any, np.dtype[np.float32]]
Wide = np.ndarray[Any, np.dtype[np.float64]]

COUNT_SHARE = 0.25  # of a record's norm: a sixteenth of its square tells that it is there
SHARPNESS = 12.0  # of the logits: distances of means are far below 1
MEAN_SQUARE = 0.3  # of a class mean of unit vectors, beforehand
LENGTH = 3.5  # of a client's centred features; of public text it is `FEATURE_NORM`
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
    job: Job,
    facts: ModelFacts,
    node: Node,
    values: NodeValues,
    mean: Wide,
    *,
    survivors: int,
    merge: bool,
) -> None:
    """Move a node by the mean that its opened sum says: see `NodeValues`, or make its head.

    Args:
        survivors: Whose mean it is.
        merge: Whether it is of the round that merges.
    """
    if merge and sums_classes(job) and node.ranges[0] in facts.layout.heads:
        deviation = sums_noise(job) / (job.training.records * math.sqrt(survivors))
        values.values = head_of(mean, classes_in(node.width, facts), deviation)
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


def head_of(mean: Wide, classes: int, deviation: float) -> Floats:
    """Return the head that follows from sums by class.

    Args:
        mean: (classes * (in_features + 1),) as `upload_of` makes it, or a mean of several.
        classes: Of the head.
        deviation: Standard deviation of the noise in each of these values.

    Returns:
        The same shape: weights, then biases, as a head stands in the layout.
    """
    share = math.sqrt(1.0 - COUNT_SHARE * COUNT_SHARE)
    sums, raw = mean[:-classes].reshape(classes, -1) / share, mean[-classes:] / COUNT_SHARE
    counts = _likely(raw, deviation / COUNT_SHARE)
    noise, prior = (deviation / share) ** 2, MEAN_SQUARE / sums.shape[1]
    weights, biases = np.zeros_like(sums), np.full(classes, ABSENT)
    least = LEAST_SHARE * math.fsum(raw) / classes
    for number, count in enumerate(counts):
        if raw[number] > least and count > 0.0:
            found = sums[number] / (count + noise / (count * prior))
            square = math.fsum(found * found)
            weights[number] = found / max(math.sqrt(square), 1.0)
            biases[number] = -SHARPNESS * min(square, 1.0) / 2.0
    weights *= SHARPNESS / LENGTH
    finite = np.nan_to_num(np.concatenate([weights.reshape(-1), biases]), posinf=0.0, neginf=0.0)
    head: Floats = np.clip(finite, -LARGEST_VALUE, LARGEST_VALUE).astype(np.float32)
    return head


def _likely(raw: Wide, deviation: float) -> Wide:
    """Return numbers of records with the noise among them taken off: drawn to their mean by as much
    of their variance as is noise (James and Stein 1961).
    """
    middle = math.fsum(raw) / len(raw)
    spread = math.fsum((raw - middle) ** 2) / max(len(raw) - 1, 1)
    kept = max(1.0 - deviation * deviation / spread, 0.0) if spread > 0.0 else 0.0
    return middle + kept * (raw - middle)
