"""A whole run in one process: it plays the server and every client, as different parties.

The two sides meet in nothing but the transport's bytes. This module sets them up, and collects on
the clients' side what a run leaves behind.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtree_secure.agreed.transport import Transport
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.canaries import plant
from fedtree_secure.client.clients import check_clients
from fedtree_secure.client.costs import outcome_of
from fedtree_secure.client.data import Client, prepare
from fedtree_secure.client.data_sets import DataSets, refuse_legacy
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.config import Job
from fedtree_secure.embedded.folder import empty, key_of, open_folder, server_key
from fedtree_secure.embedded.forecast import TESTING, Forecast, parts_of
from fedtree_secure.embedded.in_process import InProcess
from fedtree_secure.embedded.options import (
    RunOptions,
    Wrap,
    end_told,
    events_of,
    watched_as_asked,
)
from fedtree_secure.embedded.references import add_references, plan_of_references
from fedtree_secure.embedded.setting import (
    Parties,
    Setting,
    open_parties,
)
from fedtree_secure.embedded.summary import (
    Finished,
    add_costs,
    client_report,
    write_report,
)
from fedtree_secure.embedded.transcript import Transcript
from fedtree_secure.embedded.watching import Announcing, Watch
from fedtree_secure.errors import ConfigurationError, RunFolderError, RunStopped
from fedtree_secure.events import Events
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData
from fedtree_secure.report.advice import alike
from fedtree_secure.report.evidence import write_evidence
from fedtree_secure.report.expected import noise_to_clip, of_features, of_noise
from fedtree_secure.report.manifest import write_manifest
from fedtree_secure.report.summary import Result
from fedtree_secure.server.coordinator import Coordinator, Hooks
from fedtree_secure.server.telemetry import RoundMeter
from fedtree_secure.storage import SecretBox, held, read_json, write_json


def run_job(job: Job, clients: Sequence[Client], out: Path, options: RunOptions) -> Result:
    """Train, aggregate, stop at the budget, evaluate at home, and write the run folder.

    Args:
        job: What to do.
        clients: At least ``masking.min_group`` of them.
        out: Run folder; new, empty, or (with ``resume``) that of the same job.
        options: See `RunOptions`.

    Raises:
        FedTreeError: A setting, a row, a model, a folder or a store cannot be used; nothing was
            charged. `RunStopped` where the run was interrupted: ``resume`` continues it.
    """
    events = events_of(out, options)
    with end_told(out, events), _disk_explained(out), watched_as_asked(options) as watched:
        return _run(job, clients, out, watched, events)


@contextlib.contextmanager
def _disk_explained(out: Path) -> Iterator[None]:
    """Say what to do where the system refuses a file. Charges made by then are on the disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # ours or a library's, not the system's
            raise
        what = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        raise RunStopped(
            f"a file cannot be read or written ({what}). Mend that, for example free some space; "
            + (
                "then continue with resume=True (--resume): what was charged is known"
                if (out / "job.json").exists()
                else "nothing was charged, begin again"
            )
        ) from error


def _run(
    job: Job, clients: Sequence[Client], out: Path, options: RunOptions, events: Events
) -> Result:
    job = check_clients(job, clients)
    if job.noise == "shared" and options.canaries:
        raise ConfigurationError(
            f'canaries is {options.canaries}; allowed: 0 with noise = "shared", because they are '
            "scored on single uploads, which hold one client's part of the noise: audit a run with "
            "own noise, or this one by components and canary_client"
        )
    declared = [client.records or job.training.records for client in clients]
    plan = parts_of(str(out), job, declared)
    if options.simulate:
        plan += plan_of_references(job, out, declared)
    watching = Watching(Forecast(plan), events)
    result = _run_once(job, clients, out, options, watching, advise=True)
    run = str(read_json(out / "job.json")["run"])
    if options.simulate:

        def train(reference: Job, place: Path) -> Result:
            again = dataclasses.replace(
                options, resume=(place / "job.json").exists(), auditable=False, canaries=0
            )
            return _run_once(reference, clients, place, again, watching)

        watch = watching.of(job, out, run, options)
        add_references(job, clients, result, options.shared, train, watch)
    if options.auditable:
        add_costs(result, job, clients, options.canaries)
    for advice in result.advice:
        if advice.public:  # what was measured at home stays out of events
            watching.events.of(run)("advice", key=advice.key, text=advice.text)
    write_evidence(out)
    box = SecretBox.from_environment()
    write_manifest(out, run, {c.id: key_of(out / "clients" / c.id, box) for c in clients})
    return result


