"""Audit `replay`: whether private data steer control flow, the normaliser or the tree.

The same public settings and the same randomness are run on neighbouring data sets. What differs may
differ by one clipped record and by nothing else: the noise and the coins of all other records must
come out the same, since a program that draws more noise, divides by another number or samples at
another rate because of one record has a mechanism that nobody accounted for.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs import class_sums
from fedtree_audits.rigs.broken import NaNPasses, PrivateDivisor, PrivateRate
from fedtree_audits.rigs.engines import Build, records, releases
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, SIGNIFICANCE, Check, Power, Result
from fedtree_dp import Gaussian, NoiseSource, epsilon_of
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import fingerprint

QUESTION = "Does private data steer control flow, the normaliser or the tree?"
SIZE, NEIGHBOURS, TREE_NOISE = 12, 6, 2.0
DEPTH, WIDTH, TREE_DRAWS = 4, 40, 8
DELTA = 1e-5  # of the power statement
ROUNDING = 1e-4  # clipping norms: float32 sums of a dozen records
Released = Callable[[Floats, NoiseSource], Floats]
"""Turns (rows, depth, width) hidden states into what the tree is computed from."""


def shipped_evidence(means: Floats, noise: NoiseSource) -> Floats:
    """Release what clients release for the tree."""
    public = np.zeros((DEPTH, WIDTH)), np.ones(DEPTH)
    return np.asarray(
        fingerprint(means, public, noise_multiplier=TREE_NOISE, records=SIZE, noise=noise)
    )


@dataclass(frozen=True)
class Parts:
    """What is replayed: the engine's build, the release that the tree is computed from, and the one
    that heads of groups may come from.
    """

    build: Build = field(default_factory=Build)
    evidence: Released = shipped_evidence
    sums: class_sums.Released = class_sums.shipped


def audit_parts(parts: Parts, key: bytes, hashes: dict[str, str] | None = None) -> Result:
    """Replay one build on neighbouring data.

    Args:
        parts: what is audited.
        key: 32 bytes that all randomness comes from; its hash is reported.
        hashes: of files that were read.
    """
    checks = [
        *_releases(parts.build, key),
        _not_finite(parts.build, key, float("nan")),
        _not_finite(parts.build, key, float("inf")),
        _coins(parts.build, key),
        *_tree(parts.evidence, key),
        *class_sums.checks(parts.sums, key),
    ]
    return Result(
        audit="replay",
        question=QUESTION,
        claim=(
            "one record moves a release by at most one clipping norm over public constants, and "
            "nothing else"
        ),
        adversary="whoever knows all records but one, and all randomness",
        assumptions=(
            (
                "engine, sampler, fingerprint and class sums replayed here are the ones installed "
                "where the run took place"
            ),
        ),
        checks=checks,
        power=_power(),
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | (hashes or {}),
        figures={"neighbours": NEIGHBOURS},
    )


def audit_run(run: RunFolder) -> Result:
    """Replay the installed code; a run adds no evidence but its settings' hash."""
    _ = run.job
    return audit_parts(Parts(), os.urandom(32), run.hashes("job.json"))


def _without(batch: Batch, left_out: int) -> Batch:
    keep = torch.arange(len(batch["y"])) != left_out
    return {name: value[keep] for name, value in batch.items()}


def _released(build: Build, key: bytes, batch: Batch | None) -> Floats:
    return np.asarray(releases(build, key, [batch], noise_multiplier=1.0)[0])


def _releases(build: Build, key: bytes) -> list[Check]:
    whole = records(SIZE)
    base = _released(build, key, whole)
    moved = [
        float(np.linalg.norm(base - _released(build, key, _without(whole, out))))
        for out in range(NEIGHBOURS)
    ]
    empty = _released(build, key, None)
    noise = float(np.linalg.norm(base - empty))
    return [
        Check(
            "one record less",
            max(moved) <= 1 + ROUNDING,
            f"moves the release by up to {max(moved):.5g} norms",
        ),
        Check(
            "no record at all",
            noise <= SIZE + ROUNDING,
            f"moves it by {noise:.5g} norms, {SIZE} allowed",
        ),
    ]


