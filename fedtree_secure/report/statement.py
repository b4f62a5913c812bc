"""One `Statement` of a run: everything that is printed about it is read from here.

It is built from the run folder alone: the job, the summary, the ledgers' copies, the index of
messages, and the reports of audits where some ran. Its burn-down comes from the ledgers' events;
the gate (`fedtree_secure.report.gate`) compares what the summary claims with them. It holds no row
of anybody, and names no path of the machine that ran the job.
"""

import functools
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedtree_dp import Event, Ledger, epsilon_of, given_honest
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.ledger.entries import Entry
from fedtree_secure.errors import RunFolderError
from fedtree_secure.report.advice import Advice, advice_of
from fedtree_secure.report.audit_files import AuditFinding, read_audits
from fedtree_secure.storage import read_json

OTHER_JOBS = "other jobs on this data set"


@dataclass(frozen=True)
class Charge:
    """A point of a data set's burn-down.

    Attributes:
        purpose: What was charged: a stage of this run, or a row of charges of other jobs.
        epsilon: Of everything charged up to here. Read off a coarse grid that only overstates.
    """

    purpose: str
    epsilon: float


@dataclass(frozen=True)
class ClientStatement:
    """What is said of one client.

    Attributes:
        name, dataset: As in the job.
        records: Declared number of training records, or of units, which is public.
        epsilon, allowed, delta: Spent on the data set by all jobs, its budget, and the delta of
            both.
        epsilon_without_amplification: The same for who knows every batch.
        releases: What was charged, equal events merged.
        burn_down: How epsilon grew, in the order of the charges.
        budgets: Budgets in force, first to last: epsilon, and why it was changed.
        metric: Of the delivered adapter at home, None without test rows.
        baseline: Of the majority class, or of the untrained model.
        labels: Names of the head's outputs; empty for language models.
        bytes_sent, bytes_received: On the wire.
        own_epsilon, own_allowed: Where noise is shared: what was spent and is allowed whatever all
            others do; else None.
        honest_others: Where noise is shared: ``epsilon`` by the number of honest others, from what
            it counts on down to none; else empty.
    """

    name: str
    dataset: str
    records: int
    epsilon: float
    allowed: float
    delta: float
    epsilon_without_amplification: float | str
    releases: tuple[Mapping[str, Any], ...]
    burn_down: tuple[Charge, ...]
    budgets: tuple[tuple[float, str], ...]
    metric: Mapping[str, Any] | None
    baseline: float | None
    labels: tuple[str, ...]
    bytes_sent: int
    bytes_received: int
    own_epsilon: float | None = None
    own_allowed: float | None = None
    honest_others: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class LayerStatement:
    """Who shares a layer.

    Attributes:
        layer: Its number in the backbone.
        groups: Members of each cluster.
        opened: For each cluster, whether its sum is opened; else the layer stays at home.
        why: A sentence on why it is cut so; empty where cuts were not weighed.
    """

    layer: int
    groups: tuple[tuple[str, ...], ...]
    opened: tuple[bool, ...]
    why: str = ""


