"""Audit `canary_whitebox`: whether measured leakage exceeds the claim.

The adversary is a server that sees every step's noisy sum. Canaries are records whose gradient is
one coordinate of a LoRA factor, far above the clipping norm ("Dirac canaries", see `lora_host`):
with the shipped adapters, engine, sampler and noise source nothing else is in the sum, so a canary
can be recognised as well as any record ever can. Where the job protects units a canary is a whole
unit of such records. Whether a canary is in the data at all is a fair
coin, committed to by hash before training. Four methods share an error of 5% by Holm's procedure;
the figures beside them are bounds that hold together (Bonferroni):

- one run: likelihood ratios summed over the steps, `one_run_epsilon` (2305.08846);
- one run, f-DP: the accountant's own profile is refuted or not (2410.22235);
- per step, pooled: the shift of a step's coordinate between steps that drew the canary and steps
  that did not gives the noise multiplier by a noncentral-t interval, and that the epsilon of the
  whole run, rounded down;
- the same with a lower limit of the measured sampling rate (Clopper-Pearson) in place of the stated
  one.

The last two assume that every step has the same noise and that batches are Poisson, which the
components audit tests.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs.broken import BUILDS, OF_UNITS
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.lora_host import Seen, train
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics import estimators as est
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, Check, Power, Result, holm_by_level
from fedtree_dp import PoissonGaussian, PrivacyUnit, epsilon_of
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.account.unit import name_of
from fedtree_secure.testing import Lora

QUESTION = "Does measured leakage exceed the claim?"
CANARIES, STEPS = 1000, 60
ERROR = 0.05  # of all four methods together
CONFIDENCE = 1 - ERROR / 4
# Share of canaries that are guessed about, fixed here for every run.
GUESSED, FEWEST_GUESSES = 0.02, 50
NO_NOISE = 1e-4  # spread of float32 sums, in clipping norms
MOST_RECORDS = 8  # of a unit that is planted: each takes a forward pass


@dataclass(frozen=True)
class Canary:
    """What a canary is made of.

    Attributes:
        lora: settings of the adapters that hold it.
        unit: what is protected; a record if None.
    """

    lora: Lora = field(default_factory=Lora)
    unit: PrivacyUnit | None = None

    @property
    def records(self) -> int:
        """How many it is planted as."""
        return 1 if self.unit is None else min(self.unit.at_most, MOST_RECORDS)


CANARY = Canary()


def audit_build(
    build: Build,
    event: PoissonGaussian,
    delta: float,
    key: bytes,
    *,
    canaries: int = CANARIES,
    of: Canary = CANARY,
    control: bool = True,
    hashes: dict[str, str] | None = None,
) -> Result:
    """Audit one build against an event.

    Args:
        build: what is attacked.
        event: what was accounted for.
        delta: of the claim.
        key: 32 bytes that all randomness comes from.
        canaries: coins tossed.
        of: what a canary is made of.
        control: whether a build without noise is attacked as well, which must be caught.
        hashes: of the files the settings came from.
    """
    claim = epsilon_of([event], delta)
    unit = of.unit
    seen = train(build, event, key, canaries, of.lora, of.records)
    checks, figures = _attack(seen, event, delta, claim)
    controls = {}
    if control:
        bare = train(BUILDS["no noise"], event, key, canaries, of.lora, of.records)
        controls["training without noise"] = not all(
            check.holds for check in _attack(bare, event, delta, claim)[0]
        )
    return Result(
        audit="canary_whitebox",
        question=QUESTION,
        claim=f"epsilon {claim:.4g} at delta {delta:g} over {event.steps} steps",
        adversary="server that sees the noisy sum of every step and knows every canary, which is "
        f"one {name_of(unit)}{f' of {of.records} records' if unit else ''}",
        assumptions=(
            (
                "the engine and adapters attacked here are the ones installed where the run took "
                "place, with its settings"
            ),
            (
                "canaries sit in the LoRA layers of a small transformer: what is clipped, summed "
                "and noised has its shape"
            ),
            "per step: equal noise in all steps, Poisson batches (tested by the components audit)",
        ),
        checks=checks,
        power=_power(event, delta, claim, canaries),
        controls=controls,
        hashes={"coins commitment": seen.commitment} | (hashes or {}),
        figures=figures | {"claim": claim, "canaries": canaries},
    )


def audit_run(run: RunFolder) -> Result:
    """Attack the installed engine with the settings of the run's least noisy client."""
    training = run.job.training
    noise = min(plan.rounds or plan.head for plan in map(run.noise_plan, sorted(run.clients)))
    event = PoissonGaussian(
        noise, training.sample_rate, max(1, run.job.rounds * training.local_steps)
    )
    return audit_build(
        Build(),
        event,
        run.job.privacy.delta,
        os.urandom(32),
        canaries=_enough(event),
        of=Canary(run.job.lora, run.job.privacy_unit),
        hashes=run.hashes("job.json"),
    )


