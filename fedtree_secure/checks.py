"""Refusals of settings: what was given, what is allowed."""

import math
import typing
from typing import Any

from fedtree_secure.errors import ConfigurationError


def require(holds: bool, name: str, given: object, allowed: str) -> None:
    """Refuse a setting unless it holds.

    Raises:
        ConfigurationError: With the setting's name, what was given and what is allowed.
    """
    if not holds:
        raise ConfigurationError(f"{name} is {given!r}; allowed: {allowed}")


def is_number(given: object) -> bool:
    """Whether it is a finite number; text and truth values are none."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def positive(name: str, given: float) -> None:
    """Refuse what is no finite number above 0."""
    require(is_number(given) and given > 0, name, given, "a finite number above 0")


def count(name: str, given: int, least: int = 1) -> None:
    """Refuse what is no whole number, or one below the least."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    require(whole and given >= least, name, given, f"a whole number of at least {least}")
    # Above this, JSON cannot say it exactly (RFC 8785), so no two parties could agree on it.
    require(given < 2**53, name, given, f"a whole number of at most {2**53 - 1}")


def one_of(kind: Any, name: str, given: object) -> None:
    """Refuse what is none of a `Literal`'s values."""
    allowed = typing.get_args(kind)
    require(given in allowed, name, given, ", ".join(allowed))


def is_a(kind: type, name: str, given: object) -> None:
    """Refuse an object of another class."""
    if not isinstance(given, kind):
        raise ConfigurationError(
            f"{name} is {given!r} ({type(given).__name__}); allowed: a {kind.__name__}(...)"
        )