def _not_finite(build: Build, key: bytes, value: float) -> Check:
    """A record that is not finite may contribute nothing: the release without it, bit for bit."""
    poisoned = {name: given.clone() for name, given in records(SIZE).items()}
    poisoned["x"][0, 0] = value
    wanted = _released(build, key, _without(poisoned, 0))
    try:
        given = _released(build, key, poisoned)
    except Exception as error:  # whatever is raised shows that a record can stop the run
        return Check(
            f"a record with {value}",
            holds=False,
            detail=f"stopped the step: {type(error).__name__}",
        )
    gap = float(np.linalg.norm(given - wanted))
    return Check(
        f"a record with {value}",
        bool(gap <= ROUNDING),
        f"moves the release by {gap:.3g} norms, 0 allowed",
    )


def _coins(build: Build, key: bytes) -> Check:
    """One record more must not change who else is drawn."""
    changed = 0
    for size in (40, 64, 128):
        for trial in range(8):
            seed = hashlib.sha256(key + bytes([trial])).digest()
            short, long = (
                build.sampler(n, 0.25, NoiseSource(seed)).draw() for n in (size, size + 1)
            )
            changed += not np.array_equal(short, long[long < size])
    return Check(
        "coins of the others", changed == 0, f"changed by one more record in {changed} of 24 draws"
    )


def _tree(evidence: Released, key: bytes) -> list[Check]:
    rng = np.random.default_rng(list(hashlib.sha256(b"rows" + key).digest()[:8]))
    rows = rng.normal(size=(SIZE, DEPTH, WIDTH)) + 1.0

    def given(means: Floats, tag: int) -> Floats:
        return evidence(means, NoiseSource(hashlib.sha256(key + bytes([tag])).digest())) * SIZE

    moved = max(
        float(np.linalg.norm(given(rows, 0) - given(np.delete(rows, i, 0), 0)))
        for i in range(NEIGHBOURS)
    )
    draws = np.stack([given(rows, tag) for tag in range(TREE_DRAWS)])
    n = draws.size - draws[0].size
    ratio = float(((draws - draws.mean(axis=0)) ** 2).sum()) / TREE_NOISE**2
    p_value = 2 * min(float(stats.chi2.cdf(ratio, n)), float(stats.chi2.sf(ratio, n)))
    return [
        Check(
            "tree: one record less",
            moved <= 1 + 1e-9,
            f"moves what the tree sees by {moved:.5g} norms",
        ),
        Check.test(
            "tree: noise", p_value, f"{ratio / n:.4f} of the accounted variance over {n} values"
        ),
    ]


@functools.lru_cache(maxsize=1)
def _power() -> Power:
    """Of the tree's noise, the one test with sampling error: the share of its variance that is
    noticed in 9 of 10.
    """
    n = (TREE_DRAWS - 1) * DEPTH * WIDTH
    share = float(stats.chi2.ppf(SIGNIFICANCE / 2, n) / stats.chi2.ppf(POWER, n))
    found = TREE_NOISE * math.sqrt(share)
    claim, detected = (epsilon_of([Gaussian(noise)], DELTA) for noise in (TREE_NOISE, found))
    how = f"noise multiplier {found:.3g} in place of {TREE_NOISE:g}; all else is compared exactly"
    return Power(claim, detected, how, quantity="epsilon of the tree's release")


# --- self-test ------------------------------------------------------------------------------------


def _raw_tree(means: Floats, noise: NoiseSource) -> Floats:
    """A tree from the rows themselves: a release that no ledger knows."""
    del noise
    public = np.zeros((DEPTH, WIDTH)), np.ones(DEPTH)
    return fingerprint(
        means, public, noise_multiplier=0.0, records=SIZE, noise=NoiseSource(bytes(32))
    )


def _counted_tree(means: Floats, noise: NoiseSource) -> Floats:
    """A mean over the true number of rows."""
    public = np.zeros((DEPTH, WIDTH)), np.ones(DEPTH)
    return fingerprint(means, public, noise_multiplier=TREE_NOISE, records=len(means), noise=noise)


def _variant(parts: Parts) -> Variant:
    return lambda seed: audit_parts(parts, hashlib.sha256(f"replay/{seed}".encode()).digest())


AUDIT = Audit(
    name="replay",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Parts()),
    mutants={
        "divisor from the private size": _variant(Parts(Build(optimizer=PrivateDivisor))),
        "sampling rate from the private size": _variant(Parts(Build(sampler=PrivateRate))),
        "NaN gradient poisons the release": _variant(Parts(Build(optimizer=NaNPasses))),
        "tree from the rows, unaccounted": _variant(Parts(evidence=_raw_tree)),
        "tree evidence over the private size": _variant(Parts(evidence=_counted_tree)),
        **{name: _variant(Parts(sums=sums)) for name, sums in class_sums.BROKEN.items()},
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
