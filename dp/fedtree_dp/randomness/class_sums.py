"""One release of sums by class: of bounded vectors, and of how many records there were of each.

A linear head can be made from nothing else, and one release costs no steps. A record adds one
vector of norm 1 to its class and nothing to the others, so it moves all sums together by at most
1, whatever its values are and whatever number of classes there is.

Everything is added up as whole numbers of a grid, so that the sum of some records has the same
bits whatever others there are and in whatever order; the noise is the exact discrete Gaussian.
SPEC.md, section 11.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedtree_dp.checks import count, real
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.discrete import discrete_gaussian
from fedtree_dp.randomness.noise import NoiseSource

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRID = 2.0**-20  # of a record's norm; a thousand steps and more are one deviation above .001
LEAST_NOISE = 2.0**-10  # of which `GRID` still has 1,024 steps
MOST_RECORDS = 2**40  # their sum fits into 62 bits
_ROOM = 1.0 - 2.0**-30  # for the rounding of norms in float64; whole numbers are cut towards zero
_BLOCK = 4096  # rows that are spread out at once


def class_sums(
    vectors: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    classes: int,
    *,
    count_share: float,
    noise_multiplier: float,
    noise: NoiseSource,
    units: npt.NDArray[np.integer] | None = None,
) -> Floats:
    """Release, for each class, the sum of its records' vectors and their number.

    Formal guarantee: adding or removing one record (one whole unit, where there are any) moves the
        sums by a vector of norm at most 1, exactly, so the result is one Gaussian event with
        `noise_multiplier`, whatever the records hold: a row with a NaN or an infinity, and its
        label with it, counts as nothing.

    Args:
        vectors: shape (records, d), one row a record, of any norm; each is scaled to norm 1, and a
            row of zeros stays one.
        labels: shape (records,), from 0.
        classes: a public number, at least 1.
        count_share: part of a record's norm that says that it is there, above 0 and below 1; its
            vector has the rest, sqrt(1 - count_share^2).
        noise_multiplier: standard deviation of the noise in each value. 0 is no privacy.
        noise: where the noise comes from.
        units: shape (records,), number of each record's unit. What has a norm of at most 1 is then
            the sum over a unit's records, all classes together.

    Returns:
        Shape (classes, d + 1): sums of vectors times their share of a record's norm, then numbers
        of records times `count_share`; multiples of `GRID`.

    Raises:
        ConfigurationError: a value out of range, or shapes that do not fit.
    """
    number = count("classes", classes)
    share = real("count_share", count_share, above=0, below=1)
    sigma = real("noise_multiplier", noise_multiplier, at_least=0)
    if 0 < sigma < LEAST_NOISE:
        raise ConfigurationError(
            f"noise_multiplier is {sigma:g}; allowed: 0, or at least {LEAST_NOISE:g}, which the "
            "grid of the sums resolves"
        )
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1]:
        raise ConfigurationError(
            f"vectors of the shape {vectors.shape} and labels of {labels.shape}; allowed: "
            "(records, d) and (records,)"
        )
    if len(labels) > MOST_RECORDS or ((labels < 0) | (labels >= number)).any():
        raise ConfigurationError(f"labels must be from 0 to {number - 1}, one for each record")
    who = np.arange(len(labels)) if units is None else np.asarray(units)
    if who.shape != labels.shape:
        raise ConfigurationError(f"units of the shape {who.shape}; allowed: {labels.shape}")
    total = np.zeros((number, vectors.shape[1] + 1), dtype=np.int64)
    for rows in _blocks(who):
        _add(total, _records(vectors[rows], share), np.asarray(labels)[rows], who[rows])
    if sigma:
        drawn = discrete_gaussian(total.size, sigma / GRID, noise)
        total += drawn.reshape(total.shape)
    return np.asarray(total * GRID)


def _blocks(units: npt.NDArray[np.integer]) -> list[Ints]:
    """Rows in blocks of whole units, each unit's in their own order."""
    order = np.argsort(units, kind="stable")
    ends = np.flatnonzero(np.diff(units[order])) + 1
    found, begin = [], 0
    for end in (*ends[ends > 0], len(order)):
        if end - begin >= _BLOCK or end == len(order):
            found.append(order[begin:end])
            begin = end
    return found


def _add(
    total: Ints,
    rows: Floats,
    labels: npt.NDArray[np.integer],
    units: npt.NDArray[np.integer],
) -> None:
    """Add what some whole units contribute; a unit's terms are the same whoever is beside it."""
    pairs, of = np.unique(np.stack([units, labels], axis=1), axis=0, return_inverse=True)
    sums = np.zeros((len(pairs), rows.shape[1]))
    np.add.at(sums, of.reshape(-1), rows)
    who, of = np.unique(pairs[:, 0], return_inverse=True)
    squares = np.zeros(len(who))
    np.add.at(squares, of.reshape(-1), (sums**2).sum(axis=1))
    factor = _ROOM / np.maximum(np.sqrt(squares), 1.0)
    whole = np.trunc(sums * (factor[of.reshape(-1), None] / GRID)).astype(np.int64)
    np.add.at(total, pairs[:, 1], whole)


def _records(vectors: npt.NDArray[np.floating], count_share: float) -> Floats:
    """Return each record's joint vector: of norm 1, of `count_share` where its own is zero, and of
    zeros where its own is not finite.
    """
    rows = np.array(vectors, dtype=np.float64)
    known = np.isfinite(rows).all(axis=1)
    rows[~known] = 0.0
    # Dividing by the largest entry first keeps the squares of finite rows finite.
    largest = np.abs(rows).max(axis=1, initial=0.0)
    rows /= np.where(largest > 0, largest, 1.0)[:, None]
    length = np.sqrt((rows**2).sum(axis=1))
    rows *= (math.sqrt(1.0 - count_share**2) / np.where(length > 0, length, 1.0))[:, None]
    return np.concatenate([rows, np.where(known, count_share, 0.0)[:, None]], axis=1)
