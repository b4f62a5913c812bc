"""Gaussian noise on the integers, drawn exactly: for values that are released on the grid of the
masking ring.

A floating-point Gaussian has holes and bumps in its low bits that tell the sum it was added to
(Mironov 2012; Haney et al. 2112.05307). An integer has no low bits to tell with, if its
distribution is exactly the stated one. Sampling after Canonne, Kamath and Steinke (2004.00010,
algorithms 1 to 3), on whole arrays.

Exactness at speed: each coin compares a 64-bit uniform integer with a probability computed in
float64. Only where the two are closer than float64 can tell (about one coin in a million millions)
the same coin is decided with more bits.

Formal guarantee: adding independent draws with parameter `sigma` to an integer vector of L2
sensitivity `s` satisfies s^2 / (2 sigma^2)-concentrated differential privacy, as the continuous
Gaussian does (theorem 4 there).
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedtree_dp import checks
from fedtree_dp.randomness.noise import NoiseSource

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LARGEST_SIGMA = float(2**40)
_DOUBT = 2.0**-40  # far above float64's error in any probability used here, which is below 2^-45


def discrete_gaussian(n: int, sigma: float, noise: NoiseSource) -> Ints:
    """Draw `n` independent integers x with probability proportional to exp(-x^2 / (2 sigma^2)).

    Args:
        n: how many, at least 0.
        sigma: above 0 and at most 2^40; its float value is taken as an exact fraction. The standard
            deviation is below it where sigma is below 1, and equal to it to 1e-8 from 1.1 on.
        noise: where the coins come from.

    Returns:
        Shape (n,), int64.

    Raises:
        ConfigurationError: a value out of range.
    """
    checks.count("n", n, at_least=0)
    square = Fraction(checks.real("sigma", sigma, above=0, at_most=LARGEST_SIGMA)) ** 2
    scale = math.floor(sigma) + 1
    centre = square / scale

    def exponent(index: int) -> Fraction:
        return (abs(int(proposed[index])) - centre) ** 2 / (2 * square)

    kept: list[Ints] = []
    missing = n
    while missing > 0:
        proposed = _discrete_laplace(missing + missing // 2 + 8, scale, noise)
        approximate = (np.abs(proposed) - float(centre)) ** 2 / float(2 * square)
        kept.append(proposed[_coins(approximate, exponent, noise)][:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def _discrete_laplace(n: int, scale: int, noise: NoiseSource) -> Ints:
    """Draw `n` integers with probability proportional to exp(-|x| / scale)."""
    kept: list[Ints] = []
    missing = n
    while missing > 0:
        low = _below(2 * missing + 8, scale, noise)
        low = low[_coins(low / scale, lambda i, low=low: Fraction(int(low[i]), scale), noise)]  # type: ignore[misc]
        magnitude = low + scale * _geometric(len(low), noise)
        negative = (noise.integers(len(low)) & np.uint64(1)).astype(bool)
        signed = np.where(negative, -magnitude, magnitude)[
            ~(negative & (magnitude == 0))
        ]  # one zero, not two
        kept.append(signed[:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept)


def _below(n: int, limit: int, noise: NoiseSource) -> Ints:
    """Draw `n` uniform integers from 0 to `limit - 1`; words in the last, incomplete block are
    thrown away.
    """
    words = noise.integers(n)
    words = words[words < np.uint64(2**64 - 2**64 % limit)] if 2**64 % limit else words
    return (words % np.uint64(limit)).astype(np.int64)


def _geometric(n: int, noise: NoiseSource) -> Ints:
    """Draw how often a coin with probability exp(-1) comes up before it fails, `n` times."""
    counts = np.zeros(n, dtype=np.int64)
    running = np.arange(n)
    while len(running):
        running = running[_coins(np.ones(len(running)), lambda _: Fraction(1), noise)]
        counts[running] += 1
    return counts


def _coins(
    exponents: Floats, exact: Callable[[int], Fraction], noise: NoiseSource
) -> npt.NDArray[np.bool_]:
    """Flip one coin with probability exp(-exponent) for each entry.

    Args:
        exponents: at least 0, accurate to 2^-45.
        exact: the exact exponent of an entry, for the few coins that float64 cannot decide.
        noise: where the coins come from.
    """
    words = noise.integers(len(exponents))
    margin = words.astype(np.float64) * 2.0**-64 - np.exp(-exponents)
    heads = margin < 0
    for index in np.flatnonzero(np.abs(margin) < _DOUBT):
        heads[index] = _decide(int(words[index]), exact(int(index)), noise)
    return np.asarray(heads)


def _decide(word: int, exponent: Fraction, noise: NoiseSource) -> bool:
    """Say whether a uniform number with `word` as its first 64 bits is below exp(-exponent),
    drawing bits as needed.
    """
    bits = 64
    while True:
        with decimal.localcontext() as context:
            context.prec = bits // 3 + 20  # decimal digits; each exceeds three bits
            power = (
                -decimal.Decimal(exponent.numerator) / decimal.Decimal(exponent.denominator)
            ).exp()
            low, high = (
                int((power * 2**bits + slack).to_integral_value(decimal.ROUND_FLOOR))
                for slack in (-1, 1)
            )
        if word < low:
            return True
        if word > high:
            return False
        word, bits = (word << 64) | int.from_bytes(noise.bytes(8), "big"), bits + 64
