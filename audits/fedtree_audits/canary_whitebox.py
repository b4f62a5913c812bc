"""Audit `canary_whitebox`: whether measured leakage exceeds the claim.

The adversary is a server that sees every step's noisy sum. Canaries are records whose gradient is one coordinate far
above the clipping norm ("Dirac canaries"): with the shipped engine, sampler and noise source nothing else is in the
sum, so a canary can be recognised as well as any record ever can. Whether a canary is in the data at all is a fair
coin, committed to by hash before training. Four methods share the error of 5% (Bonferroni, Holm's first step):

- one run: scores summed over the steps, `one_run_epsilon` (2305.08846);
- one run, f-DP: the accountant's own profile is refuted or not (2410.22235);
- per step, pooled: the shift of a step's coordinate between steps that drew the canary and steps that did not gives
  the noise multiplier by a noncentral-t interval, and that the epsilon of the whole run, rounded down;
- the same with a lower limit of the measured sampling rate (Clopper-Pearson) in place of the stated one.

The last two assume that every step has the same noise and that batches are Poisson, which the components audit tests.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import nn

from fedtree_audits import estimators as est
from fedtree_audits.broken import BUILDS
from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.engines import Build, Probe
from fedtree_audits.runs import RunFolder
from fedtree_audits.scores import Bools, Floats
from fedtree_audits.verdict import POWER, Check, Power, Result
from fedtree_dp import DPSGD, PoissonGaussian, epsilon_of

QUESTION = "Does measured leakage exceed the claim?"
CANARIES, STEPS = 1000, 60
METHODS = 4
CONFIDENCE = 1 - 0.05 / METHODS
GUESSED = 0.1  # share of canaries that are guessed about, fixed here
SIZE = 3.0  # norm of a canary's gradient, in clipping norms


@dataclass(frozen=True)
class Seen:
    """What the server saw of one training, and what the auditor knows.

    Attributes:
        sums: noisy sums by step and canary, in clipping norms, shape (steps, canaries).
        included: the coins, shape (canaries,).
        drawn: whether a step's batch held the canary, shape (steps, canaries).
        commitment: SHA-256 of salt and coins, made before training.
    """

    sums: Floats
    included: Bools
    drawn: Bools
    commitment: str


def train(build: Build, event: PoissonGaussian, key: bytes, canaries: int) -> Seen:
    """Train on canaries alone with the shipped loop: sampler, engine, noise.

    Args:
        build: what is audited.
        event: rate, noise multiplier and steps.
        key: 32 bytes that coins, noise and batches come from.
        canaries: how many coins are tossed.
    """
    coins = build.source(hashlib.sha256(b"coins" + key).digest(), 0)
    included = coins.uniform(canaries) < 0.5
    commitment = hashlib.sha256(hashlib.sha256(b"salt" + key).digest() + included.tobytes()).hexdigest()
    members = np.flatnonzero(included)
    source = build.source(key, 0)
    sampler = build.sampler(len(members), event.sample_rate, source)
    divisor = max(1.0, event.sample_rate * canaries / 2)
    network = nn.Linear(canaries, 1, bias=False)
    nn.init.zeros_(network.weight)
    probe = Probe(list(network.parameters()))
    drawn = np.zeros((event.steps, canaries), dtype=np.bool_)
    with DPSGD(
        network, probe, _loss, noise_multiplier=event.noise_multiplier, max_grad_norm=1.0,
        expected_batch_size=divisor, noise=source, physical_batch_size=1024,
    ) as engine:  # fmt: skip
        engine.optimizer.__class__ = build.optimizer
        for step in range(event.steps):
            batch = members[sampler.draw()]
            drawn[step, batch] = True
            engine.step({"x": _records(batch, canaries)} if len(batch) else None)
    return Seen(np.stack(probe.seen) * divisor, included, drawn, commitment)


def audit_build(
    build: Build, event: PoissonGaussian, delta: float, key: bytes, *, canaries: int = CANARIES,
    control: bool = True, hashes: dict[str, str] | None = None,
) -> Result:  # fmt: skip
    """Audit one build against an event.

    Args:
        build: what is attacked.
        event: what was accounted for.
        delta: of the claim.
        key: 32 bytes that all randomness comes from.
        canaries: coins tossed.
        control: whether a build without noise is attacked as well, which must be caught.
        hashes: of the files the settings came from.
    """
    claim = epsilon_of([event], delta)
    seen = train(build, event, key, canaries)
    checks, figures = _attack(seen, event, delta, claim)
    controls = {}
    if control:
        bare = train(BUILDS["no noise"], event, key, canaries)
        controls["training without noise"] = not all(check.holds for check in _attack(bare, event, delta, claim)[0])
    return Result(
        audit="canary_whitebox",
        question=QUESTION,
        claim=f"epsilon {claim:.4g} at delta {delta:g} over {event.steps} steps",
        adversary="server that sees the noisy sum of every step and knows every canary",
        assumptions=(
            "the engine attacked here is the one installed where the run took place, with the run's settings",
            "per step: equal noise in all steps, Poisson batches (tested by the components audit)",
        ),
        checks=checks,
        power=_power(event, delta, claim, seen.drawn),
        controls=controls,
        hashes={"coins commitment": seen.commitment} | (hashes or {}),
        figures=figures | {"claim": claim, "canaries": canaries},
    )


def audit_run(run: RunFolder) -> Result:
    """Attack the installed engine with the settings of the run's least noisy client."""
    training = run.job.training
    noise = min(plan.rounds or plan.head for plan in map(run.noise_plan, sorted(run.clients)))
    event = PoissonGaussian(noise, training.sample_rate, max(1, run.job.rounds * training.local_steps))
    return audit_build(
        Build(), event, run.job.privacy.delta, os.urandom(32), canaries=_enough(event), hashes=run.hashes("job.json")
    )


