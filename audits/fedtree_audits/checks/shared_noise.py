"""What `components` asks where noise is shared: whether each sum holds the noise that the claim
counts on.

A federation of the installed code runs with the run's masking, rate and noise, without a record
(`rigs.shared_sums`). One-sided chi-square tests of variance, against what the ledgers were charged:
of each member's own part, and of the smallest sums that open, less the parts that an observer may
know (the colluders', or a curious member's own). Parts of two members and of two rounds must be
independent; an opened sum must be the whole-number sum of its survivors' parts; and no sum may open
over fewer than `min_group`. `h` is computed here from the job, never read from the product.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
from collections.abc import Iterator

import numpy as np
from scipy import stats

from fedtree_audits.command import Variant
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs import shared_sums as rig
from fedtree_audits.rigs.shared_sums import Ints, Opening, Seen, SumsOf, measure
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.verdict import POWER, SIGNIFICANCE, Check, Power, Result
from fedtree_dp import SharedPoissonGaussian, epsilon_of
from fedtree_secure.testing import Masking

QUESTION = "Is the mechanism that ran the one that was accounted for?"


def audit_sums(
    what: SumsOf, event: SharedPoissonGaussian, delta: float, key: bytes, hashes: dict[str, str]
) -> Result:
    """Audit one federation.

    Args:
        what: its masking, rate and noise.
        event: what the run was charged for all its rounds.
        delta: of the claim.
        key: 32 bytes that all randomness comes from; its hash is reported.
        hashes: of the files the settings came from.
    """
    seen = measure(what, key)
    unknown = what.masking.min_group - max(what.masking.colluders, 1)
    known = what.masking.min_group - unknown
    charged = [e for found in seen.charged.values() for e in found]
    # What is due is what was charged, in the words of the ledger: no part of the product's plan.
    if not charged:
        raise MissingEvidence("the federation of the audit charged no round with shared noise")
    part = max(e.noise_multiplier for e in charged) / seen.step
    sum_ = max(e.noise_multiplier * math.sqrt(e.honest) for e in charged) / seen.step
    checks = [
        *_parts(seen, part),
        *_sums(seen, sum_, what.masking, known),
        *_independence(seen),
    ]
    together = event.together()
    claims = {"shared": epsilon_of([together], delta), "own": epsilon_of([event], delta)}
    return Result(
        audit="components",
        question=QUESTION,
        claim=f"every member of a sum adds noise of {event.noise_multiplier:.4g} clipping norms; "
        f"{event.honest} of the smallest sum's, unknown to whoever looks, together "
        f"{together.noise_multiplier:.4g}; {event.steps} steps: epsilon {claims['shared']:.3g} at "
        f"{delta:g}, {claims['own']:.3g} whatever others do",
        adversary="none: an auditor inside every client measures what it adds and what is opened",
        assumptions=(
            "the code measured here is the one installed where the run took place",
            "who is honest cannot be measured: that is the claim's own condition",
        ),
        checks=checks,
        power=_power(event, delta, claims["shared"], _smallest(seen)),
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | hashes,
        figures={"claims": claims, "honest": unknown},
    )


def audit_run(run: RunFolder) -> Result:
    """Audit with the run's settings and fresh randomness; the charges are those of its ledgers."""
    job = run.job
    totals = [run.noise_written(client).rounds for client in sorted(run.clients)]
    if len(set(totals)) != 1:
        raise MissingEvidence(f"the noise plans in {run.path} differ: all members add the same")
    honest = job.masking.min_group - max(job.masking.colluders, 1)
    event = SharedPoissonGaussian(
        totals[0] / math.sqrt(honest), job.training.sample_rate, job.rounds, honest
    )
    what = SumsOf(job.masking, job.training.sample_rate, totals[0])
    hashes = run.hashes("job.json", "summary.json")
    return audit_sums(what, event, job.privacy.delta, os.urandom(32), hashes)


def _parts(seen: Seen, due: float) -> Iterator[Check]:
    """Each member's own noise, in every round, against its charge."""
    for name in sorted({client for _, client in seen.parts}):
        values = np.concatenate([v for (_, client), v in seen.parts.items() if client == name])
        yield _enough(f"part of {name}", values, due)