@dataclass(frozen=True)
class RoundStatement:
    """What a round opened: numbers of clients behind each sum, and why it opened nothing."""

    number: int
    survivors: tuple[int, ...]
    error: str


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind over the whole run."""

    exchange: str
    messages: int
    bytes: int


@dataclass(frozen=True)
class Statement:
    """Everything that is said of a run.

    Attributes:
        run: Its id.
        date: Of the last charge, ISO 8601, UTC.
        job: Settings, with the backbone's name in place of its path.
        simulated: Whether its ledgers are its own and say nothing of the data sets' budgets.
        guarantee: Unit, adjacency, observers, what is public.
        clients, layers, rounds, traffic: See there.
        audits: What audits found; empty where none ran.
        advice: What the result advises.
        failures: How often a client failed at a stage.
        trained_values: Of a client's shared model.
        model_sha256: Digest of the frozen model.
        versions: Of the software.
        named: False where clients and data sets have numbers in place of names.
    """

    run: str
    date: str
    job: Mapping[str, Any]
    simulated: bool
    guarantee: Mapping[str, Any]
    clients: tuple[ClientStatement, ...]
    layers: tuple[LayerStatement, ...]
    rounds: tuple[RoundStatement, ...]
    traffic: tuple[Traffic, ...]
    audits: tuple[AuditFinding, ...]
    advice: tuple[Advice, ...]
    failures: int
    trained_values: int
    model_sha256: str
    versions: Mapping[str, str]
    named: bool = True

    @classmethod
    def of(cls, folder: Path) -> "Statement":
        """Read a finished run.

        Raises:
            RunFolderError: There is no run, it is not finished, or a file is missing or damaged.
            LedgerError: A ledger's copy cannot be read, or was changed.
        """
        described, summary = read_json(folder / "job.json"), _summary(folder)
        try:
            return _collect(folder, described, summary)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(
                f"{folder} holds no run that this version reads: {type(error).__name__} {error}"
            ) from None

    @property
    def unit(self) -> str | None:
        """The name of the unit that is protected; None for single rows."""
        unit = self.guarantee.get("of")
        return None if unit is None else str(unit["name"])

    @property
    def shared(self) -> Mapping[str, Any] | None:
        """What epsilon assumes of others; None where it assumes nothing."""
        found: Mapping[str, Any] | None = self.guarantee.get("shared")
        return found

    @property
    def budgets(self) -> tuple[str, ...]:
        """Who promises what, in sentences, where clients' budgets differ; else none."""
        return tuple(self.guarantee.get("budgets", ()))

    @property
    def masks(self) -> tuple[Mapping[str, Any], ...]:
        """The graphs of masks, as `agreed.graph_facts` describes them; none of older runs."""
        return tuple(self.guarantee.get("masks", ()))

    @property
    def own_epsilon(self) -> float | None:
        """The largest of any client whatever all others do, where noise is shared."""
        found = [c.own_epsilon for c in self.clients if c.own_epsilon is not None]
        return max(found, default=None)

    @property
    def counted(self) -> str:
        """What declared sizes count, and what is clipped and drawn."""
        return self.unit or "record"

    @property
    def epsilon(self) -> float:
        """The largest of any client."""
        return max(client.epsilon for client in self.clients)

    @property
    def delta(self) -> float:
        """The largest of any client."""
        return max(client.delta for client in self.clients)

    def without_names(self) -> "Statement":
        """Return the same with numbers in place of the names of clients and data sets.

        Numbers are drawn anew each time, so that their order says nothing of the names' order.
        Label names go, too: they may name a site. What remains can still be linked to a site by
        who knows its size or its results.
        """
        shuffled = list(self.clients)
        random.SystemRandom().shuffle(shuffled)
        clients = {c.name: f"client {number}" for number, c in enumerate(shuffled, 1)}
        sets = list(dict.fromkeys(c.dataset for c in shuffled))
        names = {name: f"data set {number}" for number, name in enumerate(sets, 1)} | clients
        scrub = _scrubber(names)
        return replace(
            self,
            job=_job_scrubbed(self.job, scrub),
            guarantee=_scrubbed(self.guarantee, scrub),
            clients=tuple(
                replace(
                    c,
                    name=clients[c.name],
                    dataset=f"data set {sets.index(c.dataset) + 1}",
                    labels=(),
                    budgets=tuple((epsilon, scrub(reason)) for epsilon, reason in c.budgets),
                )
                for c in shuffled
            ),
            layers=tuple(
                replace(x, groups=tuple(tuple(clients[n] for n in group) for group in x.groups))
                for x in self.layers
            ),
            rounds=tuple(replace(x, error=scrub(x.error)) for x in self.rounds),
            audits=tuple(_audit_scrubbed(x, scrub) for x in self.audits),
            advice=tuple(replace(x, text=scrub(x.text)) for x in self.advice),
            named=False,
        )


