"""Audit `components`: whether the mechanism that ran is the one that was accounted for.

The auditor sits inside a client and runs the shipped engine, noise source and sampler with the
run's own noise multiplier, clipping norm and sampling rate, on records with gradients far above the
clipping norm. What the engine releases less the clipped sum (computed anew, one record at a time
with plain autograd) must be independent Gaussian noise of the accounted size. Tests: variance by
chi-square, shape by Kolmogorov-Smirnov, correlation between steps, layers and clients (normal at n
> 1,000), sensitivity exactly (of a whole unit, where the job protects units), sampling rate by the
binomial, spread of batch sizes by chi-square against N q (1 - q). One run of the self-test per
seed; a false alarm has probability below 1e-5.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from dataclasses import replace

import numpy as np
from scipy import stats

from fedtree_audits.checks import shared_noise
from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs.broken import BUILDS, OF_UNITS
from fedtree_audits.rigs.engines import (
    Build,
    clipped_sum,
    layer_sizes,
    of_units,
    records,
    releases,
)
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, SIGNIFICANCE, Check, Power, Result
from fedtree_dp import PoissonGaussian, PrivacyUnit, epsilon_of
from fedtree_dp.account.unit import name_of

QUESTION = "Is the mechanism that ran the one that was accounted for?"
STEPS = 24
DRAWS, SIZE = 500, 400
ROUNDING = 1e-5  # of float32 sums, relative to the clipping norm
MOST_RECORDS = 16  # of a planted unit: two would do
_SMALLEST_NOISE = 1e-3


def audit_build(
    build: Build,
    event: PoissonGaussian,
    delta: float,
    key: bytes,
    *,
    max_grad_norm: float = 1.0,
    unit: PrivacyUnit | None = None,
    hashes: dict[str, str] | None = None,
) -> Result:
    """Audit one build against an event.

    Args:
        build: what is measured.
        event: what was accounted for.
        delta: of the claim, for the power statement.
        key: 32 bytes that noise and coins come from; its hash is reported.
        max_grad_norm: clipping norm.
        unit: what is protected; a record if None.
        hashes: of the files the settings came from.
    """
    noise = event.noise_multiplier
    size = 1 if unit is None else min(unit.at_most, MOST_RECORDS)
    batch = records(6) if unit is None else of_units(records(3 * size), size)
    first, second = (
        releases(
            build,
            key,
            [batch] * STEPS,
            noise_multiplier=noise,
            max_grad_norm=max_grad_norm,
            client=client,
        )
        - clipped_sum(batch, max_grad_norm)
        for client in (0, 1)
    )
    checks = [
        *_noise(first / noise, second / noise),
        _sensitivity(build, key, max_grad_norm, unit, size),
        *_sampling(build, event.sample_rate, key),
    ]
    claim = epsilon_of([event], delta)
    return Result(
        audit="components",
        question=QUESTION,
        claim=f"every step is Gaussian noise of {noise:.4g} clipping norms on a sum that one "
        f"{name_of(unit)} moves by at most one, over Poisson batches of rate "
        f"{event.sample_rate:g}; "
        f"{event.steps} steps: epsilon {claim:.3g} at {delta:g}",
        adversary="none: an auditor inside a client measures the mechanism itself",
        assumptions=(
            (
                "the engine, source and sampler measured here are the ones installed where the run "
                "took place"
            ),
        ),
        checks=checks,
        power=_power(event, delta, claim, first.size),
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | (hashes or {}),
        figures={"noise_over_accounted": float((first / noise).std()), "values": int(first.size)},
    )


def audit_run(run: RunFolder) -> Result:
    """Audit with the settings of the run's least noisy stage and fresh randomness; where noise is
    shared, what its members add and what is opened (`shared_noise`).
    """
    if run.job.noise == "shared":
        return shared_noise.audit_run(run)
    training = run.job.training
    plans = [run.noise_plan(client) for client in sorted(run.clients)]
    noise = min(plan.rounds or plan.head for plan in plans)
    event = PoissonGaussian(
        noise, training.sample_rate, max(1, run.job.rounds * training.local_steps)
    )
    return audit_build(
        Build(),
        event,
        run.job.privacy.delta,
        os.urandom(32),
        max_grad_norm=training.max_grad_norm,
        unit=run.job.privacy_unit,
        hashes=run.hashes("job.json"),
    )


def _noise(first: Floats, second: Floats) -> list[Check]:
    """Tests of two clients' standardised noise, each of shape (steps, values)."""
    ratio, n = float((first**2).mean()), first.size
    spread = 2 * min(stats.chi2.cdf(ratio * n, n), stats.chi2.sf(ratio * n, n))
    shape = stats.kstest(first.ravel(), "norm").pvalue
    width = min(layer_sizes())
    start = layer_sizes()[0]
    return [
        Check.test(
            "noise variance", float(spread), f"{ratio:.4f} of the accounted one over {n} values"
        ),
        Check.test(
            "noise shape", float(shape), "Kolmogorov-Smirnov against the accounted Gaussian"
        ),
        _independent("steps", first[:-1], first[1:]),
        _independent("layers", first[:, :width], first[:, start : start + width]),
        _independent("clients", first, second),
    ]


