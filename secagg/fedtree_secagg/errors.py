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


class SecAggError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(SecAggError, ValueError):
    """A value chosen by the caller is refused; the text says what was given, what is allowed and
    what to do.
    """


class ProtocolError(SecAggError):
    """A message is malformed, forged, replayed or contradicts another one, or a step was called out
    of order.

    Attributes: blames: the participant whose own signed words prove the fault, or None when nobody
        can be proven guilty
            (the server, the network and the sender may each have caused it).
        sender: in a server step, whose message it was: drop that message and call the step again.
            It says nothing about guilt. None when no single message can be dropped.
    """

    def __init__(self, text: str, *, blames: str | None = None, sender: str | None = None) -> None:
        super().__init__(text)
        self.blames = blames
        self.sender = sender


class ThresholdError(SecAggError):
    """Fewer participants are left than the threshold asks for: the attempt ends and opens
    nothing.
    """

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