def _attack(seen: Seen, event: PoissonGaussian, delta: float, claim: float) -> tuple[list[Check], dict[str, Any]]:
    summed = est.scores(seen.sums.sum(axis=0), seen.included)
    made = max(20, round(GUESSED * len(seen.included)))
    outcome = est.guess(summed, made, order=np.random.default_rng(0))
    one_run = est.one_run_epsilon(outcome, delta, confidence=CONFIDENCE)
    inverse = est.profile_inverse(est.accountant_points([event], list(np.linspace(0, 2 * claim + 2, 81))))
    refuted = est.refutes(outcome, inverse, confidence=CONFIDENCE)
    pooled = _per_step(seen, event, delta, CONFIDENCE)
    half = (1 - CONFIDENCE) / 2
    coins = seen.drawn[:, seen.included]
    rate = 1 - est.upper_rate(int((~coins).sum()), coins.size, half)
    measured = _per_step(seen, replace(event, sample_rate=rate), delta, 1 - half)
    right = f"{outcome.correct} of {outcome.made} guesses right"
    checks = [
        Check("one run", one_run <= claim, f"epsilon is at least {one_run:.4g}; claimed {claim:.4g}; {right}"),
        Check(
            "one run, f-DP", not refuted, f"the claimed profile is {'refuted' if refuted else 'not refuted'}; {right}"
        ),
        Check("per step", pooled <= claim, f"epsilon is at least {pooled:.4g}; claimed {claim:.4g}"),
        Check(
            "per step, measured rate", measured <= claim, f"at least {measured:.4g} with a rate of {rate:.4g} or more"
        ),
    ]
    return checks, {"one_run": one_run, "per_step": pooled, "per_step_over_claim": pooled / claim}


def _per_step(seen: Seen, event: PoissonGaussian, delta: float, confidence: float) -> float:
    """The pooled bound; infinite where a step's coordinates do not vary at all, since then there is no noise."""
    held = seen.sums[:, seen.included], seen.drawn[:, seen.included]
    values, drawn = held[0].ravel(), held[1].ravel()
    if drawn.all():
        return 0.0  # full batches: no step without the canary to compare with
    if np.ptp(values[drawn]) < 1e-5 and np.ptp(values[~drawn]) < 1e-5:
        return math.inf
    return est.per_step_epsilon(est.scores(values, drawn), event, delta, confidence=confidence)


def _power(event: PoissonGaussian, delta: float, claim: float, drawn: npt.NDArray[np.bool_]) -> Power:
    """Of the pooled method: the shift whose lower limit is above the claim's in nine of ten runs."""
    first = max(2, int(drawn.sum()))
    second = max(2, int(event.steps * drawn.any(axis=0).sum()) - first)
    error = math.sqrt(1 / first + 1 / second) * float(norm.ppf(CONFIDENCE) + norm.ppf(POWER))
    noise = 1 / (1 / event.noise_multiplier + error)
    found = epsilon_of([replace(event, noise_multiplier=noise)], delta)
    return Power(claim, found, f"per step: noise multiplier {noise:.3f} instead of {event.noise_multiplier:.3f}")


def _enough(event: PoissonGaussian) -> int:
    """Canaries for 300,000 step scores, within the memory and time that an audit may take."""
    return int(min(10_000, max(CANARIES, 600_000 / event.steps)))


def _loss(network: nn.Module, batch: Any) -> torch.Tensor:
    found: torch.Tensor = network(batch["x"]).squeeze(-1)
    return found


def _records(batch: npt.NDArray[np.int64], canaries: int) -> torch.Tensor:
    found = torch.zeros(len(batch), canaries)
    found[torch.arange(len(batch)), torch.from_numpy(batch)] = SIZE
    return found


def _variant(build: Build, *, control: bool = False) -> Variant:
    event = PoissonGaussian(1.0, 0.1, STEPS)

    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"canary/{seed}".encode()).digest()
        return audit_build(build, event, 1e-5, key, control=control)

    return variant


CAUGHT = ("no noise", "half the noise", "clipping off", "doubled sampling rate")
AUDIT = Audit(
    name="canary_whitebox",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Build(), control=True),
    mutants={name: _variant(BUILDS[name]) for name in CAUGHT},
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