@dataclass(frozen=True)
class Watching:
    """What the jobs of one run are watched with."""

    forecast: Forecast
    events: Events

    def of(self, job: Job, out: Path, run: str, options: RunOptions) -> Watch:
        """Return the watch of a job."""
        assert options.observer is not None
        meter = RoundMeter()
        events = self.events.of(run, meter)
        return Watch(str(out), job, options.observer, self.forecast, events, meter)


def _run_once(
    job: Job,
    clients: Sequence[Client],
    out: Path,
    options: RunOptions,
    watching: Watching,
    *,
    advise: bool = False,
) -> Result:
    if options.resume and not (out / "job.json").exists():
        raise RunFolderError(
            f"there is no run in {out} to resume; leave out resume (--resume) to begin one there"
        )
    SecretBox.from_environment()  # a key file that cannot be used is refused before anything else
    kept = {"messages": options.auditable, "canaries": options.canaries}
    kind = {"simulate": options.simulate, "auditable": kept}
    data_sets = DataSets.inside(out) if options.simulate else DataSets.of_user(_path(options.state))
    if not options.simulate:
        refuse_legacy(out, (c.dataset or c.id for c in clients), data_sets)
    with held(out), contextlib.ExitStack() as stack:
        new, clock = not (out / "job.json").exists(), _Clock()
        run = open_folder(out, job, clients, resume=options.resume, kind=kind)
        watch = watching.of(job, out, run, options)
        try:
            watch.started(out.name, clients, resumed=not new)
            watch.phase("loading the model")
            backbone = options.shared.backbone(job)
            setting = Setting(job, clients, out, run, data_sets, backbone, options.shared, watch)
            clock.lap("load model")
            watch.phase("reading rows, planning noise")
            setting, data, sides = _set_up(stack, setting, options)
        except BaseException:
            if new:  # refused before anything happened: the folder is free for another run
                empty(out)
            raise
        if advise and new:
            _advise(setting, sides)
        clock.lap("read data, plan noise")
        kept_messages = out / "messages.bin" if options.auditable else None
        transcript = Transcript(out / "transcript.txt", kept_messages)
        stack.callback(transcript.close)
        coordinator, embedded = _drive(setting, sides, transcript, options.wrap_transport)
        clock.lap("train and aggregate")
        return _conclude(setting, sides, data, Finished(coordinator, embedded, transcript), clock)


def _set_up(
    stack: contextlib.ExitStack, setting: Setting, options: RunOptions
) -> tuple[Setting, dict[str, ClientData], Parties]:
    """Read rows and make the parties; evaluation and reports know nothing of canaries."""
    job, tokenizer = setting.job, setting.backbone.tokenizer
    data = {client.id: prepare(client, job, tokenizer) for client in setting.clients}
    train = data
    if options.canaries:  # what is cached of rows is not that of a job without canaries
        train = plant(setting.folder, data, job, tokenizer, options.canaries, os.urandom)
        setting = dataclasses.replace(setting, shared=options.shared.without_caches())
    return setting, data, open_parties(stack, setting, train)


def _advise(setting: Setting, sides: Parties) -> None:
    """Say what public numbers say of adapters, before anything is spent."""
    job, backbone = setting.job, setting.backbone
    values, ratios = backbone.layout().length, []
    for client in setting.clients:
        plan = sides.participants[client.id].party.member.noise_plan
        records = client.records or job.training.records
        ratios.append(noise_to_clip(job, plan, records, values))
    noisy = of_noise(job, alike(ratios), len(setting.clients))
    for found in filter(None, (of_features(job, backbone.pooling), noisy)):
        setting.watch.advise(found)


def _path(state: Path | str | None) -> Path | None:
    return None if state is None else Path(state)


