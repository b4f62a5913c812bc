"""Looks for secrets in bytes that others see, in every form that a careless line could give them.

Haystacks are widened first: runs of hexadecimal and base64 digits are decoded and searched as
well. Arrays of numbers are then found by correlation, under each integer and float type of the
machine: a copy in another type or byte order, scaled, shifted or quantised, is still a linear
image. Numbers written as text are read back and compared run by run.

What it cannot see: compression, encryption, and values that are mixed with others. It never says
that nothing leaks; it says that none of these forms is there.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 24  # consecutive values: r > CORRELATED by chance has probability (1 - r^2)^11
CORRELATED = 0.999  # int8 keeps 0.9999
SOUGHT = 8  # stretches of each array
RUN = 4  # consecutive numbers of a text
DIGITS = 1e-3  # relative: three significant digits
TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "f2", "f4", "f8", "bf2")
BLOCK = 1 << 15

HEX = re.compile(rb"(?:[0-9a-fA-F]{2}[ :]?){8,}")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
NUMBER = re.compile(rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Secret:
    """What must not be found.

    Attributes:
        name: For the report.
        value: Bytes or a text, sought whole; or an array of numbers, any stretch of which counts.
    """

    name: str
    value: "bytes | str | np.ndarray"


def leaks(haystacks: Mapping[str, bytes], secrets: Sequence[Secret]) -> list[str]:
    """Return ``"secret (form) in place"`` for each find, sorted; empty when nothing was found."""
    found = set()
    windows = [(s.name, window) for s in secrets for window in distinct_windows(s.value)]
    for place, given in haystacks.items():
        wide = widened(given)
        written = numbers_in(wide)
        for secret in secrets:
            for form, needle in needles(secret.value):
                if needle in wide:
                    found.add(f"{secret.name} ({form}) in {place}")
            if is_array(secret.value) and in_text(written, secret.value):
                found.add(f"{secret.name} (decimal) in {place}")
        found |= {f"{name} (linear) in {place}" for name in correlated(wide, windows)}
    return sorted(found)


def widened(given: bytes) -> bytes:
    """The bytes, and behind them what their hexadecimal and base64 runs stand for."""
    parts = [given]
    for run in HEX.findall(given):
        digits = re.sub(rb"[ :]", b"", run)
        parts += [
            bytes.fromhex(digits[i : len(digits) - (len(digits) - i) % 2].decode()) for i in (0, 1)
        ]
    for run in BASE64.findall(given):
        plain = run.translate(bytes.maketrans(b"-_", b"+/"))
        for offset in range(4):
            cut = plain[offset:]
            cut = cut[: len(cut) - (len(cut) % 4 == 1)]  # one digit alone stands for no byte
            parts.append(base64.b64decode(cut + b"=" * (-len(cut) % 4)))
    return b"\0\0".join(parts)


def is_array(value) -> bool:
    return isinstance(value, np.ndarray)


def needles(value) -> Iterator[tuple[str, bytes]]:
    """Exact forms: of a short array, of bytes, of a text."""
    if isinstance(value, str):
        yield "utf-8", value.encode()
        yield "utf-16", value.encode("utf-16-le")
        yield "JSON", json.dumps(value)[1:-1].encode()
    elif isinstance(value, bytes):
        for form, turned in (("raw", value), ("reversed", value[::-1])):
            half = len(turned) // 2
            yield form, turned[:half]
            yield form, turned[half:]
            yield "decimal", str(int.from_bytes(turned, "big")).encode()
    else:
        yield from _short_arrays(value)


def _short_arrays(value: "np.ndarray") -> Iterator[tuple[str, bytes]]:
    """Arrays that are too short to correlate are sought as they are, in each type."""
    head = value.reshape(-1)[:WINDOW]
    if len(head) >= WINDOW or len(head) < RUN or np.ptp(head) == 0:
        return
    whole = np.array_equal(head, np.round(head))
    for kind in ("i2", "i4", "i8", "f2", "f4", "f8") if whole else ("f2", "f4", "f8"):
        for order in "<>":
            yield order + kind, head.astype(order + kind).tobytes()
    for order in "<>":
        yield order + "bf2", to_bfloat16(head, order)


def to_bfloat16(values: "np.ndarray", order: str = "<") -> bytes:
    """The upper halves of float32 values."""
    return (values.astype("<f4").view("<u4") >> 16).astype(f"{order}u2").tobytes()


def numbers_in(given: bytes) -> "np.ndarray":
    """The numbers that are written out, in order."""
    return np.array([float(n) for n in NUMBER.findall(given) if len(n) < 40])


def in_text(numbers: "np.ndarray", value: "np.ndarray") -> bool:
    """Whether a run of the values is among written numbers, to three digits or more."""
    flat = value.reshape(-1).astype(np.float64)[: SOUGHT * WINDOW]
    if len(flat) < RUN or len(numbers) < RUN:
        return False
    runs = np.lib.stride_tricks.sliding_window_view(numbers, RUN)
    for start in range(0, len(flat) - RUN + 1, RUN):
        run = flat[start : start + RUN]
        if np.ptp(run) == 0 or len(set(run.tolist())) < RUN:
            continue
        first = np.abs(numbers[: len(runs)] - run[0]) <= DIGITS * abs(run[0])
        if (np.abs(runs[first] - run) <= DIGITS * np.abs(run)).all(axis=1).any():
            return True
    return False


def distinct_windows(value) -> "list[np.ndarray]":
    """Up to `SOUGHT` stretches that no single value dominates, centred and of norm 1."""
    if not is_array(value) or value.size < WINDOW:
        return []
    flat, found = value.reshape(-1).astype(np.float64), []
    for start in range(0, len(flat) - WINDOW + 1, WINDOW // 2):
        window = flat[start : start + WINDOW] - flat[start : start + WINDOW].mean()
        energy = float(window @ window)
        if energy > 0 and float((window**2).max()) < 0.4 * energy:
            found.append(window / np.sqrt(energy))
    return [found[i] for i in range(0, len(found), -(-len(found) // SOUGHT) or 1)]


def correlated(given: bytes, windows: "Sequence[tuple[str, np.ndarray]]") -> set[str]:
    """Names of the windows of which some stretch of the bytes, read as numbers, is an image."""
    if not windows:
        return set()
    names, sought = [name for name, _ in windows], np.stack([w for _, w in windows], axis=1)
    sought = sought.astype(np.float32)
    found: set[str] = set()
    for numbers in views(given):
        if len(numbers) < WINDOW:
            continue
        runs = np.lib.stride_tricks.sliding_window_view(numbers, WINDOW)
        for start in range(0, len(runs), BLOCK):
            block = _normalised(runs[start : start + BLOCK])
            best = np.abs(block @ sought).max(axis=0) if len(block) else np.zeros(len(names))
            found |= {name for name, r in zip(names, best, strict=True) if r > CORRELATED}
    return found


def _normalised(runs: "np.ndarray") -> "np.ndarray":
    with np.errstate(all="ignore"):
        largest = np.abs(runs).max(axis=1, keepdims=True)
        keep = (largest > 0)[:, 0] & np.isfinite(largest)[:, 0]
        runs = runs[keep]
        runs = (runs / largest[keep]).astype(np.float32)  # at most 1 now: enough for CORRELATED
        runs = runs - runs.mean(axis=1, keepdims=True)
        norm = np.sqrt((runs**2).sum(axis=1, keepdims=True))
        kept = (norm > 1e-5)[:, 0]
        return runs[kept] / norm[kept]


def views(given: bytes) -> Iterator["np.ndarray"]:
    """The bytes as float64 numbers under each type, byte order and alignment."""
    for kind in TYPES:
        size = int(kind[-1])
        for order in "<>" if size > 1 else "<":
            for offset in range(size):
                cut = given[offset : offset + (len(given) - offset) // size * size]
                with np.errstate(all="ignore"):
                    yield _as_numbers(cut, kind, order)


def _as_numbers(cut: bytes, kind: str, order: str) -> "np.ndarray":
    if kind == "bf2":
        upper = np.frombuffer(cut, f"{order}u2").astype("<u4") << 16
        return upper.view("<f4").astype(np.float64)
    return np.frombuffer(cut, f"{order}{kind}").astype(np.float64)
