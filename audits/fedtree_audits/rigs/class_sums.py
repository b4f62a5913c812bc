"""What `replay` measures of class sums: the shipped release, on rows that differ by one record or
unit, and builds of it that are broken on purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import Check
from fedtree_dp import NoiseSource
from fedtree_secure.testing import Centred, Table, release_sums

ROWS, WIDTH, CLASSES, DRAWS = 24, 20, 3, 16
NOISE = 2.0
ROUNDING = 1e-9  # of the exact sums, which are read as floats
Released = Callable[[torch.Tensor, Table, NoiseSource, float], Floats]
"""Turns features, labels and units into what is uploaded, with noise of a size."""


def shipped(features: torch.Tensor, table: Table, noise: NoiseSource, size: float) -> Floats:
    """Release what members of a group of heads release, over one record."""
    head = Centred(torch.nn.Linear(WIDTH, CLASSES), (torch.ones(WIDTH), 3.0))
    released = release_sums(*(features, table, head), records=1, noise_multiplier=size, noise=noise)
    return np.asarray(released)


def checks(release: Released, key: bytes) -> list[Check]:
    """Compare releases on neighbouring rows, of records and of units, and measure the noise."""
    features, table = _rows(key)
    units = replace(table, units=np.arange(ROWS) // 6)
    return [
        _moves(release, key, "record", features, table, np.arange(ROWS)),
        _moves(release, key, "unit", features, units, np.arange(ROWS) // 6),
        _noise(release, key, features, table),
    ]


def _rows(key: bytes) -> tuple[torch.Tensor, Table]:
    """Rows of all lengths; those of a unit are alike, which is the worst case."""
    rng = np.random.default_rng(list(hashlib.sha256(b"class sums" + key).digest()[:8]))
    directions = np.repeat(rng.normal(size=(ROWS // 6, WIDTH)), 6, axis=0)
    features = directions * 10.0 ** rng.integers(-2, 4, size=(ROWS, 1))
    labels = np.repeat(rng.integers(CLASSES, size=ROWS // 6), 6)
    return torch.from_numpy(features).float() + 1.0, Table(((1,),) * ROWS, labels)


def _moves(
    release: Released,
    key: bytes,
    what: str,
    features: torch.Tensor,
    table: Table,
    of: Any,
) -> Check:
    """The largest move by one record or unit less, noise the same."""

    def given(kept: Any) -> Floats:
        rows = np.flatnonzero(kept)
        assert table.labels is not None
        less = Table(
            tuple(table.tokens[i] for i in rows),
            table.labels[rows],
            None if table.units is None else table.units[rows],
        )
        return release(features[rows], less, NoiseSource(key), NOISE)

    every = given(np.ones(ROWS))
    moved = max(float(np.linalg.norm(every - given(of != one))) for one in np.unique(of))
    return Check(
        f"class sums: one {what} less",
        moved <= 1 + ROUNDING,
        f"moves all sums together by up to {moved:.9g}",
    )


def _noise(release: Released, key: bytes, features: torch.Tensor, table: Table) -> Check:
    draws = np.stack(
        [
            release(features, table, NoiseSource(hashlib.sha256(key + bytes([i])).digest()), NOISE)
            for i in range(DRAWS)
        ]
    )
    n = draws.size - draws[0].size
    ratio = float(((draws - draws.mean(axis=0)) ** 2).sum()) / NOISE**2
    p_value = 2 * min(float(stats.chi2.cdf(ratio, n)), float(stats.chi2.sf(ratio, n)))
    return Check.test(
        "class sums: noise", p_value, f"{ratio / n:.4f} of the accounted variance over {n} values"
    )


# --- broken builds --------------------------------------------------------------------------------


def unclipped(features: torch.Tensor, table: Table, noise: NoiseSource, size: float) -> Floats:
    """Add features up as they are."""
    assert table.labels is not None
    sums = np.zeros((CLASSES, WIDTH))
    np.add.at(sums, table.labels, features.double().numpy())
    counts = np.bincount(table.labels, minlength=CLASSES)
    flat = np.concatenate([sums.reshape(-1), counts])
    return np.asarray(flat + noise.normal(flat.size, size, torch.float64).numpy())


def without_noise(features: torch.Tensor, table: Table, noise: NoiseSource, size: float) -> Floats:
    """Leave the noise out."""
    del size
    return shipped(features, table, noise, 0.0)


def half_the_noise(features: torch.Tensor, table: Table, noise: NoiseSource, size: float) -> Floats:
    """Add half of what was charged."""
    return shipped(features, table, noise, size / 2)


def without_units(features: torch.Tensor, table: Table, noise: NoiseSource, size: float) -> Floats:
    """Bound each record of a unit by itself."""
    return shipped(features, replace(table, units=None), noise, size)


BROKEN: dict[str, Released] = {
    "class sums not clipped": unclipped,
    "class sums without noise": without_noise,
    "class sums with half the noise": half_the_noise,
    "class sums of records called units": without_units,
}
