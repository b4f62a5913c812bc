"""Confidence intervals on error rates and on a mean shift, turned into lower bounds on epsilon.

`clopper_pearson_epsilon`: exact binomial limits (Clopper and Pearson 1934) on false positive and
false negative rate at a fixed threshold; (epsilon, delta)-DP needs FPR + e^eps FNR >= 1 - delta and
the same with both exchanged (Kairouz, Oh and Viswanath 2015). Both limits hold together
(Bonferroni).

`gaussian_epsilon_bound`: when scores are Gaussian with one variance, the two-sample t statistic is
noncentral t; its lower limit on the shift mu is one for mu-GDP. Normality is the auditor's
assumption and must be reported: it holds for noise added to a projection, not for losses. Pooled
over steps the same gives the noise multiplier of a step.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import betainccinv
from scipy.stats import nct, norm
from scipy.stats import t as student

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics.profiles import epsilon_at_least, gaussian_epsilon
from fedtree_audits.statistics.scores import Scores
from fedtree_dp import PoissonGaussian

_EXACT_UP_TO = (
    2000  # degrees of freedom; above, the normal limit differs by less than its own safety margin
)


def upper_rate(successes: int, trials: int, level: float) -> float:
    """Return the exact one-sided upper limit of a proportion, missed with probability at most
    `level`.

    Raises:
        ScoresError: counts or level out of range.
    """
    if not 0 <= successes <= trials or trials < 1 or not 0 < level < 1:
        raise ScoresError(f"{successes} of {trials} at level {level!r} is no proportion")
    return (
        1.0 if successes == trials else float(betainccinv(successes + 1, trials - successes, level))
    )


def clopper_pearson_epsilon(
    given: Scores, threshold: float, delta: float, *, confidence: float = 0.95
) -> float:
    """Return a lower bound of epsilon at `delta` from the error rates at a threshold that the
    scores did not choose.

    Raises:
        ScoresError: delta or confidence out of range.
    """
    if not 0 <= delta < 1 or not 0 < confidence < 1 or not math.isfinite(threshold):
        raise ScoresError(
            f"delta {delta!r}, confidence {confidence!r} or threshold {threshold!r} is out of range"
        )
    half = (1 - confidence) / 2
    above = given.values >= threshold
    members, caught = (
        int(np.count_nonzero(given.included)),
        int(np.count_nonzero(above & given.included)),
    )
    false_positive = upper_rate(int(np.count_nonzero(above)) - caught, len(above) - members, half)
    false_negative = upper_rate(members - caught, members, half)
    found = [
        math.log((1 - delta - one) / other)
        for one, other in ((false_positive, false_negative), (false_negative, false_positive))
        if 1 - delta > one
    ]
    return max(0.0, *found) if found else 0.0


def best_threshold(given: Scores) -> float:
    """Return the threshold with the largest difference of true and false positives; use it on other
    canaries only.
    """
    cuts = np.unique(given.values)
    missed = np.searchsorted(np.sort(given.members), cuts, side="left") / len(given.members)
    passed = np.searchsorted(np.sort(given.others), cuts, side="left") / len(given.others)
    return float(cuts[int(np.argmax(passed - missed))])


def mu_lower_bound(given: Scores, *, confidence: float = 0.95) -> float:
    """Return a lower limit of the shift between members and others in standard deviations, by the
    noncentral t.

    Raises:
        ScoresError: confidence out of range, fewer than two canaries of a kind, or no spread within
            the kinds.
    """
    if not 0 < confidence < 1:
        raise ScoresError(f"confidence is {confidence!r}; allowed: above 0 and below 1")
    first, second = given.members, given.others
    if min(len(first), len(second)) < 2:
        raise ScoresError("the Gaussian interval needs at least two canaries of each kind")
    freedom = len(first) + len(second) - 2
    spread = ((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum()
    if spread == 0:
        raise ScoresError(
            "scores do not vary within members and non-members: there is no noise, and no finite "
            "bound"
        )
    unit = math.sqrt(1 / len(first) + 1 / len(second))
    statistic = float((first.mean() - second.mean()) / math.sqrt(spread / freedom) / unit)
    return max(0.0, _shift(statistic, freedom, confidence)) * unit


def gaussian_epsilon_bound(given: Scores, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta` for Gaussian scores: `mu_lower_bound`, then
    mu-GDP, rounded down.
    """
    return gaussian_epsilon(mu_lower_bound(given, confidence=confidence), delta)


def per_step_epsilon(
    given: Scores, event: PoissonGaussian, delta: float, *, confidence: float = 0.95
) -> float:
    """Return a lower bound of epsilon of a whole run from pooled per-step scores.

    Args:
        given: one score for each (canary, step): the noisy sum's projection on the canary's clipped
            gradient; `included` says whether the sampler drew the canary in that step. The shift is
            1 / noise multiplier.
        event: public rate and number of steps; its noise multiplier is not used.
        delta: of the claim.

    The claim that every step adds Gaussian noise of one size and samples at the event's rate is an
    assumption, which the components audit tests. Epsilon comes from an optimistic PLD: it rounds
    down.
    """
    shift = mu_lower_bound(given, confidence=confidence)
    return (
        epsilon_at_least([replace(event, noise_multiplier=1 / shift)], delta)
        if shift > 1e-3
        else 0.0
    )


def _shift(statistic: float, freedom: int, confidence: float) -> float:
    """Return the noncentrality at which a statistic this large has probability `1 - confidence`."""
    if statistic <= float(student.ppf(confidence, freedom)):
        return 0.0
    wide = float(norm.ppf(confidence)) * math.sqrt(1 + statistic**2 / (2 * freedom))
    if freedom > _EXACT_UP_TO:
        # Johnson and Welch (1940): (T - shift) / sqrt(1 + T^2 / 2 df) is normal up to O(1 / df);
        # shrunk by that much
        return (statistic - wide) * (1 - 1 / freedom) - statistic / freedom
    low, high = max(0.0, statistic - 3 * wide), statistic
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if nct.sf(statistic, freedom, middle) < 1 - confidence else (low, middle)
        )
    return low
