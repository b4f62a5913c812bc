"""The ServerApp: the coordinator of a job over Flower's Grid. `serve` starts it, again and again.

Flower's run is only a start of ours: another one continues at the next round, because name, state
and counters are in the job's folder. It sees what the coordinator sees: no weights, rows or keys of
sites.
"""

import importlib.metadata
import logging
import os
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import ServerApp
from flwr.serverapp.grid import Grid

from fedtree_secure.agreed.tree import Tree
from fedtree_secure.errors import FedTreeError, RunFolderError, RunStopped
from fedtree_secure.events import Events
from fedtree_secure.flower.job_folder import FINISHED, REFUSED, STOPPED, JobFolder, Outcome
from fedtree_secure.flower.server_report import report_of
from fedtree_secure.flower.transport import GridTransport, Patience
from fedtree_secure.report.advice import advice_of
from fedtree_secure.report.statement import without_path
from fedtree_secure.server.coordinator import Coordinator, Hooks
from fedtree_secure.server.state import RoundRecord, StateFolder
from fedtree_secure.server.telemetry import RoundMeter, layers_of
from fedtree_secure.storage import held

log = logging.getLogger("fedtree_secure.flower")
app = ServerApp()
FETCH_S = 5.0  # between two offers of the last experts
CODES = {FINISHED: 0, STOPPED: 1, REFUSED: 2}  # what `serve` ends with
TAKE_OVER_S = 15.0  # an earlier start of the same job has so long to end


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Serve the job whose folder the run's configuration names."""
    given = context.run_config
    settings = Patience(
        deadline=float(given["deadline"]),
        gather=float(given["gather"]),
        enough=float(given["enough"]),
        grace=float(given["grace"]),
    )
    logging.getLogger("fedtree_secure").setLevel(logging.INFO)
    folder = JobFolder(Path(str(given["folder"])), Path(str(given["events"])))
    start_job(folder, grid, settings, str(given["start"]))


def start_job(folder: JobFolder, grid: Grid, patience: Patience, start: str) -> None:
    """Serve a job from where it is until it is finished or stops; write down how it ended."""
    meter = RoundMeter()
    events = Events(folder.events, [meter])
    with _Taken(folder.state):
        try:
            folder.check()
            events = events.of(folder.run)
            finished = _serve(folder, grid, patience, events, meter)
            outcome, error = Outcome(start, FINISHED, "", finished), ""
        except RunStopped as stopped:
            error = type(stopped).__name__
            outcome = Outcome(start, STOPPED, str(stopped), _finished_round(folder))
        except FedTreeError as refused:
            error = type(refused).__name__
            outcome = Outcome(start, REFUSED, str(refused), -1)
        folder.end(outcome)
        end = {"code": CODES[outcome.state], "round": outcome.finished_round, "error": error}
        events("ended", state=outcome.state, **end)


def _serve(
    folder: JobFolder, grid: Grid, patience: Patience, events: Events, meter: RoundMeter
) -> int:
    terms = folder.terms
    transport = GridTransport(grid, folder.key, terms, patience, events)
    events(
        "started",
        name=folder.path.name,
        job=terms.job.digest().hex(),
        settings=without_path(terms.job.to_dict()),
        clients={name: {} for name in terms.names},
        rounds=terms.job.rounds,
        resumed=StateFolder(folder.state).load().starts > 0,
        process=os.getpid(),
        version=importlib.metadata.version("fedtree-secure"),
    )
    transport.gather(terms.job.masking.min_group)

    def on_round(record: RoundRecord) -> None:
        log.info("round %d of %d is over", record.round, terms.job.rounds)
        events("round", rounds=terms.job.rounds, **meter.facts(record))

    def on_tree(tree: Tree) -> None:
        names = [f"layer {number}" for number in folder.facts.layer_names]
        events("tree", layers=layers_of(tree, names))

    until: list[float] = []  # from the first call on

    def ask_again(away: frozenset[str]) -> bool:
        until.append(time.monotonic() + patience.gather)
        log.info("the last experts were not fetched by %s yet", ", ".join(sorted(away)))
        events("away", away=sorted(away))
        time.sleep(FETCH_S)
        return time.monotonic() < until[0]

    hooks = Hooks(on_round=on_round, on_tree=on_tree, on_missed=meter.missed, ask_again=ask_again)
    coordinator = Coordinator(terms, folder.key, folder.facts, transport, folder.state, hooks)
    coordinator.run()
    report = report_of(folder, coordinator)
    found = advice_of(report)  # all of it public: a server knows no more
    for advice in found:
        events("advice", key=advice.key, text=advice.text)
    folder.report(report | {"advice": [advice.to_dict() for advice in found]})
    return coordinator.state.finished_round


def _finished_round(folder: JobFolder) -> int:
    return StateFolder(folder.state).load().finished_round


class _Taken:
    """The state's folder, held; an earlier start that is just ending is waited for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        began = time.monotonic()
        while True:
            self._held = held(self._path)
            try:
                self._held.__enter__()
                return
            except RunFolderError:
                if time.monotonic() - began > TAKE_OVER_S:
                    raise
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._held.__exit__(None, None, None)
