"""What a person sees while a run works: the stage, the client at work, rounds, epsilon, time left.

Bars on a terminal; plain lines where standard error is none, in logs and in notebooks. All that is
shown is public, or of the rows that this process owns: names, counts and epsilon; no loss, no
metric, no gradient.
"""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from fedtree_secure.embedded.forecast import said

log = logging.getLogger("fedtree_secure.embedded")
SILENCE_S = 30.0  # after which a stage that takes long gives a sign of life in a log


class Observer(Protocol):
    """Is told how a run goes on. Subclass `Silent` to look at a part of it."""

    def job(self, name: str, rounds: int) -> None:
        """A job of this name begins."""
        ...

    def stage(self, name: str, total: int) -> None:
        """A stage with ``total`` steps begins."""
        ...

    def client(self, name: str) -> None:
        """A client is at work; empty when the server is."""
        ...

    def step(self) -> None:
        """One step of the current stage is done."""
        ...

    def budget(self, spent: float, allowed: float) -> None:
        """Epsilon of the client that has least left."""
        ...

    def left(self, seconds: float | None) -> None:
        """How long the whole run will still take; None while that is unknown."""
        ...

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """A round is over; epsilon as in `budget`."""
        ...

    def note(self, text: str) -> None:
        """Something that a person must know at once."""
        ...

    def advice(self, text: str) -> None:
        """Something that a person may want to change before anything is spent."""
        ...


class Silent:
    """Shows nothing but notes, which are logged as warnings."""

    def job(self, name: str, rounds: int) -> None:
        """See `Observer.job`."""

    def stage(self, name: str, total: int) -> None:
        """See `Observer.stage`."""

    def client(self, name: str) -> None:
        """See `Observer.client`."""

    def step(self) -> None:
        """See `Observer.step`."""

    def budget(self, spent: float, allowed: float) -> None:
        """See `Observer.budget`."""

    def left(self, seconds: float | None) -> None:
        """See `Observer.left`."""

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """See `Observer.round`."""

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        log.warning("%s", text)

    def advice(self, text: str) -> None:
        """See `Observer.advice`."""


class Notes(Silent):
    """Shows notes alone, on standard error: what `--quiet` leaves."""

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        _print_line(_plain(text))


class Bars:
    """Two bars on a terminal: the rounds with epsilon and the time left, and the current stage with
    the client at work. A context manager.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<34}", style="bold", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=False,
        )
        self._rounds: TaskID | None = None
        self._steps: TaskID | None = None
        self._epsilon, self._left, self._remark = "", said(None), ""

    def job(self, name: str, rounds: int) -> None:
        """See `Observer.job`."""
        if self._rounds is not None:  # of a job that is over
            self._progress.update(self._rounds, note=self._epsilon)
        self._epsilon = self._remark = ""
        self._rounds = self._progress.add_task(
            f"{_plain(name)}: rounds", total=rounds, note="", visible=False
        )
        self._show()

    def stage(self, name: str, total: int) -> None:
        """See `Observer.stage`."""
        self._end_stage()
        if total and self._rounds is not None:  # what is refused before leaves no bar
            self._progress.update(self._rounds, visible=True)
        self._steps = self._progress.add_task(f"  {name}", total=total, note="")

    def client(self, name: str) -> None:
        """See `Observer.client`."""
        if self._steps is not None:
            self._progress.update(self._steps, note=name)

    def step(self) -> None:
        """See `Observer.step`."""
        if self._steps is not None:
            self._progress.advance(self._steps)

    def budget(self, spent: float, allowed: float) -> None:
        """See `Observer.budget`."""
        self._epsilon = _epsilon(spent, allowed)
        self._show()

    def left(self, seconds: float | None) -> None:
        """See `Observer.left`."""
        if said(seconds) != self._left:
            self._left = said(seconds)
            self._show()

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """See `Observer.round`."""
        if self._rounds is not None:
            self._progress.update(self._rounds, completed=number, total=rounds)
        self._remark = note
        self.budget(spent, allowed)

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        self.console.print(_plain(text), style="yellow", highlight=False, markup=False)

    def advice(self, text: str) -> None:
        """See `Observer.advice`."""
        self.note(f"advice: {text}")

    def _show(self) -> None:
        if self._rounds is not None:
            parts = (self._epsilon, self._left, _plain(self._remark))
            self._progress.update(self._rounds, note=" · ".join(filter(None, parts)))

    def _end_stage(self) -> None:
        if self._steps is not None:
            self._progress.remove_task(self._steps)
            self._steps = None

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_stage()
        self._left = ""
        self._show()
        self._progress.stop()


class Lines:
    """One plain line for each stage and round, and now and then within a long stage.

    A context manager, as `Bars`.

    Args:
        write: Takes a line; standard error if None.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._clock = write or _print_line, clock
        self._job = self._stage = self._client = self._epsilon = ""
        self._total = self._done = 0
        self._left, self._last, self._news = said(None), clock(), ""

    def job(self, name: str, rounds: int) -> None:
        """See `Observer.job`."""
        self._job, self._epsilon = name, ""
        self._stage = self._client = ""
        # Said with the first stage: of a job that is refused before, the refusal alone is said.
        self._news = "1 round" if rounds == 1 else f"{rounds} rounds"

    def stage(self, name: str, total: int) -> None:
        """See `Observer.stage`."""
        begun = name != self._stage
        self._stage, self._total, self._done, self._client = name, total, 0, ""
        if begun and total:
            self._say(f"{self._news}; {name}" if self._news else name)
            self._news = ""
        else:
            self._sign_of_life()

    def client(self, name: str) -> None:
        """See `Observer.client`."""
        self._client = name
        self._sign_of_life()

    def step(self) -> None:
        """See `Observer.step`."""
        self._done += 1
        self._sign_of_life()

    def budget(self, spent: float, allowed: float) -> None:
        """See `Observer.budget`."""
        self._epsilon = _epsilon(spent, allowed)

    def left(self, seconds: float | None) -> None:
        """See `Observer.left`."""
        self._left = said(seconds)

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """See `Observer.round`."""
        self.budget(spent, allowed)
        done = f"round {number} of {rounds} is over" if number else "heads were merged"
        self._say(done + (f", {note}" if note else ""))

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        self._write(_plain(text))

    def advice(self, text: str) -> None:
        """See `Observer.advice`."""
        self.note(f"advice: {text}")

    def _sign_of_life(self) -> None:
        if self._stage and self._clock() - self._last >= SILENCE_S:
            done = f", {self._done} of {self._total} steps" if self._total else ""
            self._say(self._stage + done + (f", client {self._client}" if self._client else ""))

    def _say(self, what: str) -> None:
        self._last = self._clock()
        parts = (f"{self._job}: {what}", self._epsilon, self._left)
        self._write(_plain("; ".join(filter(None, parts))))

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return


def usual() -> Bars | Lines:
    """Return what fits standard error: bars on a terminal, else plain lines."""
    shown = sys.stderr
    if shown is None or not shown.isatty():
        return Lines()
    console = Console(stderr=True)
    return Lines() if console.is_dumb_terminal else Bars(console)


def _epsilon(spent: float, allowed: float) -> str:
    return f"ε {spent:.2f} of {allowed:g}, {max(allowed - spent, 0):.2f} left"


def _plain(text: str) -> str:
    """The text without control characters: names of folders may hold any."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _print_line(text: str) -> None:
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is what shows it
