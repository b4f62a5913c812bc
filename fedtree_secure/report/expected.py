"""Whether adapters are expected to add anything to the head: a rule on public numbers, before
anything is spent.

Adapters cost the head budget. Whether they pay it back depends on two things that are public: what
the head reads, and how much noise is in a step of theirs. The evidence is in docs/trees.md and
docs/utility.md; it is of one encoder and four tasks, so this is advice, and nothing is refused.
"""

import math

from fedtree_secure.agreed.noise_plan import NoisePlan, part_of
from fedtree_secure.config import Job
from fedtree_secure.report.advice import FEATURES, NOISE, Advice, drowned, too_noisy

POOLED = "mean"


def noise_to_clip(job: Job, plan: NoisePlan, records: int, values: int) -> float:
    """Norm of the noise in a client's averaged step over the clipping norm.

    Args:
        plan: Of the client.
        records: Its declared size.
        values: Trained values of its adapters.
    """
    own = part_of(job, plan.rounds) if job.noise == "shared" else plan.rounds
    return own * math.sqrt(values) / (job.training.sample_rate * records)


def of_features(job: Job, pooling: str) -> Advice | None:
    """Advise the head alone where it reads what its encoder was trained to give.

    Args:
        pooling: What the head reads (`Backbone.pooling`), empty if unknown.
    """
    if pooling != POOLED or not _has_choice(job):
        return None
    return Advice(
        FEATURES,
        "adapters are expected to add nothing here, and cost the head budget: the head reads "
        "mean-pooled states, of which a linear head finds nearly all (docs/trees.md); rounds = 0 "
        "gives it the whole budget",
    )


def of_noise(job: Job, ratio: float, clients: int) -> Advice | None:
    """Advise less noise, or the head alone, where adapters have not paid.

    Args:
        ratio: See `noise_to_clip`.
        clients: That may share a layer, all of the job's at most.
    """
    if not job.rounds or not drowned(ratio, clients):
        return None
    return Advice(NOISE, too_noisy(ratio, clients, head=_has_choice(job)))


def _has_choice(job: Job) -> bool:
    """Whether a head could have the budget that adapters take."""
    return job.rounds > 0 and job.head_steps > 0
