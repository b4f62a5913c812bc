"""How much noise each stage of a client needs, so that all of them together stay within its budget.

The plan is fixed before anything is computed from private rows and never changed afterwards, which
is what the PLD composition assumes. It depends on public settings and on what the ledger already
holds for the data set.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from fedtree_dp import (
    BudgetExceeded,
    Event,
    Gaussian,
    PoissonGaussian,
    PrivacyBudget,
    SharedPoissonGaussian,
    calibrate,
    epsilon_of,
    given_honest,
)
from fedtree_dp.account.shared import counted_on
from fedtree_secure.agreed.head_release import head_stage
from fedtree_secure.config import Job


@dataclass(frozen=True)
class NoisePlan:
    """Noise multipliers by stage; 0 for a stage that the job does not have.

    Attributes:
        fingerprint: Of the released mean (a Gaussian mechanism).
        warm_up, head, rounds: Of each DP-SGD step. Where noise is shared, ``rounds`` is that of the
            honest members together, and of what the steps leave at home.
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


def stages(job: Job) -> dict[str, PoissonGaussian | Gaussian]:
    """The stages of a job with noise multipliers relative to that of the rounds."""
    training = job.training
    found: dict[str, PoissonGaussian | Gaussian] = {}
    if job.topology.source == "lora_b" and job.rounds:
        found["warm_up"] = PoissonGaussian(1.0, training.sample_rate, job.topology.warmup_steps)
    if job.head_steps:
        found["head"] = head_stage(job)
    if job.rounds:
        found["rounds"] = PoissonGaussian(
            1.0, training.sample_rate, training.local_steps * job.rounds
        )
    return found


def plan_noise(
    job: Job,
    budget: PrivacyBudget,
    spent: Sequence[Event] = (),
    *,
    agreed: PrivacyBudget | None = None,
) -> NoisePlan:
    """Calibrate all stages of a client's job.

    Where noise is shared all clients need the same noise in rounds: it is that of the strictest
    budget of the job on an unspent data set, and this one must afford it.

    Args:
        budget: Of the data set.
        spent: Events that its ledger already holds.
        agreed: The client's in the job (`Job.budget_of`); the job's own if None. Where noise is
            shared, the client's own stages are planned for it.

    Raises:
        fedtree_dp.BudgetExceeded: What is left allows no useful plan.
    """
    if job.noise == "shared":
        plan = _common(job, agreed or job.privacy)
        _check_afforded(job, plan, budget, spent)
        return plan
    plan = _calibrated(job, budget, given_honest(spent))
    if counted_on(spent) > 1:  # earlier jobs shared noise: own_epsilon may hold less than epsilon
        _check_afforded(job, plan, budget, spent)
    return plan


def events_of(job: Job, plan: NoisePlan) -> tuple[Event, ...]:
    """Return everything that a job charges; with shared noise, a client that is in a sum each
    round.
    """
    found: list[Event] = [Gaussian(plan.fingerprint)] if plan.fingerprint else []
    for name, event in stages(job).items():
        step = replace(event, noise_multiplier=getattr(plan, name))
        shared = name == "rounds" and job.noise == "shared"
        found.append(_shared(job, step) if shared and isinstance(step, PoissonGaussian) else step)
    return tuple(found)


@functools.lru_cache(maxsize=64)
def sums_noise(job: Job) -> float:
    """Return the noise multiplier of a member's class sums, as all parties take it for everybody:
    that of the job's own budget. It is what the group's head is made with; the charge of a member
    whose data set leaves less has more noise, and is its own.
    """
    return _alike(plan_noise(job, job.privacy).head)


def shared_part(job: Job) -> float | None:
    """Return what each member of a sum adds in a round, over the clipping norm, where the job
    shares noise; None where it does not. It follows from the job alone, so that every party of a
    deployment says the same.
    """
    return None if job.noise == "own" else part_of(job, _common(job, job.privacy).rounds)


def part_of(job: Job, together: float) -> float:
    """Return what each member adds so that the honest ones have a noise multiplier together."""
    return together / math.sqrt(job.masking.honest)


def _shared(job: Job, steps: PoissonGaussian) -> SharedPoissonGaussian:
    own = part_of(job, steps.noise_multiplier)
    return SharedPoissonGaussian(own, steps.sample_rate, steps.steps, job.masking.honest)


@functools.lru_cache(maxsize=64)
def _common(job: Job, agreed: PrivacyBudget) -> NoisePlan:
    """Return the plan of a client in a job with shared noise: its own stages for its own budget,
    and rounds with the noise that the strictest budget of all clients asks for.

    So in every sum, whatever the tree, the weakest promise of its members holds for all of them.
    """
    budgets = {job.privacy, *job.budgets.values()}  # and not `agreed`: all must say the same
    strictest = max(_sufficient(job, budget).rounds for budget in budgets)
    return replace(_sufficient(job, agreed), rounds=_alike(strictest))


@functools.lru_cache(maxsize=64)
def _sufficient(job: Job, budget: PrivacyBudget) -> NoisePlan:
    """Return the plan of a job with shared noise for one budget: enough for epsilon while others
    are honest, and for own_epsilon whatever they do.
    """
    plan = _calibrated(job, budget, ())
    template, honest = stages(job), job.masking.honest
    before = (Gaussian(plan.fingerprint),) if plan.fingerprint else ()
    template["rounds"] = replace(template["rounds"], noise_multiplier=1.0 / math.sqrt(honest))
    alone = calibrate(tuple(template.values()), budget.alone, spent=before)
    found = {n: event.noise_multiplier for n, event in zip(template, alone, strict=True)}
    found["rounds"] *= math.sqrt(honest)
    if found["rounds"] > plan.rounds:
        plan = NoisePlan(fingerprint=plan.fingerprint, **found)
    return plan


def _alike(multiplier: float) -> float:
    """Round a multiplier up to 20 bits: calibrated on two machines, whose libraries may differ in
    the last bits, it is the same, and all parties pin it.
    """
    fraction, exponent = math.frexp(multiplier)
    return math.ldexp(math.ceil(fraction * 2**20), exponent - 20)


def _check_afforded(
    job: Job, plan: NoisePlan, budget: PrivacyBudget, spent: Sequence[Event]
) -> None:
    total = (*spent, *events_of(job, plan))
    for allowed, events, what in (
        (budget, given_honest(total), "epsilon"),
        (budget.alone, total, "the epsilon of its own noise alone"),
    ):
        reached = epsilon_of(events, budget.delta)
        if reached > allowed.epsilon:
            raise BudgetExceeded(
                f"this job would bring {what} to {reached:.4f} of {allowed.epsilon:g} at delta "
                f"{budget.delta:g}, with what was spent before; nothing was charged. Raise the "
                "budget on purpose, or plan the job for less",
                spent=epsilon_of(given_honest(spent), budget.delta),
                requested_total=reached,
                allowed=allowed.epsilon,
            )


def _calibrated(job: Job, budget: PrivacyBudget, spent: Sequence[Event]) -> NoisePlan:
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
