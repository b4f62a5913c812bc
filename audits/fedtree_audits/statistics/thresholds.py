"""Thresholds that may be used: fixed beforehand, chosen on held-out canaries, or every one at once.

A threshold that is picked on the scores it is then counted with makes a "95%" bound fail far more
often (31% of null runs, AUDITS.md). Three ways are valid, and each function names the theorem that
makes it so:

- fixed beforehand: `guess_above` for the one-run bounds, whose theorem 5.2 (2305.08846) conditions
  on the guesses and so lets their number depend on the scores; `clopper_pearson_epsilon` for error
  rates (exact binomial, 1934);
- held out: `hold_out_epsilon` chooses on one part and counts on the other, which is independent of
  the choice;
- all at once: `dkw_epsilon`, by the one-sided Dvoretzky-Kiefer-Wolfowitz inequality with Massart's
  constant (1990, theorem 1): P[sup (F_n - F) > sqrt(ln(1 / a) / 2 n)] <= a for a <= 1/2. Both error
  rates then hold at every threshold together, and the best may be taken. The margin is additive, so
  it is far wider than Clopper-Pearson's at rates near zero: use it when no canaries can be spared
  for a choice.
"""

from __future__ import annotations

import math

import numpy as np

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics.intervals import best_threshold, clopper_pearson_epsilon
from fedtree_audits.statistics.scores import Floats, Guesses, Scores, hold_out


def guess_above(given: Scores, threshold: float) -> Guesses:
    """Guess "in" for every score of at least `threshold` and abstain from the rest.

    Args:
        given: checked scores.
        threshold: chosen without these scores.

    Raises:
        ScoresError: no score reaches the threshold, or it is not finite.
    """
    if not math.isfinite(threshold):
        raise ScoresError(
            f"the threshold is {threshold!r}; it must be a finite number fixed before the scores "
            "were seen"
        )
    above = given.values >= threshold
    made = int(np.count_nonzero(above))
    if made == 0:
        raise ScoresError(
            f"no score reaches the threshold {threshold:g}: nothing is guessed; choose a lower one"
        )
    return Guesses(len(given.values), made, int(np.count_nonzero(above & given.included)))


def hold_out_epsilon(
    given: Scores,
    delta: float,
    *,
    order: np.random.Generator,
    share: float = 0.3,
    confidence: float = 0.95,
) -> float:
    """Return a Clopper-Pearson lower bound of epsilon at a threshold that the other canaries chose.

    Args:
        given: checked scores.
        delta: of the claim.
        order: splits the canaries, without regard to scores.
        share: part that chooses, above 0 and below 1.
        confidence: of the bound.

    Raises:
        ScoresError: as `hold_out` and `clopper_pearson_epsilon`.
    """
    chooser, counted = hold_out(given, share, order=order)
    return clopper_pearson_epsilon(counted, best_threshold(chooser), delta, confidence=confidence)


def dkw_margin(count: int, level: float) -> float:
    """Return how far an empirical distribution of `count` values may lie on one side of the true
    one.

    Args:
        count: independent values, at least 1.
        level: probability of lying further away anywhere, above 0 and at most 1/2 (Massart 1990,
            theorem 1).

    Raises:
        ScoresError: out of range.
    """
    if count < 1 or not 0 < level <= 0.5:
        raise ScoresError(
            f"{count} values at level {level!r}; allowed: at least 1 value, level above 0 and at "
            "most .5"
        )
    return math.sqrt(math.log(1 / level) / (2 * count))


def dkw_epsilon(given: Scores, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta`: the best over all thresholds, valid for all
    together.

    Both rules are used at every threshold t, "in" if the score is at least t and its reverse: each
    needs an upper limit of FPR and of FNR, so four one-sided bands share the error (Bonferroni).

    Raises:
        ScoresError: delta or confidence out of range.
    """
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ScoresError(f"delta {delta!r} or confidence {confidence!r} is out of range")
    level = (1 - confidence) / 4
    cuts = np.unique(given.values)
    missed = _below(
        given.members, cuts
    )  # FNR of "in if at least t"; its complement is the FPR of the reverse rule
    passed = 1 - _below(given.others, cuts)
    wide_in, wide_out = dkw_margin(len(given.members), level), dkw_margin(len(given.others), level)
    rules = ((passed + wide_out, missed + wide_in), (1 - passed + wide_out, 1 - missed + wide_in))
    return max(
        0.0,
        *(
            _best(one, other, delta)
            for fpr, fnr in rules
            for one, other in ((fpr, fnr), (fnr, fpr))
        ),
    )


def _below(values: Floats, cuts: Floats) -> Floats:
    return np.searchsorted(np.sort(values), cuts, side="left") / len(values)


def _best(one: Floats, other: Floats, delta: float) -> float:
    """Largest ln((1 - delta - one) / other), 0 where nothing is shown."""
    left = 1 - delta - one
    usable = left > 0
    return (
        float(np.log(left[usable] / np.minimum(1.0, other[usable])).max()) if usable.any() else 0.0
    )
