"""Lower bounds on epsilon from one training run with many canaries.

`one_run_epsilon`: Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (2305.08846), theorem 5.2:
for an (epsilon, delta)-DP mechanism and r guesses on m independent fair coins, the number W of correct guesses obeys
P[W >= v] <= P[B >= v] + 2 m delta max_{1 <= i <= v} P[v > B >= v - i] / i with B ~ Binomial(r, e^eps / (1 + e^eps)).

`refutes` and `one_run_fdp_epsilon`: Mahloujifar, Melis and Chaudhuri, "Auditing f-differential privacy in one run"
(2410.22235), theorem 3.1 and algorithm 3 with k = 2: the whole trade-off function is used instead of one of its points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import gammaln, ndtr, ndtri

from fedtree_audits.errors import ScoresError
from fedtree_audits.profiles import gaussian_epsilon
from fedtree_audits.scores import Bools, Floats, Guesses

LARGEST_EPSILON = 30.0
LARGEST_MU = 12.0
Inverse = Callable[[Floats], Floats]
"""Maps y to the least x with 1 - f(x) >= y, elementwise; any smaller value is safe."""


def p_value(outcome: Guesses, epsilon: float, delta: float) -> float:
    """Probability, at most, of so many correct guesses under (epsilon, delta)-DP; theorem 5.2 of 2305.08846.

    Raises:
        ScoresError: epsilon or delta out of range.
    """
    _check(delta, 0.05)
    if not 0 <= epsilon <= LARGEST_EPSILON:
        raise ScoresError(f"epsilon is {epsilon!r}; allowed: 0 to {LARGEST_EPSILON:g}")
    return _p_value(outcome, _log_binomials(outcome.made), epsilon, delta)


def one_run_epsilon(outcome: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta`, valid with probability `confidence`; 0 when nothing is shown.

    The first epsilon from 0 up whose p-value is no longer below `1 - confidence`, found on a grid and then halved
    from below: the returned value itself is refuted, so rounding is downwards.

    Raises:
        ScoresError: delta or confidence out of range.
    """
    level = _check(delta, 1 - confidence)
    logs = _log_binomials(outcome.made)

    def refuted(epsilon: float) -> bool:
        return _p_value(outcome, logs, epsilon, delta) < level

    return _first_accepted(refuted, LARGEST_EPSILON, 24)


def refutes(outcome: Guesses, inverse: Inverse, *, confidence: float = 0.95) -> bool:
    """Say whether the guesses refute f-DP with the trade-off function behind `inverse` (algorithm 3, 2410.22235)."""
    level = _check(0.0, 1 - confidence)
    return bool(_refuted(outcome, inverse, level, 1)[0])


def one_run_fdp_epsilon(outcome: Guesses, delta: float, *, confidence: float = 0.95) -> float:
    """Return a lower bound of epsilon at `delta` for a mechanism of the Gaussian family, by its whole trade-off curve.

    The largest mu on a grid of 48, then 48 finer steps, that is refuted; epsilon is that of mu-GDP, rounded down.

    Raises:
        ScoresError: delta or confidence out of range.
    """
    level = _check(delta, 1 - confidence)
    low, high = 0.0, LARGEST_MU
    for _ in range(2):
        mus = np.linspace(low, high, 49)[1:]
        held = ~_refuted(outcome, lambda y, mus=mus: ndtr(ndtri(y) - mus), level, len(mus))  # type: ignore[misc]
        first = int(np.argmax(held)) if held.any() else len(mus)
        low, high = (mus[first - 1] if first else low), (mus[first] if first < len(mus) else high)
    return gaussian_epsilon(float(low), delta)


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
    mass = np.exp(logs - counts * np.log1p(math.exp(-epsilon)) - (made - counts) * np.log1p(math.exp(epsilon)))
    tail = float(mass[correct:].sum())
    if correct == 0 or delta == 0:
        return min(1.0, tail)
    below = np.cumsum(mass[correct - 1 :: -1]) if correct else np.zeros(1)
    alpha = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * outcome.canaries * delta * alpha)


def _first_accepted(refuted: Callable[[float], bool], largest: float, halvings: int) -> float:
    """Return the largest found value below the first one that is not refuted, scanning from 0 upwards."""
    if not refuted(0.0):
        return 0.0
    low, step = 0.0, 0.25
    while low + step <= largest and refuted(low + step):
        low += step
    high = low + step
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _refuted(outcome: Guesses, inverse: Inverse, level: float, width: int) -> Bools:
    """Algorithm 3 for `width` trade-off functions at once."""
    made, correct, canaries = outcome.made, outcome.correct, outcome.canaries
    limit = made / canaries
    h = np.full(width, level * (made - correct) / canaries)
    r = np.full(width, level * correct / canaries)
    over = r + h > limit
    for i in range(correct - 1, -1, -1):
        following = np.maximum(h, inverse(np.minimum(r, 1.0)))
        r = r + (i / (made - i)) * (following - h)
        h = following
        if i % 64 == 0:
            over |= r + h > limit
            if over.all():
                break
    return np.asarray(over | (r + h > limit))
