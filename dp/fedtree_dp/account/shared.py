"""Noise that several clients put into one sum: what it is worth, and to whom.

Each member of a sum adds discrete Gaussian noise on the grid of the masking ring; of the sum alone
something is ever seen. So a member is protected by its own noise, whatever others do, and by that
of all honest members together while they are honest. Both are accounted: the first by
`epsilon_of(events)`, the second by `epsilon_of(given_honest(events))`. Neither is the other's
replacement.

The sum of discrete Gaussians is no discrete Gaussian, and a discrete Gaussian is not the continuous
one that the accountant computes with. On a fine grid both gaps are below anything that a double can
hold; `deviation_for` makes them so, and pays for rounding in the open. The argument is SPEC.md,
section 10. Sources: Kairouz, Liu and Steinke 2021 (2102.06387); Canonne, Kamath and Steinke 2020
(2004.00010).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedtree_dp import checks
from fedtree_dp.account.accounting import STATEMENT_DISCRETIZATION, epsilon_of, merge
from fedtree_dp.account.events import Event, SharedPoissonGaussian
from fedtree_dp.errors import ConfigurationError

# Standard deviation, in grid steps, of the kernel that turns a continuous Gaussian into a discrete
# one: exp(-2 pi^2 64) is 1e-548.
KERNEL = 8.0
# Fewest grid steps for one standard deviation of a single member's noise.
LEAST_DEVIATION = 256.0
# Most that rounding to the grid may add to the sensitivity, as a share of it.
MOST_ROUNDING = 0.1
# A table has a row for each number of honest members up to so many; of more, all up to _FEW.
_MOST_ROWS, _FEW = 12, 5


def given_honest(events: Iterable[Event], honest: int | None = None) -> tuple[Event, ...]:
    """Return the events as they are while others are honest; those of own noise stay as they are.

    Args:
        events: what was or would be charged.
        honest: members of every sum whose noise is really in it, the client among them; what each
            event counts on if None, and never more than that.
    """
    return tuple(
        event.together(honest) if isinstance(event, SharedPoissonGaussian) else event
        for event in events
    )


def counted_on(events: Iterable[Event]) -> int:
    """Return the most members that an event counts on, the client among them; 1 if none does."""
    return max((e.honest for e in events if isinstance(e, SharedPoissonGaussian)), default=1)


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the same composition with as few events as possible, steps of shared noise by
    themselves: for reports, which must not leave out what they count on.
    """
    given = tuple(events)
    shared: Counter[SharedPoissonGaussian] = Counter()
    for event in given:
        if isinstance(event, SharedPoissonGaussian):
            shared[replace(event, steps=1)] += event.steps
    rest = merge(event for event in given if not isinstance(event, SharedPoissonGaussian))
    ordered = sorted(shared, key=lambda e: (e.noise_multiplier, e.sample_rate, e.honest))
    return (*rest, *(replace(event, steps=shared[event]) for event in ordered))


@dataclass(frozen=True, slots=True)
class Assumed:
    """A row of the table that a claim about shared noise must come with.

    Attributes:
        others: honest other members of every sum; 0: none, the client's own noise alone.
        epsilon: at the table's delta.
    """

    others: int
    epsilon: float


def table(
    events: Iterable[Event], delta: float, *, discretization: float = STATEMENT_DISCRETIZATION
) -> tuple[Assumed, ...]:
    """Return epsilon by the number of honest others, from what is counted on down to none; where
    many are counted on, of some numbers in between (`rows_of`).

    Raises:
        ConfigurationError: as `epsilon_of`.
    """
    given = tuple(events)
    return tuple(
        Assumed(
            honest - 1,
            epsilon_of(given_honest(given, honest), delta, discretization=discretization),
        )
        for honest in rows_of(counted_on(given))
    )


def rows_of(honest: int) -> tuple[int, ...]:
    """Return the numbers of honest members that a table has rows for, the client among them: all,
    or the first, the last and halves in between.

    >>> rows_of(3), rows_of(40)
    ((3, 2, 1), (40, 20, 10, 5, 4, 3, 2, 1))
    """
    if honest <= _MOST_ROWS:
        return tuple(range(honest, 0, -1))
    halves = [honest]
    while halves[-1] > _FEW:
        halves.append(halves[-1] // 2)
    return tuple(sorted({*halves, *range(1, _FEW + 1)}, reverse=True))


def divergence_of_sum(deviation: float, members: int) -> float:
    """Bound, per value, on the max divergence between the sum of `members` discrete Gaussians of
    parameter `deviation` and one of parameter `deviation` times sqrt(members), in nats.

    Kairouz, Liu and Steinke (2102.06387), section 3: 10 times the sum over k from 1 to members - 1
    of exp(-2 pi^2 deviation^2 k / (k + 1)).

    >>> divergence_of_sum(1.0, 2) < 6e-4 and divergence_of_sum(16.0, 2) == 0.0
    True
    """
    checks.real("deviation", deviation, at_least=0.5)
    count = checks.count("members", members)
    return 10.0 * math.fsum(
        math.exp(-2.0 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, count)
    )


@dataclass(frozen=True, slots=True)
class GridNoise:
    """One member's noise on the grid.

    Attributes:
        deviation: parameter of its discrete Gaussian, in grid steps.
        margin: how much rounding adds to the sensitivity, as a share of it. Noise that is drawn
            elsewhere for the same steps must be larger by as much.
    """

    deviation: float
    margin: float


def deviation_for(noise_multiplier: float, sensitivity: float, values: int) -> GridNoise:
    """Return the noise that a member adds so that `SharedPoissonGaussian` says the truth.

    Args:
        noise_multiplier: the event's, above 0.
        sensitivity: clipping norm of a step's sum, in grid steps.
        values: how many values are rounded to the grid.

    Raises:
        ConfigurationError: the grid is too coarse for so many values.
    """
    noise = checks.real("noise_multiplier", noise_multiplier, above=0.0)
    steps = checks.real("sensitivity", sensitivity, above=0.0)
    # Two vectors at most `steps` apart are at most so much further apart when each value is rounded
    # to the nearest step: each moves by at most half a step.
    margin = math.sqrt(checks.count("values", values)) / steps
    # A hair more, so that no rounding of these doubles is on the wrong side.
    deviation = math.hypot(noise * steps * (1.0 + margin), KERNEL) * (1.0 + 1e-12)
    if margin > MOST_ROUNDING or deviation < LEAST_DEVIATION:
        raise ConfigurationError(
            f"the masking ring leaves too coarse a grid for shared noise: {deviation:.3g} steps a "
            f"standard deviation (at least {LEAST_DEVIATION:g}), rounding {margin:.2g} of the "
            f"sensitivity (at most {MOST_ROUNDING:g}); train fewer values, or in smaller groups"
        )
    return GridNoise(deviation, margin)
