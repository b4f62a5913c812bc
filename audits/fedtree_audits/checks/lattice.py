"""Audit `lattice`: whether low bits of released values tell the sum that noise was added to.

A float that is "value plus noise" can be reached from few values only, and its low bits say which
(Mironov 2012; Haney et al. 2112.05307). What leaves a client here are integers: noised, then
rounded at random to the masking ring's grid. Two questions. Are all decoded sums on the grid,
whatever went in? And is the law on the grid the stated one: stochastic rounding right in mean and
variance for values anywhere between two grid points, the integer Gaussian that
`fedtree_dp.discrete_gaussian` draws by chi-square?
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, SIGNIFICANCE, Check, Power, Result
from fedtree_dp import Gaussian, NoiseSource, discrete_gaussian, epsilon_of
from fedtree_secagg import Quantiser
from fedtree_secure.testing import grid_bits, largest_change

QUESTION = "Do float bits leak?"
VALUES, DRAWS, SIGMA = 20_000, 40_000, 3.7
REACH = math.ceil(3 * SIGMA)
DELTA = 1e-5  # of the power statement
OFF_GRID = 1e-9  # in grid steps: what float64 decoding itself may add
Release = Callable[[Quantiser, Floats, bytes], Floats]
"""Turns noised values into what leaves the client, in the units of the update."""
Draw = Callable[[int, float, NoiseSource], np.ndarray[tuple[int], np.dtype[np.int64]]]


def shipped(grid: Quantiser, values: Floats, key: bytes) -> Floats:
    """Release as clients do: rounded to the ring's integers, decoded as the server does."""
    return grid.decode(grid.quantise(values, key).astype(np.int64))


def audit_grid(
    grid: Quantiser,
    key: bytes,
    *,
    release: Release = shipped,
    draw: Draw = discrete_gaussian,
    hashes: dict[str, str] | None = None,
) -> Result:
    """Audit what is released on one grid.

    Args:
        grid: of the masking plan.
        key: 32 bytes for values and rounding; its hash is reported.
        release, draw: what is measured.
        hashes: of the files the grid came from.
    """
    source = NoiseSource(hashlib.sha256(b"lattice" + key).digest())
    values = np.clip(source.normal(VALUES, grid.clip / 8).double().numpy(), -grid.clip, grid.clip)
    released = release(grid, values, key)
    steps = released / grid.step
    off = float((np.abs(steps - np.rint(steps)) > OFF_GRID * np.maximum(1.0, np.abs(steps))).mean())
    checks = [
        Check("on the grid", off == 0.0, f"{off:.2%} of {VALUES} released values lie off the grid")
    ]
    checks += _rounding(values / grid.step, steps)
    checks.append(_discrete_law(draw(DRAWS, SIGMA, source)))
    return Result(
        audit="lattice",
        question=QUESTION,
        claim=f"released values are multiples of {grid.step:.3g}, rounded without bias",
        adversary="server: reads every bit of what is opened",
        assumptions=(
            "the installed quantiser and sampler are the ones that ran",
            (
                "noise is Gaussian in float before rounding; rounding hides its low bits, which is "
                "post-processing"
            ),
        ),
        checks=checks,
        power=_power(),
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | (hashes or {}),
        figures={"off_grid": off, "grid_step": grid.step},
    )


def audit_run(run: RunFolder) -> Result:
    """Audit the grid that the run's plan uses."""
    plans = {client: run.noise_plan(client) for client in run.clients}
    records = {
        client: given.get("records") or run.job.training.records
        for client, given in run.clients.items()
    }
    clip = max(largest_change(run.job, plans[c].rounds, records[c], merge=False) for c in plans)
    bits = grid_bits(run.job, clip, max(2, len(plans)), merge=False)
    grid = Quantiser(clip=clip, bits=bits, saturate=True)
    return audit_grid(grid, os.urandom(32), hashes=run.hashes("job.json"))