def _independent(what: str, first: Floats, second: Floats) -> Check:
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    if size < _SMALLEST_NOISE * a.size:
        return Check(f"noise between {what}", holds=False, detail="there is no noise")
    correlation = float(a @ b) / size
    p_value = 2 * float(
        stats.norm.sf(abs(math.atanh(min(abs(correlation), 1 - 1e-15))) * math.sqrt(a.size - 3))
    )
    return Check.test(
        f"noise between {what}", p_value, f"correlation {correlation:.4f} over {a.size} pairs"
    )


def _sensitivity(
    build: Build, key: bytes, max_grad_norm: float, unit: PrivacyUnit | None, size: int
) -> Check:
    """The largest move of the sum by one record, or by one whole planted unit of `size` records,
    without noise; gradients far above and far below the norm.
    """
    singles = [
        records(size, seed, scale)
        for seed, scale in enumerate((1e-3, 1.0, 3.0, 30.0, 300.0, 3000.0))
    ]
    if unit is not None:
        singles = [of_units(batch, size) for batch in singles]
    moved = [
        float(
            np.linalg.norm(
                releases(build, key, [one], noise_multiplier=0.0, max_grad_norm=max_grad_norm)[0]
            )
        )
        for one in singles
    ]
    return Check(
        "sensitivity",
        max(moved) <= 1 + ROUNDING,
        f"one {name_of(unit)} moves the sum by up to {max(moved):.6g} norms",
    )


def _sampling(build: Build, rate: float, key: bytes) -> list[Check]:
    sampler = build.sampler(SIZE, rate, build.source(hashlib.sha256(key).digest(), 0))
    sizes = np.array([len(sampler.draw()) for _ in range(DRAWS)])
    total = int(sizes.sum())
    chance = stats.binomtest(total, SIZE * DRAWS, rate).pvalue
    found = [
        Check.test(
            "sampling rate", float(chance), f"{total / SIZE / DRAWS:.5f}, accounted {rate:g}"
        )
    ]
    if rate < 1:
        expected = SIZE * rate * (1 - rate)
        scaled = float(((sizes - SIZE * rate) ** 2).sum() / expected)
        p_value = 2 * min(stats.chi2.cdf(scaled, DRAWS), stats.chi2.sf(scaled, DRAWS))
        found.append(
            Check.test(
                "batch sizes",
                float(p_value),
                f"variance {scaled / DRAWS:.4f} of Poisson sampling's",
            )
        )
    return found


def _power(event: PoissonGaussian, delta: float, claim: float, n: int) -> Power:
    """The variance test alone: how small a share of the accounted variance it notices with
    90%, by the chi-square.
    """
    needed = stats.chi2.ppf(SIGNIFICANCE / 2, n) / stats.chi2.ppf(POWER, n)
    scaled = replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(needed))
    return Power(
        claim,
        epsilon_of([scaled], delta),
        f"noise of {math.sqrt(needed):.3f} times the accounted size",
    )


def _variant(build: Build, unit: PrivacyUnit | None = None) -> Variant:
    event = PoissonGaussian(1.1, 0.1, 60)

    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"components/{seed}".encode()).digest()
        return audit_build(build, event, 1e-5, key, unit=unit)

    return variant


def _correct(seed: int) -> Result:
    """The shipped build, for records, for units and for shared noise in turns."""
    if seed % 3 == 2:
        return shared_noise.variant()(seed)
    return _variant(Build(), PATIENT if seed % 2 else None)(seed)


PATIENT = PrivacyUnit("patient", 5)


AUDIT = Audit(
    name="components",
    question=QUESTION,
    on_run=audit_run,
    correct=_correct,
    mutants={
        **{name: _variant(build) for name, build in BUILDS.items()},
        **{name: _variant(build, PATIENT) for name, build in OF_UNITS.items()},
        **shared_noise.MUTANTS,
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
