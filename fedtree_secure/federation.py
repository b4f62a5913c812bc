"""The main job: `Federation(...).run(clients, out=...)`.

This is the embedded form, in which one process plays the server and every client. The two sides
still meet in nothing but the transport's bytes; this module only sets them up, and collects on the
clients' side what a run leaves behind.
"""

import contextlib
import dataclasses
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtree_dp import Ledger, PrivacyBudget, epsilon_of
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed.noise_plan import NoisePlan, plan_noise
from fedtree_secure.agreed.transport import InProcess, Transcript, Transport
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.canaries import plant
from fedtree_secure.client.data import Client, ClientData, load_clients, prepare
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.state import fresh_belongings, seated
from fedtree_secure.config import Job, load_job
from fedtree_secure.embedded.progress import Observer, Silent
from fedtree_secure.errors import ConfigurationError, RunFolderError, RunStopped
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.report.manifest import write_manifest
from fedtree_secure.report.summary import Result, add_costs, client_report, write_report
from fedtree_secure.server.coordinator import Coordinator, RoundRecord
from fedtree_secure.storage import held, read_json, write_atomically, write_json


@dataclass
class Shared:
    """What several jobs of one process may share: the model, and values computed from rows with it,
    by client.
    """

    backbone: Backbone | None = None
    caches: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    data: dict[str, ClientData] = dataclasses.field(default_factory=dict)


@dataclass
class _Seats:
    """Everything of the clients' side that a run needs."""

    participants: dict[str, Participant]
    ledgers: dict[str, Ledger]
    data: dict[str, ClientData]
    roster: Roster