def _rounding(wanted: Floats, given: Floats) -> list[Check]:
    """Stochastic rounding of x is floor(x) + Bernoulli(x - floor(x)): error 0 in mean, f (1 - f) in
    variance.
    """
    part = wanted - np.floor(wanted)
    error, variance = given - wanted, part * (1 - part)
    z = float(error.sum() / math.sqrt(variance.sum()))
    spread = float(
        (error**2 - variance).sum() / math.sqrt((variance * (1 - 2 * part) ** 2).sum() + 1e-12)
    )
    return [
        Check.test(
            "rounding without bias",
            2 * float(stats.norm.sf(abs(z))),
            f"mean error {z:.2f} standard errors",
        ),
        Check.test(
            "rounding at random",
            2 * float(stats.norm.sf(abs(spread))),
            f"its variance {spread:.2f} off",
        ),
    ]


def _discrete_law(drawn: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Check:
    """Chi-square against probabilities proportional to exp(-x^2 / 2 sigma^2), tails pooled."""
    whole = np.rint(drawn)
    if not np.array_equal(whole, drawn):
        return Check("integer Gaussian", holds=False, detail="draws are not integers")
    expected = _cells(SIGMA) * len(drawn)
    seen = np.bincount(
        np.clip(whole.astype(np.int64), -REACH, REACH) + REACH, minlength=2 * REACH + 1
    )
    p_value = float(stats.chisquare(seen, expected).pvalue)
    return Check.test(
        "integer Gaussian", p_value, f"chi-square over {len(expected)} cells, {len(drawn)} draws"
    )


def _cells(sigma: float) -> Floats:
    """Probabilities of the integers -REACH to REACH, tails pooled into the outermost, shape (2
    REACH + 1,).
    """
    points = np.arange(-4 * REACH, 4 * REACH + 1)
    mass = np.exp(-(points**2) / (2 * sigma**2))
    return np.asarray(np.bincount(np.clip(points, -REACH, REACH) + REACH, mass / mass.sum()))


@functools.lru_cache(maxsize=1)
def _power() -> Power:
    """Of the chi-square (noncentral under another scale): the largest smaller scale that it notices
    in 9 of 10 runs.
    """
    wanted = _cells(SIGMA)
    critical = stats.chi2.isf(SIGNIFICANCE, len(wanted) - 1)

    def lacking(sigma: float) -> float:
        shift = DRAWS * float(((_cells(sigma) - wanted) ** 2 / wanted).sum())
        return float(stats.ncx2.sf(critical, len(wanted) - 1, shift)) - POWER

    found = float(brentq(lacking, SIGMA / 2, 0.999 * SIGMA))
    claim, detected = (epsilon_of([Gaussian(sigma)], DELTA) for sigma in (SIGMA, found))
    off = 1 - (1 - POWER) ** (1 / VALUES)
    how = (
        f"integer Gaussian of scale {found:.4g} in place of {SIGMA:g}; "
        f"of values off the grid a share of {off:.1e}"
    )
    return Power(claim, detected, how, quantity="epsilon of one release of sensitivity 1")


# --- self-test ------------------------------------------------------------------------------------


def _float32(grid: Quantiser, values: Floats, key: bytes) -> Floats:
    del grid, key
    return values.astype(np.float32).astype(np.float64)


def _nearest(grid: Quantiser, values: Floats, key: bytes) -> Floats:
    del key
    return np.asarray(np.rint(values / grid.step) * grid.step)


def _downwards(grid: Quantiser, values: Floats, key: bytes) -> Floats:
    del key
    return np.asarray(np.floor(values / grid.step) * grid.step)


def _rounded_normal(
    n: int, sigma: float, noise: NoiseSource
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    coarse = (
        np.rint(noise.normal(n, 1.0).numpy() * 2) / 2
    )  # half a standard deviation: a table that is too short
    return np.asarray(np.rint(coarse * sigma).astype(np.int64))


def _variant(release: Release = shipped, draw: Draw = discrete_gaussian) -> Variant:
    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"lattice/{seed}".encode()).digest()
        return audit_grid(
            Quantiser(clip=1.5, bits=28, saturate=True), key, release=release, draw=draw
        )

    return variant


AUDIT = Audit(
    name="lattice",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(),
    mutants={
        "float32 noise": _variant(_float32),
        "rounded to nearest": _variant(_nearest),
        "rounded down": _variant(_downwards),
        "coarse noise table": _variant(draw=_rounded_normal),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
