"""Randomness that no seed reaches: AES-256-CTR for bits, Box-Muller for Gaussians.

Why not torch's generators: `torch.manual_seed`, `transformers.set_seed` and an unseeded
`torch.Generator()` (whose default seed is a constant) all make noise predictable, and predictable
noise is no noise. Nothing here reads or writes the state of torch, numpy or `random`.

What it never does: it does not print, pickle or copy its key, and it does not repeat itself after
`os.fork`.

Known limit: Gaussians in floating point do not have exactly the real-valued distribution (Mironov
2012; Casacuberta et al. 2207.10635, Haney et al. 2112.05307). Values that are *released* are
rounded to the integer grid of the masking ring or drawn there (`fedtree_dp.randomness.discrete`);
this source is for the steps in between.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedtree_dp.errors import ConfigurationError

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 20))
_PAIRS_PER_CHUNK = 1 << 20
_SERIAL = 1 << 14  # torch uses threads from 32,768 elements on
_FLOATS = (torch.float32, torch.float64)


class NoiseSource:
    """A cryptographic random stream with the few distributions that DP-SGD needs.

    Use `NoiseSource.from_os()`. A key may be given only for tests and for audits that must be
    repeated: whoever knows the key can subtract the noise.

    Args:
        key: 32 bytes, uniformly random, used for this source alone.

    Raises:
        ConfigurationError: the key is not 32 bytes.
    """

    __slots__ = ("_lock", "_pid", "_stream")

    def __init__(self, key: bytes) -> None:
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise ConfigurationError(
                f"a noise key is exactly {KEY_BYTES} random bytes; use NoiseSource.from_os() "
                "unless this is a test"
            )
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @classmethod
    def from_os(cls) -> NoiseSource:
        """Return a source keyed by the operating system's generator: the only one for real
        training.
        """
        return cls(os.urandom(KEY_BYTES))

    def bytes(self, n: int) -> bytes:
        """Return `n` uniformly random bytes."""
        return self._words(n).tobytes()

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        """Return `n` numbers from [0, 1), multiples of 2^-53, shape (n,)."""
        words = self._words(8 * n).view(np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def integers(self, n: int) -> npt.NDArray[np.uint64]:
        """Return `n` uniform 64-bit integers, shape (n,)."""
        return self._words(8 * n).view(np.uint64)

    def normal(
        self,
        shape: int | tuple[int, ...],
        std: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Draw independent Gaussians with mean 0 and standard deviation `std`.

        Box and Muller (1958): 63 bits for the radius, so that the tail is cut at 9.3 standard
        deviations (probability 1e-20 a value) in either precision, and 32 (float32) or 53 (float64)
        bits for the angle.

        Args:
            shape: shape of the result.
            std: at least 0 and finite; 0 gives zeros.
            dtype: float32 or float64; round to a shorter type after adding, never before.
            device: where the result is wanted; it is always drawn on the CPU.

        Raises:
            ConfigurationError: a bad `std` or `dtype`.
        """
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        if not (math.isfinite(std) and std >= 0):
            raise ConfigurationError(
                f"the noise's standard deviation must be finite and at least 0, not {std!r}"
            )
        if dtype not in _FLOATS:
            raise ConfigurationError(
                f"noise is drawn as float32 or float64, not {dtype}; round it after adding"
            )
        if std == 0:
            return torch.zeros(size, dtype=dtype, device=device)
        count = math.prod(size)
        out = torch.empty(count + count % 2, dtype=dtype)
        for start in range(0, len(out), 2 * _PAIRS_PER_CHUNK):
            self._box_muller(out[start : start + 2 * _PAIRS_PER_CHUNK], std)
        return out[:count].view(size).to(device)

    def _box_muller(self, out: torch.Tensor, std: float) -> None:
        """Fill `out` (a contiguous vector of even length) with Gaussians."""
        pairs = len(out) // 2
        wide = out.dtype == torch.float64
        words = self._words((16 if wide else 12) * pairs)
        # numpy's logarithm, sine and cosine take half the time of torch's; converting integers is
        # faster in torch
        radius = _as_floats(words[: 8 * pairs].view(np.int64), out.dtype)
        # |k| + 1/2 of a signed 64-bit k, over 2^63: uniform in (0, 1], with full relative precision
        # near 0.
        np.abs(radius, out=radius)
        radius += 0.5
        radius *= 2.0**-63
        np.log(radius, out=radius)
        radius *= -2.0 * std * std
        np.sqrt(radius, out=radius)
        angle = _as_floats(words[8 * pairs :].view(np.int64 if wide else np.int32), out.dtype)
        angle *= math.pi * (2.0**-63 if wide else 2.0**-31)
        first, second = out[:pairs].numpy(), out[pairs:].numpy()
        np.cos(angle, out=first)
        first *= radius
        np.sin(angle, out=second)
        second *= radius

    def _words(self, n: int) -> npt.NDArray[np.uint8]:
        """Return the next `n` bytes of the key stream as a fresh array."""
        if n < 0:
            raise ConfigurationError(f"cannot draw {n} bytes")
        out = np.empty(n, dtype=np.uint8)
        with self._lock:
            if os.getpid() != self._pid:
                raise ConfigurationError(
                    "this noise source was made before os.fork(), so its noise would repeat the "
                    "parent's; "
                    "make a new one with NoiseSource.from_os() in the child"
                )
            for start in range(0, n, len(_ZEROS)):
                part = out[start : start + len(_ZEROS)]
                self._stream.update_into(_ZEROS[: len(part)], part.data)
        return out

    def __repr__(self) -> str:
        return "NoiseSource(key hidden)"

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(
            "a NoiseSource is neither copied nor pickled: two copies would draw the same noise"
        )

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse


def _as_floats(integers: npt.NDArray[Any], dtype: torch.dtype) -> npt.NDArray[Any]:
    """Convert in parts that torch does not spread over its threads: waking them costs more than
    such a part.
    """
    floats = torch.empty(len(integers), dtype=dtype)
    for start in range(0, len(integers), _SERIAL):
        floats[start : start + _SERIAL] = torch.from_numpy(integers[start : start + _SERIAL])
    converted: npt.NDArray[Any] = floats.numpy()
    return converted
