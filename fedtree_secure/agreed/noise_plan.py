"""How much noise each stage of a client needs, so that all of them together stay within its budget.

The plan is fixed before anything is computed from private rows and never changed afterwards, which
is what the PLD composition assumes. It depends on public settings and on what the ledger already
holds for the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fedtree_dp import Event, Gaussian, PoissonGaussian, PrivacyBudget, calibrate
from fedtree_secure.config import Job


@dataclass(frozen=True)
class NoisePlan:
    """Noise multipliers by stage; 0 for a stage that the job does not have.

    Attributes:
        fingerprint: Of the released mean (a Gaussian mechanism).
        warm_up, head, rounds: Of each DP-SGD step.
    """

    fingerprint: float = 0.0
    warm_up: float = 0.0
    head: float = 0.0
    rounds: float = 0.0

    def to_bytes(self) -> bytes:
        """Return the plan as JSON; floats keep every bit."""
        return msgspec.json.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "NoisePlan":
        """Read what `to_bytes` wrote; `msgspec.DecodeError` if it is something else."""
        return msgspec.json.decode(data, type=cls)


def stages(job: Job) -> dict[str, PoissonGaussian]:
    """The DP-SGD stages of a job with noise multipliers relative to that of the rounds."""
    training = job.training
    found: dict[str, PoissonGaussian] = {}
    if job.topology.source == "lora_b" and job.rounds:
        found["warm_up"] = PoissonGaussian(1.0, training.sample_rate, job.topology.warmup_steps)
    if job.head_steps:
        found["head"] = PoissonGaussian(
            training.head_noise_ratio, training.head_sample_rate, job.head_steps
        )
    if job.rounds:
        found["rounds"] = PoissonGaussian(
            1.0, training.sample_rate, training.local_steps * job.rounds
        )
    return found


def plan_noise(job: Job, budget: PrivacyBudget, spent: Sequence[Event] = ()) -> NoisePlan:
    """Calibrate all stages of a client's job.

    Args:
        budget: Of the data set.
        spent: Events that its ledger already holds.

    Raises:
        fedtree_dp.BudgetExceeded: What is left allows no useful plan.
    """
    before, multiplier = list(spent), 0.0
    if job.topology.source == "fingerprint" and job.rounds:
        share = PrivacyBudget(
            epsilon=job.topology.fingerprint_share * budget.epsilon, delta=budget.delta
        )
        (release,) = calibrate((Gaussian(1.0),), share)
        multiplier = release.noise_multiplier
        before.append(release)
    template = stages(job)
    scaled = calibrate(tuple(template.values()), budget, spent=tuple(before)) if template else ()
    found = {name: event.noise_multiplier for name, event in zip(template, scaled, strict=True)}
    return NoisePlan(fingerprint=multiplier, **found)
