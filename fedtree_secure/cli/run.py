"""`fedtree-secure run`: a job file, with server and clients in this process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fedtree_secure.cli.screen import console, show_places


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is said of a run while it works."""

    quiet: Annotated[
        bool, Parameter(help="Show no progress; what must be known at once is still said.")
    ] = False
    events: Annotated[
        Path | None,
        Parameter(
            help="File that lines of JSON are appended to: stages, rounds, epsilon, dropouts, "
            "bytes, seconds. No rows, keys or metrics; see docs/events.md."
        ),
    ] = None


_SHOWN = Shown()


def run(
    job: Path,
    *,
    out: Path,
    resume: bool = False,
    simulate: bool = False,
    state: Path | None = None,
    auditable: bool = False,
    canaries: int = 0,
    shown: Shown = _SHOWN,
) -> int:
    """Run a job file: server and clients in this process, nothing but protocol bytes between them.

    Parameters
    ----------
    job
        TOML job file, see examples/job.toml.
    out
        Run folder, new or empty.
    resume
        Continue an interrupted run of the same job.
    simulate
        Research mode: stores inside the run folder, references trained for comparison, nothing
        released.
    state
        Folder of the data sets' stores; FEDTREE_STATE or the user's data folder if not given. It
        belongs to the data, not to a run: all jobs on a data set share its budget.
    auditable
        Keep every message, so that audits can look at the run's own uploads. Costs disk; nothing
        else is kept.
    canaries
        With --auditable: plant this many coins of random records in each client's rows, committed
        to beforehand. Costs no epsilon, but about half of them take part in training.
    """
    from fedtree_secure.embedded.options import RunOptions
    from fedtree_secure.embedded.progress import Notes
    from fedtree_secure.embedded.run import run_job
    from fedtree_secure.federation import Federation

    federation, clients = Federation.from_toml(job)
    options = RunOptions(
        resume=resume,
        simulate=simulate,
        state=state,
        auditable=auditable,
        canaries=canaries,
        observer=Notes() if shown.quiet else None,
        events=shown.events,
    )
    result = run_job(federation.job, clients, out, options)
    result.summary(console)
    show_places(result.folder)
    return 0
