"""What membership inference is reported by: ROC, its area, true positives at few false ones,
exposure.

Figures for people, not for verdicts: an attack's success says nothing about attacks that were not
tried, so that no bound on epsilon follows from them (`one_run`, `intervals` have those). Carlini et
al. (2112.03570): what counts is the rate of true positives where false ones are rare; an average
over all thresholds hides records that leak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import beta, norm, rankdata

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics.scores import Floats, Scores


@dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic; one point for each distinct score, from (0, 0) to (1,
    1).

    Attributes:
        false_positive, true_positive: shares of non-members and of members at or above a threshold,
            shape (points,).
    """

    false_positive: Floats
    true_positive: Floats

    def thinned(self, points: int = 200) -> Curve:
        """Return at most `points` points, dense where false positives are rare; the ends stay."""
        count = len(self.false_positive)
        if count <= points:
            return self
        kept = np.unique(np.r_[0, np.geomspace(1, count - 1, points - 1).round().astype(np.int64)])
        return Curve(self.false_positive[kept], self.true_positive[kept])


@dataclass(frozen=True)
class Rate:
    """A share with an interval.

    Attributes:
        value: the estimate.
        low, high: limits of the interval.
    """

    value: float
    low: float
    high: float


def roc(given: Scores) -> Curve:
    """Return the ROC; equal scores are one point, so that no order among them is invented."""
    cuts = np.unique(given.values)[::-1]
    shares = [
        1 - np.searchsorted(np.sort(kind), cuts, side="left") / len(kind)
        for kind in (given.others, given.members)
    ]
    return Curve(np.r_[0.0, shares[0]], np.r_[0.0, shares[1]])


def area(given: Scores) -> float:
    """Return the area under the ROC: a member's chance to outscore a non-member, ties counted half
    (Mann, Whitney).
    """
    ranks = rankdata(given.values)[given.included].sum()
    members, others = len(given.members), len(given.others)
    return float((ranks - members * (members + 1) / 2) / (members * others))


def area_interval(given: Scores, *, confidence: float = 0.95) -> Rate:
    """Return the area with an interval: Newcombe (2006), method 5, which stays inside [0, 1] also
    near its ends.

    The limits are the areas whose own standard error (Hanley and McNeil 1982, sample sizes at their
    mean) puts the estimate at the normal quantile. Scores must be independent.

    Raises:
        ScoresError: confidence out of range.
    """
    quantile = _quantile(confidence)
    found, first, second = area(given), len(given.members), len(given.others)
    mean = (first + second) / 2 - 1

    def gap(theta: float) -> float:
        spread = (
            theta * (1 - theta) * (1 + mean * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        )
        return abs(found - theta) - quantile * math.sqrt(spread / (first * second))

    # a curve has no spread at exactly 0 and 1, where every estimate would count as certain
    low = 0.0 if found == 0 else float(brentq(gap, 0.0, min(found, 1 - 1e-12)))
    high = 1.0 if found == 1 else float(brentq(gap, max(found, 1e-12), 1.0))
    return Rate(found, low, high)


def tpr_at_fpr(given: Scores, rate: float, *, confidence: float = 0.95) -> Rate:
    """Return the share of members found where at most `rate` of the non-members are accused.

    The threshold is chosen on non-members alone, so that the interval of the members' share
    (Clopper and Pearson 1934) holds for it. Of equal scores all are accused or none.

    Raises:
        ScoresError: rate or confidence out of range, or so few non-members that the rate means
            "none at all".
    """
    _quantile(confidence)
    if not 0 < rate < 1:
        raise ScoresError(f"the false positive rate is {rate!r}; allowed: above 0 and below 1")
    others = np.sort(given.others)[::-1]
    if len(others) * rate < 1 - 1e-9:
        raise ScoresError(
            f"{len(others)} non-members are too few for a false positive rate of {rate:g}; at "
            f"least {math.ceil(1 / rate)} are needed"
        )
    allowed = math.floor(len(others) * rate + 1e-9)
    cut = others[
        allowed
    ]  # the first non-member that may not be accused; everything above its score is
    found, trials, half = int((given.members > cut).sum()), len(given.members), (1 - confidence) / 2
    low = 0.0 if found == 0 else float(beta.ppf(half, found, trials - found + 1))
    high = 1.0 if found == trials else float(beta.isf(half, found + 1, trials - found))
    return Rate(found / trials, low, high)


def exposure(given: Scores) -> Floats:
    """Return the exposure of each member in bits (Carlini et al. 1802.08232, section 4.2), shape
    (members,).

    log2 of how many candidates there are less log2 of the member's rank among them; candidates are
    the canaries that were left out, and the member. At most log2(non-members + 1); 1.44 on average
    where nothing leaks. Ties count against the attack.
    """
    others = np.sort(given.others)
    rank = 1 + len(others) - np.searchsorted(others, given.members, side="left")
    return np.asarray(math.log2(len(others) + 1) - np.log2(rank))


def relative(reference: npt.ArrayLike, released: npt.ArrayLike) -> Floats:
    """Return how much better the released model knows each text than a reference that never saw it.

    RMIA with one reference model (Zarifzadeh et al. 2312.03262): comparing the ratio of likelihoods
    with those of a population orders canaries as the ratio itself does.

    Args:
        reference, released: losses in nats, shape (canaries,).

    Raises:
        ScoresError: shapes differ or a loss is not finite.
    """
    first, second = np.asarray(reference, dtype=np.float64), np.asarray(released, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ScoresError(f"losses {first.shape} and {second.shape} must be vectors of one length")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ScoresError(
            "a loss is not finite; the model cannot be compared with its reference on that text"
        )
    return first - second


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ScoresError(f"confidence is {confidence!r}; allowed: above 0 and below 1")
    return float(norm.ppf((1 + confidence) / 2))
