"""How a run is watched, resumed and kept: what was asked for beside the job, checked at once."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtree_secure.agreed.transport import Transport
from fedtree_secure.embedded.progress import Observer, Silent, usual
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.errors import ConfigurationError, FedTreeError, RunStopped
from fedtree_secure.events import Events
from fedtree_secure.storage import read_json

Wrap = Callable[[Any], Transport]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a job is run, beside what the job is.

    Attributes:
        resume: Continue a run that was stopped or killed.
        simulate: Research mode, in which nothing is released: stores live inside the run folder,
            and references (head alone, local only, FedIT) are trained under the same epsilon for
            comparison. A real run never trains them, because they would spend the clients' budget.
        state: Folder of the data sets' stores; None for ``FEDTREE_STATE`` or the user's own.
        auditable: Keep every message (``messages.bin``), so that audits can look at the run's own
            uploads; the summary says what that costs.
        canaries: With ``auditable``: coins of each client, see `client.canaries`. Costs data, no
            epsilon.
        progress: Show progress on standard error: bars on a terminal, else plain lines.
        observer: Is told about progress in place of that, see `Observer`.
        events: File that lines of JSON are appended to, see docs/events.md; outside of the run
            folder, whose files are signed.
        shared: A loaded backbone and caches, to save time over several jobs.
        wrap_transport: For tests and audits: gets the embedded transport, returns the one to use.
    """

    resume: bool = False
    simulate: bool = False
    state: Path | str | None = None
    auditable: bool = False
    canaries: int = 0
    progress: bool = True
    observer: Observer | None = None
    events: Path | str | None = None
    shared: Shared = field(default_factory=Shared)
    wrap_transport: Wrap | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.canaries, int) or self.canaries < 0:
            raise ConfigurationError(
                f"canaries is {self.canaries!r}; allowed: a whole number of at least 0"
            )
        if self.canaries and not self.auditable:
            raise ConfigurationError(
                f"{self.canaries} canaries were asked for; they need auditable=True (--auditable)"
            )
        if not isinstance(self.progress, bool):
            raise ConfigurationError(
                f"progress is {self.progress!r}; allowed: True or False. To watch a run yourself, "
                "give observer"
            )
        if self.events is not None and not isinstance(self.events, str | Path):
            raise ConfigurationError(f"events is {self.events!r}; allowed: the path of a file")
        if self.observer is not None:
            _check_observer(self.observer)
        if self.simulate and self.state is not None:
            raise ConfigurationError(
                "state is for real runs; a simulation keeps its stores in the run folder"
            )


def _check_observer(observer: object) -> None:
    lacking = [
        name
        for name in vars(Silent)
        if not name.startswith("_") and not callable(getattr(observer, name, None))
    ]
    if lacking:
        raise ConfigurationError(
            f"observer is a {type(observer).__name__} without {', '.join(lacking)}; allowed: a "
            "subclass of fedtree_secure.embedded.progress.Silent, or whatever has its methods"
        )


@contextlib.contextmanager
def watched_as_asked(options: RunOptions) -> Iterator[RunOptions]:
    """The options with an observer that shows what was asked for."""
    if options.observer is not None:
        yield options
    elif not options.progress:
        yield dataclasses.replace(options, observer=Silent())
    else:
        with usual() as shown:
            yield dataclasses.replace(options, observer=shown)


def events_of(out: Path, options: RunOptions) -> Events:
    """Where events go; refused before anything else where they cannot."""
    if options.events is None:
        return Events()
    path = Path(options.events).expanduser()
    if path.resolve().is_relative_to(out.resolve()):
        raise ConfigurationError(
            f"events cannot be written to {path}: it is in the run folder {out}, whose files are "
            "signed when the run ends; name a file elsewhere"
        )
    events = Events(path)
    events.check()
    return events


@contextlib.contextmanager
def end_told(out: Path, events: Events) -> Iterator[None]:
    """Write how it ended, with the exit code of `fedtree-secure run`."""
    state, code, error = "finished", 0, ""
    try:
        yield
    except BaseException as raised:
        state, code = _outcome_of(raised)
        error = type(raised).__name__
        raise
    finally:
        known = (out / "job.json").is_file()
        run = str(read_json(out / "job.json").get("run", "")) if known else ""
        events.of(run)("ended", state=state, code=code, error=error)


def _outcome_of(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, RunStopped):
        return "stopped", 1
    return ("refused", 2) if isinstance(error, FedTreeError) else ("failed", 1)
