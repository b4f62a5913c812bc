"""Every error this package raises on purpose, in one tree.

    SecAggError
    ├── ConfigurationError   what the caller chose is outside what is allowed; also a ValueError
    ├── ProtocolError        a message, or the order of steps, is wrong; names whom it proves guilty
    └── ThresholdError       too few took part to go on; nothing was opened

An error leaves the state that was passed in as it was: the step may be called again with other
messages. No error text holds a secret, a share or a value of an update.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class _Root(Exception):  # noqa: N818 - a place in the tree, not an error
    """Only here so that a package above may put its own root in this place (see its errors)."""


class SecAggError(_Root):
    """Base of all errors of this package."""


class ConfigurationError(SecAggError, ValueError):
    """A value that the caller chose is refused; the text says what is allowed and what to do."""


class ProtocolError(SecAggError):
    """A message is malformed, forged or replayed, contradicts another, or comes out of order.

    Attributes:
        blames: the participant whose own signed words prove the fault, or None when nobody can be
            proven guilty (the server, the network and the sender may each have caused it).
        sender: in a server step, whose message it was: drop that message and call the step again.
            It says nothing about guilt. None when no single message can be dropped.
    """

    def __init__(self, text: str, *, blames: str | None = None, sender: str | None = None) -> None:
        super().__init__(text)
        self.blames = blames
        self.sender = sender


class ThresholdError(SecAggError):
    """Fewer are left than the threshold asks for: the attempt ends and opens nothing."""

    def __init__(self, stage: str, *, present: int, threshold: int) -> None:
        super().__init__(
            f"{stage}: {present} participants are left, the threshold is {threshold}; "
            "nothing is opened. Start the next attempt when more participants can be reached."
        )
        self.present = present
        self.threshold = threshold


@contextmanager
def message_of(name: str | None) -> Iterator[None]:
    """Note on a ProtocolError raised inside whose message was being read."""
    try:
        yield
    except ProtocolError as error:
        error.sender = name
        raise


def shown(value: object) -> str:
    """Return a value for an error's text, cut short; Python does not print very long integers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80]