def _sums(seen: Seen, due: float, masking: Masking, known: int) -> Iterator[Check]:
    """Opened sums: of whom, of what, and with how much noise that nobody knows."""
    wrong = fewest = 0
    smallest: list[Ints] = []
    for (number, node), (members, total) in sorted(seen.sums.items()):
        place = seen.places[node]
        parts = np.stack([seen.parts[number, name][place] for name in members])
        wrong += int(np.any(parts.sum(axis=0) != total))
        fewest += len(members) < masking.min_group
        if len(members) <= masking.min_group:
            smallest.append(total - parts[:known].sum(axis=0))
    yield Check("sums are of the survivors' parts", not wrong, f"{wrong} of {len(seen.sums)} not")
    yield Check(
        "smallest sum",
        not fewest,
        f"{fewest} sums opened over fewer than {masking.min_group} clients",
    )
    values = np.concatenate(smallest) if smallest else np.zeros(0, np.int64)
    yield _enough("noise that nobody knows in the smallest sums", values, due)


def _independence(seen: Seen) -> Iterator[Check]:
    rounds, names = sorted({n for n, _ in seen.parts}), sorted({c for _, c in seen.parts})
    pairs = {
        "members": [((rounds[0], a), (rounds[0], b)) for a, b in itertools.pairwise(names)],
        "rounds": [((a, names[0]), (b, names[0])) for a, b in itertools.pairwise(rounds)],
    }
    for what, places in pairs.items():
        found = [(seen.parts[a], seen.parts[b]) for a, b in places]
        first, second = (
            np.concatenate(side).astype(np.float64) for side in zip(*found, strict=True)
        )
        correlation = float(np.corrcoef(first, second)[0, 1])
        size = math.atanh(min(abs(correlation), 1 - 1e-15)) * math.sqrt(first.size - 3)
        detail = f"correlation {correlation:.4f} over {first.size} pairs"
        yield Check.test(f"noise between {what}", 2 * float(stats.norm.sf(size)), detail)


def _enough(name: str, values: Ints, due: float) -> Check:
    """Whether a variance is not below what is due."""
    if not values.size:
        return Check(name, holds=False, detail="there is none")
    ratio = float((values.astype(np.float64) ** 2).mean()) / due**2
    p_value = float(stats.chi2.cdf(ratio * values.size, values.size))
    return Check.test(name, p_value, f"{ratio:.4f} of what is due over {values.size} values")


def _smallest(seen: Seen) -> int:
    return min((v.size for v in seen.parts.values()), default=1)


def _power(event: SharedPoissonGaussian, delta: float, claim: float, n: int) -> Power:
    """The variance test of a smallest sum of one layer in one round alone."""
    needed = stats.chi2.ppf(SIGNIFICANCE, n) / stats.chi2.ppf(POWER, n)
    scaled = event.together()
    noise = scaled.noise_multiplier * math.sqrt(needed)
    weaker = type(scaled)(noise, scaled.sample_rate, scaled.steps)
    return Power(
        claim,
        epsilon_of([weaker], delta),
        f"noise of {math.sqrt(needed):.3f} times what is due",
    )


def variant(broken: Opening = contextlib.nullcontext) -> Variant:
    """Return an audit of a build made for the self-test."""
    masking = Masking(min_group=3, colluders=1)

    def audited(seed: int) -> Result:
        # Plans are cached by terms: a broken build's must be found by no other.
        key = hashlib.sha256(f"shared/{getattr(broken, '__name__', '')}/{seed}".encode()).digest()
        event = SharedPoissonGaussian(2.0 / math.sqrt(2), 1.0, 20, 2)
        return audit_sums(SumsOf(masking, 1.0, 2.0, broken), event, 1e-5, key, {})

    return audited


MUTANTS = {
    "shared: h counted too high": variant(rig.counted_too_high),
    "shared: noise split over too many": variant(rig.split_over_too_many),
    "shared: a dropout that leaves too little": variant(rig.a_shrunken_sum_opens),
    "shared: a member that adds none": variant(rig.without_a_member_s_part),
    "shared: one part for all": variant(rig.one_part_for_all),
}
