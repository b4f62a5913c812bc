"""Range checks shared by every public constructor of this package; never a decision about privacy.

A refused value raises `ConfigurationError` with its name, what was given, what is allowed and what
to do.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

from fedtree_dp.errors import ConfigurationError

_LONGEST_NAME = 200


def real(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> float:
    """Return `value` as a finite float inside the stated range.

    Raises:
        ConfigurationError: `value` is no real number (a bool is none), is not finite, or is outside
            the range.
    """
    allowed = _range_text(above, at_least, below, at_most)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigurationError(
            f"{name} must be a number {allowed}, not {value!r} ({type(value).__name__})"
        )
    number = float(value)
    if (
        not math.isfinite(number)
        or number <= above
        or number < at_least
        or number >= below
        or number > at_most
    ):
        raise ConfigurationError(f"{name} must be a finite number {allowed}, not {value!r}")
    return number


def _range_text(above: float, at_least: float, below: float, at_most: float) -> str:
    low = (
        f"above {above:g}"
        if math.isfinite(above)
        else f"at least {at_least:g}"
        if math.isfinite(at_least)
        else ""
    )
    high = (
        f"below {below:g}"
        if math.isfinite(below)
        else f"at most {at_most:g}"
        if math.isfinite(at_most)
        else ""
    )
    return " and ".join(part for part in (low, high) if part)


def count(name: str, value: object, *, at_least: int = 1, at_most: int = 2**53 - 1) -> int:
    """Return `value` as an int inside `[at_least, at_most]`.

    Raises:
        ConfigurationError: `value` is no integer (a bool and 3.0 are none) or is outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigurationError(
            f"{name} must be a whole number of at least {at_least}, not {value!r}"
        )
    if not at_least <= int(value) <= at_most:
        raise ConfigurationError(
            f"{name} must be a whole number from {at_least} to {at_most}, not {value!r}"
        )
    return int(value)


def label(name: str, value: object) -> str:
    """Return `value` as a name that can stand in a ledger: 1 to 200 printable characters, no blank
    ends.

    Raises:
        ConfigurationError: it is no such string.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise ConfigurationError(
            f"{name} must be a string of 1 to {_LONGEST_NAME} characters, not {value!r:.80}"
        )
    if not value.isprintable() or value != value.strip():
        raise ConfigurationError(
            f"{name} must be printable and have no blank ends, not {value!r:.80}"
        )
    return value


def suggestion(given: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest known name, or the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
