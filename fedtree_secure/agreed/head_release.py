"""How the heads of groups are made: an average of trained heads, or sums by class, released once.

The choice is a function of the job alone, so all parties make it for themselves and alike; what
was chosen is part of `Terms.digest`. It is made before anything is computed, and no row has a say.

``auto`` is the average: class sums were behind it at epsilon 3, and level with it on average at 1
and below, ahead on one task and behind on another (docs/accuracy.md).
"""

import math
from dataclasses import dataclass
from typing import Literal

from fedtree_dp import Gaussian, PoissonGaussian
from fedtree_secure.config import Job

Way = Literal["average", "class_sums", "none"]

BEHIND_ABOVE = 1.0  # epsilon of the head up to which class sums were level, with 800 records


@dataclass(frozen=True)
class HeadRelease:
    """How a job makes the heads of groups.

    Attributes:
        way: See `Training.head_release`; ``none`` where no head is shared or paid for.
        why: The reason, for people; a clause without a full stop.
    """

    way: Way
    why: str


def head_release(job: Job) -> HeadRelease:
    """Return how a job makes the heads of groups, and why."""
    if job.head != "group" or not job.head_steps:
        return HeadRelease("none", "no head is shared before the rounds")
    asked = job.training.head_release
    if asked != "auto":
        return HeadRelease(asked, "the job says so (training.head_release)")
    epsilon, records = epsilon_of_head(job), job.training.records
    known = f"epsilon of the head is about {epsilon:.2g} and {records} records are declared"
    found = "behind" if epsilon > BEHIND_ABOVE else "level with it on average"
    return HeadRelease("average", f"{known}; class sums were {found} (docs/accuracy.md)")


def sums_classes(job: Job) -> bool:
    """Whether the heads of a job come from class sums."""
    return head_release(job).way == "class_sums"


def epsilon_of_head(job: Job) -> float:
    """Return about what the head may spend of the job's epsilon.

    Steps share a budget by the squares of their signal-to-noise ratios, sampled ones by that of
    their rate, too; epsilon grows about with the root. Plain arithmetic, so that all machines get
    the same bits. The noise itself is calibrated elsewhere.
    """
    training = job.training
    head = job.head_steps * (training.head_sample_rate / training.head_noise_ratio) ** 2
    steps = job.rounds * training.local_steps
    rounds = steps * training.sample_rate * training.sample_rate
    return job.privacy.epsilon * math.sqrt(head / (head + rounds))


def head_stage(job: Job) -> PoissonGaussian | Gaussian:
    """Return what the head costs, its noise multiplier relative to that of the rounds.

    Class sums take the place of all steps: one release with as much signal to noise as they have
    together on full batches, so the rounds keep the noise that they would have.
    """
    training = job.training
    if not sums_classes(job):
        return PoissonGaussian(training.head_noise_ratio, training.head_sample_rate, job.head_steps)
    together = training.head_sample_rate * math.sqrt(job.head_steps)
    return Gaussian(training.head_noise_ratio / together)


def answers_of_head(job: Job) -> int:
    """Private steps that a client takes for its head: what progress counts."""
    return 1 if sums_classes(job) else job.head_steps
