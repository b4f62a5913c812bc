"""Recompute the epsilon of a run from its ledgers, with nothing of this project.

    python examples/check_epsilon.py runs/demo

For who does not want to believe an accountant: the standard library, numpy and scipy's normal
distribution, on 170 lines. It reads `ledgers/*.sqlite`, checks the chain of hashes (dp/SPEC.md,
section 4), composes the privacy losses of all charges on a grid by FFT (Koskela et al. 2020), and
holds the result against `summary.json`. Every loss is rounded up to the grid, so that the upper end
of the printed interval is a bound; rounding down instead gives the lower end.

The exit code is 0 if every claim lies in its interval or above it, and nobody's lower end is above
what the job promises that client, else 1. Whether events are those that a client really ran is
another question: `fedtree-secure audit accounted`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr

TAG = b"fedtree-dp/ledger/v1\n"  # in front of every line that is hashed
GAP = 2e-3  # most that rounding may cost, where the grid has room for it
POINTS = 2**22
SLACK = 1e-4  # share of delta that may lie beyond the grid
SMALLEST = 1e-10  # FFT's rounding is far below this delta, and not below smaller ones

Step = tuple[float, float, int]  # noise multiplier, sample rate, steps


def steps_of(event: dict) -> Step:
    """Return a charge as steps of the Poisson-subsampled Gaussian mechanism."""
    kind, noise = event["mechanism"], float(event["noise_multiplier"])
    if kind == "gaussian":
        return noise, 1.0, 1
    if kind == "poisson_gaussian":
        return noise, float(event["sample_rate"]), int(event["steps"])
    if kind == "shared_poisson_gaussian":  # while so many honest members add their noise
        return noise * math.sqrt(event["honest"]), float(event["sample_rate"]), int(event["steps"])
    raise SystemExit(f"this script does not know the mechanism {kind!r}")


def charges_of(path: Path) -> tuple[list[Step], dict]:
    """Return a ledger's charges and its budget, after a look at its chain."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        lines = connection.execute("SELECT body, hash FROM entries ORDER BY sequence").fetchall()
    finally:
        connection.close()
    before, found, budget = "00" * 32, [], {}
    for body, stored in lines:
        line = json.loads(body)
        if hashlib.sha256(TAG + body).digest() != stored or line["previous"] != before:
            raise SystemExit(f"{path}: line {line['sequence']} breaks the chain")
        before = stored.hex()
        budget = line.get("budget", budget)
        if "event" in line:
            found.append(steps_of(line["event"]))
    return found, budget


def at_most(loss: np.ndarray, noise: float, rate: float, *, added: bool) -> np.ndarray:
    """Return P(privacy loss <= loss) of one step, for a record that is added or one removed.

    With x the sum's coordinate along the record, in units of the clipping norm, the loss of a
    removed record at x is log(1 - q + q exp((2 x - 1) / (2 sigma^2))), which grows with x.
    """
    ratio = (np.exp(-loss if added else loss) - (1 - rate)) / rate
    with np.errstate(divide="ignore", invalid="ignore"):
        x = noise**2 * np.log(np.maximum(ratio, 0.0)) + 0.5
    without, with_it = ndtr(x / noise), ndtr((x - 1) / noise)
    return 1 - without if added else (1 - rate) * without + rate * with_it


def composed(steps: Sequence[Step], width: float, half: int, *, added: bool) -> np.ndarray:
    """Return the distribution of the summed loss at (-half .. half - 1) * width, rounded up; what
    lies above the grid is missing from it.
    """
    grid = np.arange(-half, half) * width
    spectrum: np.ndarray | float = 1.0
    for noise, rate, count in steps:
        mass = np.diff(at_most(grid, noise, rate, added=added), prepend=0.0)
        spectrum = spectrum * np.fft.rfft(np.fft.ifftshift(mass)) ** count
    return np.fft.fftshift(np.fft.irfft(spectrum, 2 * half))


def tail(steps: Sequence[Step], width: float, half: int, *, added: bool) -> float:
    """Bound the mass of the summed loss beyond half of the grid, on both sides (Chernoff)."""
    reach, found = width * half, 0.0
    grid = np.arange(-half, half, max(1, half // 2**14)) * width
    for sign in (1.0, -1.0):
        best = math.inf
        for rate_of_growth in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            total = -rate_of_growth * reach
            for noise, rate, count in steps:
                cumulated = at_most(grid, noise, rate, added=added)
                mass = np.diff(cumulated, prepend=0.0)
                worst = sign * grid + (grid[1] - grid[0])  # rounded against us
                if sign > 0 and rate_of_growth == 0.5:
                    found += count * (1 - cumulated[-1])  # losses beyond the whole grid
                with np.errstate(divide="ignore"):
                    power = np.log(mass.clip(min=0)) + rate_of_growth * worst
                largest = power.max()
                total += count * (largest + math.log(np.exp(power - largest).sum()))
            best = min(best, math.exp(min(total, 0.0)))
        found += best
    return found


def epsilon(steps: Sequence[Step], delta: float) -> tuple[float, float]:
    """Return bounds on the epsilon of all steps together, lower and upper."""
    if not steps:
        return 0.0, 0.0
    if delta < SMALLEST or min(noise for noise, _, _ in steps) <= 0:
        raise SystemExit(f"delta {delta:g} is too small for this script, or a charge has no noise")
    number = sum(count for _, _, count in steps)
    upper = 0.0
    for added in (False, True):
        reach = 16.0
        while tail(steps, reach / 2**15, 2**15, added=added) > SLACK * delta:
            reach *= 1.5
        half = 2 ** math.ceil(math.log2(min(POINTS / 2, reach * number / GAP)))
        width = reach / half
        mass = composed(steps, width, half, added=added)
        grid = np.arange(-half, half) * width
        low, high = 0.0, reach
        while high - low > 1e-6:
            middle = (low + high) / 2
            above = grid > middle
            excess = float((mass[above] * -np.expm1(middle - grid[above])).sum())
            low, high = (middle, high) if excess + SLACK * delta > delta else (low, middle)
        if high > upper:
            upper, gap = high, width * number
    return max(0.0, upper - gap), upper


def main(folder: Path) -> int:
    """Print a line for each client; return the exit code."""
    if not (folder / "summary.json").is_file():
        raise SystemExit(f"{folder} has no summary.json; name the folder of a finished run")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    job, wrong, bounds = summary["job"], 0, functools.cache(epsilon)
    for name, claim in summary["clients"].items():
        steps, budget = charges_of(folder / "ledgers" / f"{claim['dataset']}.sqlite")
        low, high = bounds(tuple(steps), budget["delta"])
        promise = job.get("budgets", {}).get(name, job["privacy"])
        least, _ = bounds(tuple(steps), promise["delta"])
        holds, kept = claim["epsilon_spent"] >= low, least <= promise["epsilon"]
        wrong += not (holds and kept)
        print(
            f"{name}: {len(steps)} charges, epsilon {low:.4f} to {high:.4f} at delta "
            f"{budget['delta']:g}; claimed {claim['epsilon_spent']:.4f}"
            f"{'' if holds else ' IS TOO LOW'} of {promise['epsilon']:g} promised"
            f"{'' if kept else ', WHICH IS NOT KEPT'}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