def _attack(
    seen: Seen, event: PoissonGaussian, delta: float, claim: float
) -> tuple[list[Check], dict[str, Any]]:
    ranked = est.scores(_likelihood_ratios(seen.sums, event), seen.included)
    made = min(len(seen.included), max(FEWEST_GUESSES, round(GUESSED * len(seen.included))))
    outcome = est.guess(ranked, made, order=np.random.default_rng(0))
    inverse = _claimed_profile(event, claim)

    @functools.cache
    def one_run(level: float) -> float:
        return est.one_run_epsilon(outcome, delta, confidence=1 - level)

    @functools.cache
    def measured(level: float) -> tuple[float, float]:
        coins = seen.drawn[:, seen.included]
        rate = 1 - est.upper_rate(int((~coins).sum()), coins.size, level / 2)
        return _epsilon(_shift(seen, level / 2), replace(event, sample_rate=rate), delta), rate

    refuted = holm_by_level(
        {
            "one run": lambda level: one_run(level) > claim,
            "one run, f-DP": lambda level: est.refutes(outcome, inverse, confidence=1 - level),
            "per step": lambda level: _shift(seen, level) > 1 / event.noise_multiplier,
            "per step, measured rate": lambda level: measured(level)[0] > claim,
        },
        ERROR,
    )
    level = ERROR / len(refuted)
    pooled = _epsilon(_shift(seen, level), event, delta)
    right = f"{outcome.correct} of {outcome.made} guesses right"
    details = {
        "one run": f"epsilon is at least {one_run(level):.4g}; claimed {claim:.4g}; {right}",
        "one run, f-DP": (
            f"the claimed profile is {'' if refuted['one run, f-DP'] else 'not '}refuted; {right}"
        ),
        "per step": f"epsilon is at least {pooled:.4g}; claimed {claim:.4g}",
        "per step, measured rate": (
            f"at least {measured(level)[0]:.4g} with a rate of {measured(level)[1]:.4g} or more"
        ),
    }
    checks = [Check(name, not bad, details[name]) for name, bad in refuted.items()]
    fdp = est.one_run_fdp_epsilon(outcome, delta, confidence=1 - level)
    return checks, {
        "one_run": one_run(level),
        "one_run_fdp": fdp,
        "per_step": pooled,
        "per_step_over_claim": pooled / claim,
    }


@functools.lru_cache(maxsize=8)
def _claimed_profile(event: PoissonGaussian, claim: float) -> est.Inverse:
    """The accountant's whole profile; the same for every seed of a self-test."""
    return est.profile_inverse(
        est.accountant_points([event], list(np.linspace(0, 2 * claim + 2, 81)))
    )


def _likelihood_ratios(sums: Floats, event: PoissonGaussian) -> Floats:
    """Log likelihood of each canary being a member against not, summed over steps, shape
    (canaries,).

    A step holds a member with the sampling rate q: log(1 - q + q exp((2 x - 1) / 2 s^2)) at noise
    multiplier s. By Neyman and Pearson no other score of these sums tells the two apart better.
    """
    exponent = (2 * sums - 1) / (2 * event.noise_multiplier**2)
    if event.sample_rate == 1:
        return np.asarray(exponent.sum(axis=0))
    out, into = math.log1p(-event.sample_rate), math.log(event.sample_rate)
    return np.asarray(np.logaddexp(out, into + exponent).sum(axis=0))


def _shift(seen: Seen, level: float) -> float:
    """Lower limit of the shift that a drawn canary makes, in standard deviations of a step's
    coordinate.

    Infinite where coordinates do not vary at all, since then there is no noise; 0 for full batches,
    which leave no step without the canary to compare with.
    """
    values, drawn = seen.sums[:, seen.included].ravel(), seen.drawn[:, seen.included].ravel()
    if drawn.all() or not drawn.any():
        return 0.0
    if np.ptp(values[drawn]) < NO_NOISE and np.ptp(values[~drawn]) < NO_NOISE:
        return math.inf
    return est.mu_lower_bound(est.scores(values, drawn), confidence=1 - level)


def _epsilon(shift: float, event: PoissonGaussian, delta: float) -> float:
    """Epsilon of the event with a noise multiplier of at most 1 / shift, rounded down."""
    if math.isinf(shift):
        return math.inf
    return (
        est.epsilon_at_least([replace(event, noise_multiplier=1 / shift)], delta)
        if shift > 1e-3
        else 0.0
    )


def _power(event: PoissonGaussian, delta: float, claim: float, canaries: int) -> Power:
    """Of the pooled method: the shift whose lower limit is above the claim's in nine of ten runs.

    From the expected numbers of scores, so that it is a property of the audit and not of one run's
    coins.
    """
    members = event.steps * canaries / 2
    first, second = (
        max(2.0, event.sample_rate * members),
        max(2.0, (1 - event.sample_rate) * members),
    )
    error = math.sqrt(1 / first + 1 / second) * float(norm.ppf(CONFIDENCE) + norm.ppf(POWER))
    noise = 1 / (1 / event.noise_multiplier + error)
    found = epsilon_of(
        [replace(event, noise_multiplier=noise)], delta, discretization=PLANNING_DISCRETIZATION
    )
    return Power(
        claim,
        found,
        f"per step: noise multiplier {noise:.3f} instead of {event.noise_multiplier:.3f}",
    )


def _enough(event: PoissonGaussian) -> int:
    """Canaries for 300,000 step scores, within the memory and time that an audit may take."""
    return int(min(10_000, max(CANARIES, 600_000 / event.steps)))


def _variant(build: Build, *, control: bool = False, unit: PrivacyUnit | None = None) -> Variant:
    event = PoissonGaussian(1.0, 0.1, STEPS)

    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"canary/{seed}".encode()).digest()
        return audit_build(build, event, 1e-5, key, control=control, of=Canary(unit=unit))

    return variant


PATIENT = PrivacyUnit("patient", 3)
CAUGHT = ("no noise", "half the noise", "clipping off", "doubled sampling rate")
AUDIT = Audit(
    name="canary_whitebox",
    question=QUESTION,
    on_run=audit_run,
    correct=lambda seed: _variant(Build(), control=True, unit=PATIENT if seed % 2 else None)(seed),
    mutants={
        **{name: _variant(BUILDS[name]) for name in CAUGHT},
        **{name: _variant(build, unit=PATIENT) for name, build in OF_UNITS.items()},
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