@dataclass(frozen=True, kw_only=True)
class Federation(Job):
    """A federated fine-tuning job; see `Job` for the settings.

    >>> from fedtree_secure import Federation, PrivacyBudget
    >>> budget = PrivacyBudget(epsilon=8, delta=1e-5)
    >>> Federation(backbone="path/or/id", privacy=budget, rounds=10).rounds
    10
    """

    @classmethod
    def from_toml(cls, path: str | Path) -> tuple[Self, list[Client]]:
        """Read a job file and the clients' files that it names, relative to it.

        Raises:
            ConfigurationError, DataError: The file or a client's rows cannot be used.
        """
        job, entries = load_job(path)
        fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(Job)}
        return cls(**fields), load_clients(entries, Path(path).resolve().parent)

    def run(
        self,
        clients: Sequence[Client],
        out: str | Path,
        *,
        resume: bool = False,
        simulate: bool = False,
        ledgers: str | Path | None = None,
        auditable: bool = False,
        canaries: int = 0,
        observer: Observer | None = None,
        shared: Shared | None = None,
        wrap_transport: Any = None,
    ) -> Result:
        """Train, aggregate, stop at the budget, evaluate at home, and write the run folder.

        Args: clients: At least ``masking.min_group`` of them. out: Run folder; new, empty, or (with
            ``resume``) that of the same job. resume: Go on with a run that was stopped or killed.
            simulate: Research mode, in which nothing is released: ledgers live inside ``out``, and
            references (head
                alone, local only, FedIT) are trained under the same epsilon for comparison. A real
                run never trains them, because they would spend the clients' budget.
            ledgers: Folder of the data sets' ledgers, shared by all jobs on these data; ``ledgers``
                beside ``out`` if not given.
            auditable: Keep every message (``messages.bin``), so that audits can look at the run's
                own uploads; the summary says what that costs.
            canaries: With ``auditable``: coins of each client, see
                `fedtree_secure.client.canaries`. Costs data, no epsilon.
            observer: Is told about progress.
            shared: A loaded backbone and caches, to save time over several jobs.
            wrap_transport: For tests and audits: gets the embedded transport, returns the one to
                use.

        Raises: ConfigurationError, DataError, BackboneError, RunFolderError: Before anything is
            charged. fedtree_dp.BudgetExceeded, fedtree_dp.LedgerError: A data set has no budget
            left, or its ledger is damaged
                or another one's; nothing was charged.
            RunStopped: The run was interrupted; ``resume=True`` goes on.
        """
        folder = Path(out)
        shared = shared or Shared()
        observer = observer or Silent()
        self._check_clients(clients)
        if canaries and not auditable:
            raise ConfigurationError(
                f"{canaries} canaries were asked for; they need auditable=True (--auditable)"
            )
        with held(folder), contextlib.ExitStack() as stack:
            kept = {"messages": auditable, "canaries": canaries}
            run_id = _open_folder(
                folder, self, clients, resume=resume, simulate=simulate, auditable=kept
            )
            clock = _Clock()
            observer.job(folder.name)
            shared.backbone = shared.backbone or Backbone(self)
            clock.lap("load model")
            data = {
                client.id: prepare(client, self, shared.backbone.tokenizer) for client in clients
            }
            shared.data.update(data)
            clock.lap("read data")
            place = (
                folder / "ledgers"
                if simulate
                else Path(ledgers or folder.resolve().parent / "ledgers")
            )
            train, caches = data, shared
            if canaries:  # what is cached of rows is not that of a job without canaries
                train = plant(folder, data, self, shared.backbone.tokenizer, canaries, os.urandom)
                caches = Shared(shared.backbone)
            seats = self._seat(stack, clients, train, folder, place, run_id, caches, observer)
            seats.data.update(data)  # evaluation and reports know nothing of canaries
            transcript = Transcript(
                folder / "transcript.txt", folder / "messages.bin" if auditable else None
            )
            stack.callback(transcript.close)
            clock.lap("plan noise")
            coordinator = self._drive(
                seats, shared.backbone, transcript, folder, observer, wrap_transport
            )
            clock.lap("train and aggregate")
            result = self._conclude(
                clients, seats, coordinator, transcript, shared.backbone, folder, clock
            )
        if simulate and not _is_reference(folder):
            from fedtree_secure.embedded.references import add_references

            add_references(self, clients, folder, result, shared, observer)
        if auditable:
            add_costs(result, self, clients, canaries)
        write_manifest(
            folder,
            run_id,
            {client.id: _identity(folder / "clients" / client.id) for client in clients},
        )
        return result

    def _check_clients(self, clients: Sequence[Client]) -> None:
        least = self.masking.min_group
        if len(clients) < least:
            raise ConfigurationError(
                f"{len(clients)} clients were given; at least masking.min_group = {least} are "
                "needed, because no sum "
                f"over fewer is ever opened"
            )
        for what, names in (
            ("id", [c.id for c in clients]),
            ("dataset", [c.dataset or c.id for c in clients]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ConfigurationError(
                    f"two clients have the {what} {min(twice)!r}; each needs its own"
                )
        for client in clients:
            budget, records = (
                client.privacy or self.privacy,
                client.records or self.training.records,
            )
            budget.check_records(records)

    def _seat(
        self,
        stack: contextlib.ExitStack,
        clients: Sequence[Client],
        data: Mapping[str, ClientData],
        folder: Path,
        ledgers: Path,
        run_id: str,
        shared: Shared,
        observer: Observer,
    ) -> _Seats:
        """Open all ledgers and plan all noise before anything is charged, then make the
        participants.
        """
        assert shared.backbone is not None
        ledgers.mkdir(parents=True, exist_ok=True)
        opened, plans = {}, {}
        for client in clients:
            name = client.dataset or client.id
            place, allowed = folder / "clients" / client.id, client.privacy or self.privacy
            # A client that has a noise plan had a ledger: a missing one was deleted, and must not
            # begin anew at zero.
            missing_is_new = not (place / "noise.json").exists()
            ledger = Ledger.open(
                ledgers / f"{name}.sqlite", dataset=name, budget=allowed, create=missing_is_new
            )
            opened[client.id] = stack.enter_context(ledger)
            plans[client.id] = _noise_plan(self, allowed, ledger, place)
        identities = {client.id: _identity(folder / "clients" / client.id) for client in clients}
        roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
        _record_roster(folder, roster)
        participants = {
            client.id: Participant(
                client,
                data[client.id],
                self,
                roster,
                identities[client.id],
                shared.backbone,
                opened[client.id],
                plans[client.id],
                folder / "clients" / client.id,
                job_id=run_id,
                cache=shared.caches.setdefault(client.id, {}),
                tick=lambda _client, _stage: observer.step(),
            )
            for client in clients
        }
        return _Seats(participants, opened, dict(data), roster)

    def _drive(
        self,
        seats: _Seats,
        backbone: Backbone,
        transcript: Transcript,
        folder: Path,
        observer: Observer,
        wrap_transport: Any,
    ) -> Coordinator:
        embedded = InProcess({name: p.handle for name, p in seats.participants.items()}, transcript)
        transport: Transport = _Announcing(embedded, observer, self)
        if wrap_transport is not None:
            transport = wrap_transport(transport)
        allowed = max(ledger.budget.epsilon for ledger in seats.ledgers.values())

        def on_round(record: RoundRecord) -> None:
            # For people who watch: the statement's finer grid would cost a second a round and
            # change the third digit.
            spent = max(
                epsilon_of(
                    ledger.events(), ledger.budget.delta, discretization=PLANNING_DISCRETIZATION
                )
                for ledger in seats.ledgers.values()
            )
            observer.round(
                record.round,
                self.rounds,
                spent,
                allowed,
                f"[yellow]{record.error}" if record.error else "",
            )

        with _interruptible() as stop:
            coordinator = Coordinator(
                self,
                seats.roster,
                backbone,
                transport,
                folder / "server",
                stop=stop.is_set,
                on_round=on_round,
            )
            try:
                coordinator.run()
            except RunStopped as stopped:
                cause = embedded.failures[-1][2] if embedded.failures else None
                detail = f" (last failure, {embedded.failures[-1][0]}: {cause})" if cause else ""
                raise RunStopped(
                    f"{stopped}{detail}. Nothing is lost; go on with resume=True (--resume)"
                ) from cause
        coordinator.failures = [
            {"client": name, "stage": stage, "error": type(error).__name__}
            for name, stage, error in embedded.failures
        ]
        return coordinator

    def _conclude(
        self,
        clients: Sequence[Client],
        seats: _Seats,
        coordinator: Coordinator,
        transcript: Transcript,
        backbone: Backbone,
        folder: Path,
        clock: "_Clock",
    ) -> Result:
        """On the clients' side: evaluate at home, save adapters, copy ledgers, write the
        summary.
        """
        reports, adapters = {}, {}
        for client in clients:
            participant, ledger = seats.participants[client.id], seats.ledgers[client.id]
            adapters[client.id] = folder / "adapters" / client.id
            with participant.at_backbone():
                metric = backbone.evaluate(seats.data[client.id])
                save_adapter(backbone, adapters[client.id], seats.data[client.id].label_set)
            untrained = (
                _untrained(backbone, seats.data[client.id]) if self.task == "causal-lm" else None
            )
            reports[client.id] = client_report(
                client, seats.data[client.id], ledger, metric, untrained, transcript
            )
            copy = folder / "ledgers" / f"{client.dataset or client.id}.sqlite"
            if copy.resolve() != ledger.path.resolve():
                copy.parent.mkdir(exist_ok=True)
                ledger.snapshot(copy)
            key = Ed25519PrivateKey.from_private_bytes(
                _identity(folder / "clients" / client.id).to_private_bytes()
            )
            ledger.keep_checkpoint(copy.with_suffix(".checkpoints"), key)
        clock.lap("evaluate and save")
        return write_report(self, folder, reports, adapters, coordinator, backbone, clock.laps)


def _untrained(backbone: Backbone, data: ClientData) -> dict[str, Any] | None:
    """The metric of the frozen backbone: what a language model is to be compared with."""
    with seated(
        backbone, fresh_belongings(backbone, 0), 0, np.zeros(backbone.experts.depth, dtype=bool)
    ):
        return backbone.evaluate(data)


class _Announcing:
    """Tells the observer which stage runs and how many steps it will take."""

    def __init__(self, inner: InProcess, observer: Observer, job: Job) -> None:
        self._inner, self._observer, self._job = inner, observer, job

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        kind = stage.rpartition("/")[2]
        local = self._job.training.local_steps
        sketch = (
            1 if self._job.topology.source == "fingerprint" else self._job.topology.warmup_steps
        )
        steps = {"sketch": sketch, "prepare": self._job.head_steps, "mask": local, "alone": local}
        names = {
            "sketch": "private distances",
            "prepare": "heads",
            "mask": "local steps",
            "alone": "local steps",
        }
        if steps.get(kind):
            self._observer.stage(
                f"{names[kind]} ({stage.partition('/')[0]})", steps[kind] * len(requests)
            )
        return self._inner.exchange(stage, requests)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """First Ctrl-C: finish the round, then stop. Second: stop at once (the ledger is valid at every
    moment).
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def first(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, first)
    try:
        yield stop
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


def _open_folder(
    folder: Path,
    job: Job,
    clients: Sequence[Client],
    *,
    resume: bool,
    simulate: bool,
    auditable: Mapping[str, Any],
) -> str:
    """Create the run folder, or check that it is this job's; return the run's id."""
    path = folder / "job.json"
    described = {
        "job": job.to_dict(),
        "simulate": simulate,
        "auditable": dict(auditable),
        "clients": {
            c.id: {"dataset": c.dataset or c.id, "records": c.records}
            for c in sorted(clients, key=lambda c: c.id)
        },
    }
    if not path.exists():
        strangers = sorted(p.name for p in folder.iterdir() if p.name != ".lock")
        if strangers:
            raise RunFolderError(
                f"{folder} is not empty (it holds {', '.join(strangers[:5])}) and holds no run; "
                "choose another folder"
            )
        run_id = secrets.token_hex(8)
        write_json(path, {"format": 1, "run": run_id, **described})
        return run_id
    stored = read_json(path)
    if {key: stored.get(key) for key in described} != described:
        raise RunFolderError(
            f"{folder} holds another job (its job.json differs); choose another folder"
        )
    if not resume:
        state = "a finished run" if (folder / "summary.json").exists() else "an unfinished run"
        raise RunFolderError(
            f"{folder} holds {state} of this job; go on with resume=True (--resume) or choose "
            "another folder"
        )
    return str(stored["run"])


def _is_reference(folder: Path) -> bool:
    return folder.parent.name == "references"


def _noise_plan(job: Job, budget: PrivacyBudget, ledger: Ledger, folder: Path) -> NoisePlan:
    """The client's plan: made once before anything is charged, kept, never changed by what happens
    later.
    """
    path = folder / "noise.json"
    if path.exists():
        return NoisePlan(**read_json(path))
    plan = plan_noise(job, budget, ledger.events())
    write_json(path, dataclasses.asdict(plan))
    return plan


def _identity(folder: Path) -> Identity:
    path = folder / "identity.key"
    if not path.exists():
        secret = Identity.generate(os.urandom(32)).to_private_bytes()
        write_atomically(path, lambda target: target.write_bytes(secret), mode=0o600)
    return Identity(path.read_bytes())


def _record_roster(folder: Path, roster: Roster) -> None:
    path = folder / "roster.json"
    keys = {name: key.hex() for name, key in roster.keys.items()}
    if path.exists() and read_json(path) != keys:
        raise RunFolderError(
            f"{path} names other keys than the clients hold; the folder was changed by somebody"
        )
    write_json(path, keys)
