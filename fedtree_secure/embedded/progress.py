"""What a person sees while a run works: bars with stage, steps, rounds, epsilon spent and left."""

import logging
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

log = logging.getLogger("fedtree_secure.embedded")


class Observer(Protocol):
    """Is told how a run goes on."""

    def job(self, name: str) -> None:
        """A job of this name begins."""
        ...

    def stage(self, name: str, total: int) -> None:
        """A stage with ``total`` steps begins."""
        ...

    def step(self) -> None:
        """One step of the current stage is done."""
        ...

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """A round is over; epsilon is the largest over the clients."""
        ...

    def note(self, text: str) -> None:
        """Something that a person must know at once."""
        ...


class Silent:
    """Shows nothing but notes, which are logged as warnings."""

    def job(self, name: str) -> None:
        """See `Observer.job`."""

    def stage(self, name: str, total: int) -> None:
        """See `Observer.stage`."""

    def step(self) -> None:
        """See `Observer.step`."""

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """See `Observer.round`."""

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        log.warning("%s", text)


class Bars:
    """Two bars on a terminal: the rounds with epsilon, and the steps of the current stage. A
    context manager.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description:<34}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=False,
        )
        self._title = "rounds"
        self._rounds: TaskID | None = None
        self._steps: TaskID | None = None

    def job(self, name: str) -> None:
        """See `Observer.job`."""
        self._title, self._rounds = f"{name}: rounds", None

    def stage(self, name: str, total: int) -> None:
        """See `Observer.stage`."""
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        self._steps = self._progress.add_task(f"  {name}", total=total, note="")

    def step(self) -> None:
        """See `Observer.step`."""
        if self._steps is not None:
            self._progress.advance(self._steps)

    def round(self, number: int, rounds: int, spent: float, allowed: float, note: str) -> None:
        """See `Observer.round`."""
        if self._rounds is None:
            self._rounds = self._progress.add_task(self._title, total=rounds, note="")
        text = f"ε {spent:.2f} of {allowed:g}, {max(allowed - spent, 0):.2f} left {note}"
        self._progress.update(self._rounds, completed=number, note=text)

    def note(self, text: str) -> None:
        """See `Observer.note`."""
        self.console.print(text, style="yellow", highlight=False, markup=False)

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._steps is not None:
            self._progress.remove_task(self._steps)
            self._steps = None
        self._progress.stop()
