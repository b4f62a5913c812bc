"""Arithmetic modulo 2^bits and the keystreams that mask it.

A mask is the AES-256-CTR keystream of a key that serves exactly once, read as little-endian words
and added or subtracted in place, modulo the ring. Both ends of a pair derive the same key; one
adds, the other subtracts.

The counter begins at 2, as in GCM with a nonce of zeros (NIST SP 800-38D, 7.1): OpenSSL has its
widest instructions in GCM (on a processor with VAES its ciphertext of zeros, tag unused, comes 1.3
times as fast as CTR), elsewhere in CTR.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable
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
            raise ConfigurationError(
                "this package reads keystreams as little-endian words; this machine is big-endian"
            )

    @property
    def word_bytes(self) -> int:
        """Bytes of one value on the wire."""
        return self.bits // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned little-endian word."""
        return np.dtype(f"<u{self.word_bytes}")

    def capacity(self, bits: int) -> int:
        """Return how many values fit in a sum: the largest n, n * 2^(bits-1) <= 2^(ring-1)."""
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

    def signed(self, words: Words) -> npt.NDArray[np.int32]:
        """Return ring words as signed integers; 32-bit words are not copied."""
        return words.view(f"<i{self.word_bytes}").astype(np.int32, copy=False)


def counter() -> modes.CTR:
    """Return the mode that gives the keystream by its definition."""
    return modes.CTR((2).to_bytes(16, "big"))


def galois() -> modes.GCM:
    """Return the mode whose ciphertext of zeros is the same keystream, up to 2^36 - 32 bytes."""
    return modes.GCM(bytes(12))


@functools.cache
def fastest_mode() -> Callable[[], modes.CTR | modes.GCM]:
    """Return the faster way to the keystream on this machine; one trial, half a millisecond."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    spent: dict[Callable[[], modes.CTR | modes.GCM], float] = {}
    for mode in (counter, galois) * 4:
        stream = Cipher(algorithms.AES(bytes(32)), mode()).encryptor()
        start = time.perf_counter()
        stream.update_into(zeros, out)
        spent[mode] = min(time.perf_counter() - start, spent.get(mode, math.inf))
    return min(spent, key=spent.__getitem__)


class _Keystreams:
    """The running keystreams of some keys, and the buffer from which they are added."""

    def __init__(self, ring: Ring, keys: Iterable[tuple[bytes, int]]) -> None:
        mode = fastest_mode()
        self._streams = [
            (Cipher(algorithms.AES(key), mode()).encryptor(), np.add if sign > 0 else np.subtract)
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
