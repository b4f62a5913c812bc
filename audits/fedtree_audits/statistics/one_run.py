"""Lower bounds on epsilon from one training run with many canaries.

`one_run_epsilon`: Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run"
(2305.08846), theorem 5.2: for an (epsilon, delta)-DP mechanism and r guesses on m independent fair
coins, the number W of correct guesses obeys P[W >= v] <= P[B >= v] + 2 m delta max_{1 <= i <= v}
P[v > B >= v - i] / i with B ~ Binomial(r, e^eps / (1 + e^eps)).

`refutes` and `one_run_fdp_epsilon`: Mahloujifar, Melis and Chaudhuri, "Auditing f-differential
privacy in one run" (2410.22235), theorem 3.1 and algorithm 3 with k = 2: the whole trade-off
function is used instead of one of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics.profiles import gaussian_epsilon
from fedtree_audits.statistics.scores import Floats, Guesses

LARGEST_EPSILON = 30.0
LARGEST_MU = 12.0
Inverse = Callable[[Floats], Floats]
"""Maps y to the least x with 1 - f(x) >= y, elementwise; any smaller value is safe."""


def p_value(outcome: Guesses, epsilon: float, delta: float) -> float:
    """Probability, at most, of so many correct guesses under (epsilon, delta)-DP; theorem 5.2 of
    2305.08846.

    Raises:
        ScoresError: epsilon or delta out of range.
    """
    _check(delta, 0.05)
    if not 0 <= epsilon <= LARGEST_EPSILON:
        raise ScoresError(f"epsilon is {epsilon!r}; allowed: 0 to {LARGEST_EPSILON:g}")
    return _p_value(outcome, _log_binomials(outcome.made), epsilon, delta)


def one_run_epsilon(outcome: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta`, valid with probability `confidence`; 0 when
    nothing is shown.

    The p-value grows with epsilon, so the largest refuted epsilon is found by Brent's method (to
    1e-6) and moved down until it is refuted itself: rounding is downwards.

    Raises:
        ScoresError: delta or confidence out of range.
    """
    level = _check(delta, 1 - confidence)
    logs = _log_binomials(outcome.made)
    return _largest_refuted(
        lambda epsilon: level - _p_value(outcome, logs, epsilon, delta), LARGEST_EPSILON
    )


def refutes(outcome: Guesses, inverse: Inverse, *, confidence: float = 0.95) -> bool:
    """Say whether the guesses refute f-DP with the trade-off function behind `inverse` (algorithm
    3, 2410.22235).
    """
    level = _check(0.0, 1 - confidence)
    made, correct = outcome.made, outcome.correct
    limit = made / outcome.canaries
    h, r = level * (made - correct) / outcome.canaries, level * correct / outcome.canaries
    for i in range(correct - 1, -1, -1):
        following = float(inverse(np.array(min(r, 1.0))))
        if following <= h or r + h > limit:
            break  # neither changes any more, or their sum, which never falls, is over already
        r += (i / (made - i)) * (following - h)
        h = following
    return r + h > limit


def one_run_fdp_epsilon(outcome: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta` for a mechanism of the Gaussian family, by its
    whole trade-off curve.

    The recursion's outcome falls as mu grows: the largest refuted mu is found as in
    `one_run_epsilon`; epsilon is that of mu-GDP, rounded down.

    Raises:
        ScoresError: delta or confidence out of range.
    """
    level = _check(delta, 1 - confidence)
    return gaussian_epsilon(
        _largest_refuted(lambda mu: _excess(outcome, mu, level), LARGEST_MU), delta
    )


def _largest_refuted(excess: Callable[[float], float], largest: float) -> float:
    """Return the largest found value at which `excess`, which falls, is above 0; 0 if there is
    none.
    """
    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        if high == largest:
            return largest
        low, high = high, min(largest, 2 * high)
    found, step = float(brentq(excess, low, high, xtol=1e-7)), 1e-6
    while found > low and excess(found) <= 0:
        found, step = max(low, found - step), 2 * step
    return found


def _excess(outcome: Guesses, mu: float, level: float) -> float:
    """Algorithm 3 for mu-GDP, one value at a time: by how much it exceeds its limit; above 0
    refutes.

    Scalar, because the recursion is one: Python floats with the C library's erfc are faster here
        than arrays.
    """
    made, correct = outcome.made, outcome.correct
    limit = made / outcome.canaries
    h, r = level * (made - correct) / outcome.canaries, level * correct / outcome.canaries
    quantile, erfc, half = NormalDist().inv_cdf, math.erfc, math.sqrt(0.5)
    for i in range(correct - 1, -1, -1):
        if r >= 1.0 or r <= 0.0:
            break
        following = 0.5 * erfc((mu - quantile(r)) * half)
        if following <= h:
            break  # neither changes any more
        r += (i / (made - i)) * (following - h)
        h = following
        if r + h > 2 * limit:
            break  # far above: the sum never falls
    return min(r, 1.0) + h - limit


def _check(delta: float, level: float) -> float:
    if not 0 <= delta < 1:
        raise ScoresError(f"delta is {delta!r}; allowed: 0 to below 1")
    if not 0 < level < 1:
        raise ScoresError(f"confidence leaves an error of {level!r}; allowed: above 0 and below 1")
    return level


def _log_binomials(made: int) -> Floats:
    counts = np.arange(made + 1)
    return np.asarray(gammaln(made + 1) - gammaln(counts + 1) - gammaln(made - counts + 1))


def _p_value(outcome: Guesses, logs: Floats, epsilon: float, delta: float) -> float:
    made, correct = outcome.made, outcome.correct
    counts = np.arange(made + 1)
    mass = np.exp(
        logs - counts * np.log1p(math.exp(-epsilon)) - (made - counts) * np.log1p(math.exp(epsilon))
    )
    tail = float(mass[correct:].sum())
    if correct == 0 or delta == 0:
        return min(1.0, tail)
    below = np.cumsum(mass[correct - 1 :: -1]) if correct else np.zeros(1)
    alpha = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * outcome.canaries * delta * alpha)