def _summary(folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").is_file():
        raise RunFolderError(
            f"{folder} holds no finished run: there is no summary.json. Continue it with --resume"
        )
    return dict(read_json(folder / "summary.json"))


def _collect(folder: Path, described: Mapping[str, Any], summary: Mapping[str, Any]) -> Statement:
    run, lines = str(described["run"]), dict[str, tuple[Entry, ...]]()
    for client in described["clients"].values():
        path = folder / "ledgers" / f"{client['dataset']}.sqlite"
        with Ledger.inspect(path) as ledger:
            lines[client["dataset"]] = ledger.entries()
    return Statement(
        run=run,
        date=max(entries[-1].time for entries in lines.values()),
        job=without_path(summary["job"]),
        simulated=bool(described.get("simulate")),
        guarantee=summary["guarantee"],
        clients=tuple(
            _client(name, about, summary["clients"][name], lines[about["dataset"]], run)
            for name, about in sorted(described["clients"].items())
        ),
        layers=tuple(_layer(layer) for layer in summary["layers"]),
        rounds=tuple(
            RoundStatement(
                int(record["round"]),
                tuple(len(names) for names in record["opened"].values()),
                str(record["error"]),
            )
            for record in summary["rounds"]
        ),
        traffic=_traffic(folder / "transcript.txt"),
        audits=read_audits(folder),
        advice=tuple(advice_of(summary)),
        failures=len(summary["failures"]),
        trained_values=int(summary["trained_values"]),
        model_sha256=str(summary["model_sha256"]),
        versions=summary["versions"],
    )


def _client(
    name: str,
    about: Mapping[str, Any],
    report: Mapping[str, Any],
    lines: tuple[Entry, ...],
    run: str,
) -> ClientStatement:
    budget = next(line.budget for line in reversed(lines) if line.budget is not None)
    formal = report["statement"]
    return ClientStatement(
        name=name,
        dataset=about["dataset"],
        records=int(about["records"] or 0),
        epsilon=float(report["epsilon_spent"]),
        allowed=budget.epsilon,
        delta=budget.delta,
        epsilon_without_amplification=formal["epsilon_without_amplification"],
        releases=tuple(formal["releases"]),
        burn_down=burn_down(lines, run, budget.delta),
        budgets=tuple(
            (line.budget.epsilon, line.reason or "the first one")
            for line in lines
            if line.budget is not None
        ),
        metric=report["metric"],
        baseline=_number(report["untrained"] or report["majority"]),
        labels=tuple(map(str, report["labels"] or ())),
        bytes_sent=int(report["bytes_sent"]),
        bytes_received=int(report["bytes_received"]),
        own_epsilon=_number(report.get("own_epsilon_spent")),
        own_allowed=_number(report.get("own_epsilon_allowed")),
        honest_others=tuple(formal.get("honest_others", ())),
    )


def burn_down(lines: Iterable[Entry], run: str, delta: float) -> tuple[Charge, ...]:
    """Return how epsilon grew: a point for each charge of a run, one for others in a row. Of shared
    noise it is what holds while others are honest.
    """
    events: list[Event] = []
    found: list[Charge] = []
    for line in lines:
        if line.event is None:
            continue
        events.append(line.event)
        own = line.job == run
        if not own and found and found[-1].purpose == OTHER_JOBS:
            found.pop()
        purpose = line.purpose or "" if own else OTHER_JOBS
        found.append(Charge(purpose, quick_epsilon(given_honest(events), delta)))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def quick_epsilon(events: tuple[Event, ...], delta: float) -> float:
    """Epsilon off the coarse grid; clients of one job mostly hold the same events."""
    return epsilon_of(events, delta, discretization=PLANNING_DISCRETIZATION)


def _layer(layer: Mapping[str, Any]) -> LayerStatement:
    opened = {tuple(group) for group in layer["released"]}
    groups = tuple(tuple(group) for group in layer["clusters"])
    shared = tuple(group in opened for group in groups)
    return LayerStatement(int(layer["layer"]), groups, shared, str(layer.get("why", "")))


def _traffic(path: Path) -> tuple[Traffic, ...]:
    """Count messages by exchange, all rounds together."""
    try:
        lines = path.read_text("utf-8").splitlines()[1:]
        found: dict[str, tuple[int, int]] = {}
        for line in lines:
            _, _, _, stage, size, _ = line.split()
            messages, total = found.get(kind := stage.rpartition("/")[2], (0, 0))
            found[kind] = (messages + 1, total + int(size))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None
    return tuple(Traffic(kind, *counts) for kind, counts in found.items())


def without_path(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings with the backbone's name in place of its path, which names users and
    machines, and means nothing elsewhere.
    """
    backbone = str(job["backbone"])
    local = Path(backbone).is_absolute() or backbone.startswith((".", "~"))
    return {**job, "backbone": Path(backbone).name if local else backbone}


def _number(value: Any) -> float | None:
    found = value["value"] if isinstance(value, Mapping) else value
    return None if found is None else float(found)


def _scrubber(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return what replaces names where they stand alone; the longest first."""
    ordered = sorted(names, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, ordered))})(?![A-Za-z0-9])", re.IGNORECASE
    )
    folded = {name.casefold(): alias for name, alias in names.items()}
    return lambda text: pattern.sub(lambda found: folded[found[1].casefold()], text)


def _scrubbed(value: Any, scrub: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: _scrubbed(item, scrub) for key, item in value.items()}
    return [_scrubbed(item, scrub) for item in value] if isinstance(value, list) else value


def _job_scrubbed(job: Mapping[str, Any], scrub: Callable[[str], str]) -> dict[str, Any]:
    """A job without names; its budgets' keys are names, too."""
    found: dict[str, Any] = _scrubbed(job, scrub)
    if "budgets" in found:
        found["budgets"] = {scrub(name): budget for name, budget in found["budgets"].items()}
    return found


def _audit_scrubbed(audit: AuditFinding, scrub: Callable[[str], str]) -> AuditFinding:
    return replace(
        audit,
        claim=scrub(audit.claim),
        adversary=scrub(audit.adversary),
        power=scrub(audit.power),
        troubles=tuple(map(scrub, audit.troubles)),
        stale=tuple(map(scrub, audit.stale)),
    )
