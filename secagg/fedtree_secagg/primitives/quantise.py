"""From floats to the integer grid of the ring and back.

A value x in [-clip, clip] becomes an integer near x * (2^(bits-1) - 1) / clip, rounded up with the
probability of its fractional part (stochastic rounding: unbiased, error below one step). The random
bits come from an AES-256-CTR stream of the step's own randomness, 32 bits a value. Sums of such
integers are exact, so the server's sum is bit for bit the plain sum of what the clients quantised.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedtree_secagg.errors import ConfigurationError

# Values: enough that numpy's calls cost nothing, few enough for the second-level cache.
CHUNK = 1 << 16


@dataclass(frozen=True)
class Quantiser:
    """The fixed-point grid that all clients of a plan share.

    Args:
        clip: largest magnitude of a value, in the units of the update; finite and positive.
        bits: width of a quantised value with its sign, 2 to 31. `Plan` checks that n such values
            fit into the ring.
        saturate: what happens to values beyond the clip. False (default): the update is refused,
            because silent clipping hides a wrong clip and changes the sensitivity that a privacy
            proof was made for. True: they are set to the nearest end of the range; for applications
            that add unbounded noise after clipping, whose rare large values are allowed to be cut
            (cutting is post-processing of the noised update).
    """

    clip: float
    bits: int
    saturate: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigurationError(
                f"quantiser: clip is {self.clip}; give a finite positive number"
            )
        if not 2 <= self.bits <= 31:
            raise ConfigurationError(f"quantiser: bits is {self.bits}; give 2 to 31")
        if not 0 < self.scale < 2.0**1000:
            raise ConfigurationError(
                f"quantiser: clip {self.clip} leaves no usable grid; rescale the update"
            )

    @property
    def max_integer(self) -> int:
        """Largest magnitude of a quantised value."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def scale(self) -> float:
        """Grid steps per unit."""
        return self.max_integer / self.clip

    @property
    def step(self) -> float:
        """Size of a grid step in units of the update: no quantised value is further off."""
        return self.clip / self.max_integer

    def quantise(self, values: npt.NDArray[Any], key: bytes) -> npt.NDArray[np.int32]:
        """Return the stochastically rounded integers of a vector.

        Args:
            values: shape (n,), float32 or float64.
            key: 32 bytes, used for this vector only.

        Raises:
            ConfigurationError: a value is nan or infinite, or beyond the clip while `saturate` is
                off.
        """
        out = np.empty(values.shape, np.int32)
        self.quantise_into(out, values, key)
        return out

    def quantise_into(self, out: npt.NDArray[Any], values: npt.NDArray[Any], key: bytes) -> None:
        """Write the integers into a vector of any integer type; narrow ones keep the low bits."""
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        size = min(CHUNK, len(values))
        zeros, random = bytes(4 * size), bytearray(4 * size)
        grid, wide = np.empty(size), np.empty(size, np.int64)
        for start in range(0, len(values), CHUNK):
            chunk = self._checked(values[start : start + CHUNK])
            count = len(chunk)
            stream.update_into(memoryview(zeros)[: 4 * count], random)
            # The integer part moves to the upper 32 bits, the fraction to the lower; adding 32
            # uniform bits carries into the integer part with the probability of the fraction. Exact
            # for |x| = clip: its fraction is zero.
            grid[:count] = chunk  # float32 times float64 in one pass is slower
            grid[:count] *= self.scale * 2.0**32
            # The product may be rounded to one ulp beyond the last grid point.
            if self.clip * (self.scale * 2.0**32) > self._limit:
                np.clip(grid[:count], -self._limit, self._limit, out=grid[:count])
            wide[:count] = grid[:count]
            wide[:count] += np.frombuffer(random, "<u4", count)
            out[start : start + count] = wide[:count].view("<i4")[1::2]  # the upper halves

    def decode(self, integers: npt.NDArray[np.signedinteger[Any]]) -> npt.NDArray[np.float64]:
        """Return integers of the grid, or sums of them, in the units of the update."""
        values: npt.NDArray[np.float64] = np.multiply(integers, self.step, dtype=np.float64)
        return values

    @property
    def _limit(self) -> float:
        return self.max_integer * 2.0**32

    def _checked(self, chunk: npt.NDArray[Any]) -> npt.NDArray[Any]:
        low, high = float(chunk.min()), float(chunk.max())
        if -self.clip <= low and high <= self.clip:
            return chunk
        if not bool(np.isfinite(chunk).all()):
            raise ConfigurationError(
                "the update holds nan or infinite values: "
                "repair the training step, nothing was sent"
            )
        if not self.saturate:
            raise ConfigurationError(
                f"values beyond the clip of {self.clip} in the update: "
                "clip it first, raise the clip, or give saturate=True if cutting them is meant"
            )
        clipped: npt.NDArray[Any] = np.clip(chunk, -self.clip, self.clip)
        return clipped
