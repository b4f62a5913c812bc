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

    def signed(self, words: Words) -> npt.NDArray[np.int64]:
        """Return ring elements as the signed integers they stand for."""
        return words.view(f"<i{self.word_bytes}").astype(np.int64)

    def add_masks(self, target: Words, keys: Iterable[tuple[bytes, int]]) -> None:
        """Add the keystream of each key to the target, in place, with sign +1 or -1.

        Args:
            target: contiguous vector of ring words.
            keys: pairs of a 32-byte key and its sign. No key may ever serve twice.
        """
        streams = [(Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in keys]
        zeros, keystream = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
        words = np.frombuffer(keystream, self.dtype)
        step = CHUNK_BYTES // self.word_bytes
        for start in range(0, len(target), step):
            part = target[start : start + step]
            source = memoryview(zeros)[: part.nbytes]
            mask = words[: len(part)]
            for stream, sign in streams:
                stream.update_into(source, keystream)
                (np.add if sign > 0 else np.subtract)(part, mask, out=part)
