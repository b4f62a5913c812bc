"""Arithmetic modulo 2^bits and the keystreams that mask it.

A mask is the AES-256-CTR keystream of a key that serves exactly once, read as little-endian words and added or
subtracted in place, modulo the ring. Both ends of a pair derive the same key; one adds, the other subtracts.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedtree_secagg.errors import ConfigurationError

CHUNK_BYTES = 128 * 1024  # keystream and target of one chunk stay in the second-level cache

Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^bits, for bits of 16 or 32."""

    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (16, 32):
            raise ConfigurationError(f"ring: {self.bits} bits; 16 and 32 are allowed")
        if sys.byteorder != "little":
            raise ConfigurationError("this package reads keystreams as little-endian words; this machine is big-endian")

    @property
    def word_bytes(self) -> int:
        """Bytes of one value on the wire."""
        return self.bits // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned little-endian word."""
        return np.dtype(f"<u{self.word_bytes}")

    def capacity(self, bits: int) -> int:
        """Return how many values of that many bits can be summed: the largest n with n * 2^(bits-1) <= 2^(ring-1)."""
        return int(2 ** (self.bits - bits))

    def add_masks(self, target: Words, keys: Iterable[tuple[bytes, int]]) -> None:
        """Add the keystream of each key to the target, in place, with sign +1 or -1.

        Args:
            target: contiguous vector of ring words.
            keys: pairs of a 32-byte key and its sign. No key may ever serve twice.
        """
        masks = _Keystreams(self, keys)
        step = CHUNK_BYTES // self.word_bytes
        for start in range(0, len(target), step):
            masks.add_next(target[start : start + step])

    def unmasked(self, total: Words, keys: Iterable[tuple[bytes, int]]) -> npt.NDArray[np.int64]:
        """Return the total with keystreams added, as signed integers; the total stays as it is.

        Chunk by chunk, so that no second copy of the total is needed.
        """
        masks, out = _Keystreams(self, keys), np.empty(len(total), np.int64)
        step = CHUNK_BYTES // self.word_bytes
        buffer = np.empty(step, self.dtype)
        for start in range(0, len(total), step):
            chunk = total[start : start + step]
            part = buffer[: len(chunk)]
            part[:] = chunk
            masks.add_next(part)
            out[start : start + step] = part.view(f"<i{self.word_bytes}")
        return out


class _Keystreams:
    """The running keystreams of some keys, and the buffer they are written to before they are added."""

    def __init__(self, ring: Ring, keys: Iterable[tuple[bytes, int]]) -> None:
        self._streams = [
            (Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract)
            for key, sign in keys
        ]
        self._zeros, self._keystream = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
        self._words = np.frombuffer(self._keystream, ring.dtype)

    def add_next(self, part: Words) -> None:
        """Add the next words of all keystreams; only the last part may be shorter than a chunk."""
        source, mask = memoryview(self._zeros)[: part.nbytes], self._words[: len(part)]
        for stream, combine in self._streams:
            stream.update_into(source, self._keystream)
            combine(part, mask, out=part)
