"""Values that must not leak by accident, and step states that work once.

Python cannot wipe memory; what can be done is that a secret prints nothing, is not pickled or
copied, compares in constant time, and is dropped as soon as its step is over.
"""

import hmac
import threading
from types import TracebackType
from typing import NoReturn, Self

from fedtree_secagg.errors import ConfigurationError, ProtocolError


class Unprintable:
    """Base of everything that holds secrets: an empty repr, no pickle, no copy."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds secrets: it is neither pickled nor copied")


class Secret(Unprintable):
    """Secret bytes; `.reveal()` is the one way to them, so that a reader can search for it."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]


class OneShot(Unprintable):
    """A state that one successful step consumes; a failed step gives it back unchanged.

    Thread-safe: of two threads that use the same state, one gets a ProtocolError.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if not self._lock.acquire(blocking=False):
            raise ProtocolError(
                f"{type(self).__name__} was used already: each state serves one step, once"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        if kind is not None:
            self._lock.release()


def check_randomness(randomness: bytes) -> bytes:
    """Return the step's fresh randomness; refuse anything but 32 bytes that are not all equal."""
    if not isinstance(randomness, bytes) or len(randomness) != 32:
        raise ConfigurationError(
            "randomness must be exactly 32 fresh bytes: pass secrets.token_bytes(32)"
        )
    if randomness == randomness[:1] * 32:
        raise ConfigurationError(
            "randomness has 32 equal bytes, which no generator gives: pass secrets.token_bytes(32)"
        )
    return randomness