def _drive(
    setting: Setting, sides: Parties, transcript: Transcript, wrap: Wrap | None
) -> tuple[Coordinator, InProcess]:
    stop = threading.Event()
    handlers = {name: p.handle for name, p in sides.participants.items()}
    watch = dataclasses.replace(setting.watch, ledgers=sides.ledgers)
    embedded = InProcess(handlers, transcript, stop=stop.is_set, watch=watch)
    transport: Transport = Announcing(embedded, watch)
    if wrap is not None:
        transport = wrap(transport)
    key = server_key(setting.folder, setting.job, SecretBox.from_environment())
    watch.tell_budget()
    with _interruptible(stop, lambda: watch.note(embedded.when_stopped())):
        facts = setting.backbone.facts(sides.terms.outputs_of_heads)
        hooks = Hooks(
            stop.is_set,
            watch.over,
            lambda tree: watch.tree(tree, facts),
            watch.meter.missed,
        )
        coordinator = Coordinator(
            sides.terms, key, facts, transport, setting.folder / "server", hooks
        )
        try:
            coordinator.run()
        except RunStopped as stopped:
            last = embedded.failures[-1] if embedded.failures and not stop.is_set() else None
            detail = f" (last failure, {last.client}: {last.error})" if last else ""
            raise RunStopped(
                f"{stopped}{detail}. Nothing is lost; continue with resume=True (--resume)"
            ) from (last.error if last else None)
        finally:
            _show_records(setting, sides)
    return coordinator, embedded


def _show_records(setting: Setting, sides: Parties) -> None:
    """Write what auditors may see of each client's record."""
    for name, participant in sides.participants.items():
        record = participant.party.store.record.public()
        write_json(setting.place_of(name) / "journal.json", record)


def _conclude(
    setting: Setting,
    sides: Parties,
    data: Mapping[str, ClientData],
    finished: Finished,
    clock: "_Clock",
) -> Result:
    """On the clients' side: evaluate at home, save adapters, copy ledgers, write the summary."""
    folder, backbone, reports, adapters = setting.folder, setting.backbone, {}, {}
    setting.watch.phase(TESTING, len(setting.clients))
    for client in setting.clients:
        participant, ledger = sides.participants[client.id], sides.ledgers[client.id]
        adapters[client.id] = folder / "adapters" / client.id
        with setting.watch.at_work(client.id):
            with participant.at_backbone():
                metric = backbone.evaluate(data[client.id])
                spent = outcome_of(ledger, metric)
                save_adapter(backbone, adapters[client.id], data[client.id].label_set, spent)
            head = participant.party.store.state.head
            without = _without_adapters(backbone, data[client.id], head)
        reports[client.id] = client_report(
            client, data[client.id], ledger, metric, without, finished.transcript
        )
        copy = folder / "ledgers" / f"{client.dataset or client.id}.sqlite"
        copy.parent.mkdir(exist_ok=True)
        ledger.snapshot(copy)
        secret = sides.identities[client.id].to_private_bytes()
        key = Ed25519PrivateKey.from_private_bytes(secret)
        ledger.keep_checkpoint(copy.with_suffix(".checkpoints"), key)
    clock.lap("evaluate and save")
    setting.watch.phase("report")
    return write_report(setting.job, folder, reports, adapters, finished, backbone, clock.laps)


def _without_adapters(
    backbone: Backbone, data: ClientData, head: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The metric with all adapters at their initial values, which change nothing."""
    outputs, flat = len(data.label_set), np.zeros(backbone.experts.depth, dtype=bool)
    state = dataclasses.replace(initial_state(backbone, outputs), head=dict(head))
    with loaded_into(backbone, state, outputs, flat):
        return backbone.evaluate(data)


@contextlib.contextmanager
def _interruptible(stop: threading.Event, say: Callable[[], None]) -> Iterator[None]:
    """First Ctrl-C: say what happens, and stop where that loses nothing (`InProcess`). Second: stop
    at once (the stores are valid at every moment).

    Args:
        stop: Set by the first.
        say: Tells the person who pressed it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)
        say()

    previous = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
