"""Gaussian projections that come out bit for bit the same on every machine.

Box-Muller over an AES-256-CTR stream. Library logarithms and sines differ in the last bit between
processors; so they are built here from operations that IEEE 754 rounds exactly (+ - * / sqrt,
powers of two), and products are summed in a fixed order. Accuracy: a few units in the last place of
float64.
"""

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedtree_secagg.primitives.secret import Unprintable

BLOCK = 256  # columns of the projection made at a time

Floats = npt.NDArray[np.float64]


class Projection(Unprintable):
    """A secret Gaussian matrix of shape (size, dimension), made block by block as it is applied."""

    __slots__ = ("_key", "_size")

    def __init__(self, key: bytes, size: int) -> None:
        self._key = key
        self._size = size

    def apply(self, vector: npt.NDArray[np.floating[npt.NBitBase]]) -> Floats:
        """Return P x, shape (size,), for x of shape (d,); memory: a few blocks of size * 256."""
        stream = Cipher(algorithms.AES(self._key), modes.CTR(bytes(16))).encryptor()
        total = np.zeros(self._size)
        for start in range(0, len(vector), BLOCK):
            part = np.zeros(BLOCK)
            chunk = vector[start : start + BLOCK]
            part[: len(chunk)] = chunk
            words = np.frombuffer(stream.update(bytes(8 * self._size * BLOCK)), "<u8")
            total += _fold(normals(words).reshape(self._size, BLOCK) * part)
        return total


def normals(words: npt.NDArray[np.uint64]) -> Floats:
    """Return as many standard normal values as there are uniform 64-bit words (an even number).

    The first half of the words gives radii, the second half angles; the result is all cosines, then
    all sines.
    """
    half = len(words) // 2
    uniform = (words >> np.uint64(11)).astype(np.float64)
    radius = np.sqrt(-2.0 * _log((uniform[:half] + 1.0) * 2.0**-53))
    cosine, sine = _turn(uniform[half:] * 2.0**-53)
    return np.concatenate([radius * cosine, radius * sine])


def _log(value: Floats) -> Floats:
    """Natural logarithm of values in (0, 1], by 2 artanh((m - 1) / (m + 1)) of the mantissa."""
    mantissa, exponent = np.frexp(value)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(square, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * math.log(2.0) + 2.0 * (s * series)


def _turn(turns: Floats) -> tuple[Floats, Floats]:
    """Cosine and sine of 2 pi t for t in [0, 1): Taylor series in the nearest quadrant."""
    quadrant = np.floor(4.0 * turns + 0.5)
    angle = (turns - 0.25 * quadrant) * (2.0 * math.pi)  # in [-pi/4, pi/4]; the difference is exact
    square = angle * angle
    sine, cosine = np.full_like(square, 1.0), np.full_like(square, 1.0)
    for k in range(16, 0, -2):
        cosine = 1.0 - square / float(k * (k - 1)) * cosine
        sine = 1.0 - square / float(k * (k + 1)) * sine
    sine = sine * angle
    index = quadrant.astype(np.int64) & 3
    odd = (index & 1) == 1
    x, y = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return np.where((index == 1) | (index == 2), -x, x), np.where(index >= 2, -y, y)


def _fold(products: Floats) -> Floats:
    """Sum rows of BLOCK products by halving, an order that no library changes."""
    while products.shape[1] > 1:
        half = products.shape[1] // 2
        products = products[:, :half] + products[:, half:]
    return products[:, 0]
