"""Canary scores: checked once, and turned into a number of guesses that was fixed beforehand.

A canary is a record (or direction) whose membership was decided by a fair coin. The attack gives
each canary a score, larger for "was in the training data". What is never done here: to choose a
threshold on the scores that are then counted with it. That is how a "95%" bound comes to be
violated in 31% of null runs (AUDITS.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtree_audits.errors import ScoresError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FEWEST_CANARIES = 20


@dataclass(frozen=True)
class Scores:
    """Scores of canaries and the coins that decided their membership.

    Attributes:
        values: shape (canaries,), finite; larger means "member".
        included: shape (canaries,), the coins.
    """

    values: Floats
    included: Bools

    @property
    def members(self) -> Floats:
        """Scores of the canaries that were in."""
        return self.values[self.included]

    @property
    def others(self) -> Floats:
        """Scores of the canaries that were not."""
        return self.values[~self.included]


def scores(values: npt.ArrayLike, included: npt.ArrayLike) -> Scores:
    """Check scores and coins.

    Raises:
        ScoresError: shapes differ, a value is not finite, all values are equal, fewer than 20
            canaries, or canaries of one kind only.
    """
    given, coins = np.asarray(values, dtype=np.float64), np.asarray(included)
    if given.ndim != 1 or coins.shape != given.shape:
        raise ScoresError(
            f"scores {given.shape} and memberships {coins.shape} must be vectors of one length"
        )
    if coins.dtype != np.bool_:
        raise ScoresError(f"memberships must be booleans, not {coins.dtype}")
    if len(given) < FEWEST_CANARIES:
        raise ScoresError(
            f"{len(given)} canaries are too few for any bound; use at least {FEWEST_CANARIES}"
        )
    if not np.isfinite(given).all():
        raise ScoresError(
            f"{int((~np.isfinite(given)).sum())} scores are not finite; an attack must score each "
            "canary"
        )
    if coins.all() or not coins.any():
        kind = "members" if coins.all() else "non-members"
        raise ScoresError(
            f"all {len(given)} canaries are {kind}; memberships must come from independent fair "
            "coins"
        )
    if np.ptp(given) == 0:
        raise ScoresError(
            f"all {len(given)} scores are equal ({given[0]:g}); the attack tells nothing apart"
        )
    return Scores(given, coins)


@dataclass(frozen=True)
class Guesses:
    """Outcome of a fixed number of guesses.

    Attributes:
        canaries: m, coins tossed.
        made: r, guesses; the others are abstentions.
        correct: v.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.made < 1:
            raise ScoresError(
                f"{self.correct} correct of {self.made} guesses on {self.canaries} canaries; "
                "needed: 0 <= correct <= made <= canaries and at least one guess"
            )


def guess(given: Scores, made: int, *, order: np.random.Generator) -> Guesses:
    """Guess "in" for the highest and "out" for the lowest scores, half each.

    Args:
        given: checked scores.
        made: number of guesses, fixed before the scores were seen, 2 to the number of canaries.
        order: breaks ties without regard to membership.

    Raises:
        ScoresError: `made` is out of range.
    """
    count = len(given.values)
    if not 2 <= made <= count:
        raise ScoresError(f"{made} guesses on {count} canaries; allowed: 2 to {count}")
    shuffled = order.permutation(count)
    ranked = shuffled[np.argsort(given.values[shuffled], kind="stable")]
    low, high = ranked[: made // 2], ranked[count - (made - made // 2) :]
    correct = int((~given.included[low]).sum() + given.included[high].sum())
    return Guesses(count, made, correct)


def hold_out(given: Scores, share: float, *, order: np.random.Generator) -> tuple[Scores, Scores]:
    """Split canaries at random into those that choose a threshold and those that are counted with
    it.

    Args:
        share: part that chooses, above 0 and below 1.

    Raises:
        ScoresError: a share out of range, or a part that is too small or of one kind.
    """
    if not 0 < share < 1:
        raise ScoresError(f"share is {share!r}; allowed: above 0 and below 1")
    mixed = order.permutation(len(given.values))
    cut = round(share * len(mixed))
    first, second = (
        scores(given.values[part], given.included[part]) for part in (mixed[:cut], mixed[cut:])
    )
    return first, second
