"""A job looked at before it runs: all errors of all clients at once, and what a run would be like.

Nothing is charged and nothing is written: a data set's store is read where there is one, for what
is left of its budget. Everything here was read from rows and is for their owner's eyes.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtree_dp import BudgetExceeded, Event, Ledger, PrivacyBudget, epsilon_of, given_honest
from fedtree_dp.account.shared import table
from fedtree_dp.account.statements import condition
from fedtree_dp.account.unit import name_of
from fedtree_secure.agreed.head_groups import head_groups
from fedtree_secure.agreed.noise_plan import NoisePlan, events_of, part_of, plan_noise
from fedtree_secure.client.clients import check_clients
from fedtree_secure.client.data import Client, client_of, place_of, prepare, problems, texts_of
from fedtree_secure.client.data_sets import SAME, DataSets
from fedtree_secure.client.files import read_rows
from fedtree_secure.config import Job
from fedtree_secure.errors import DataError, FedTreeError
from fedtree_secure.home.cost import estimate
from fedtree_secure.job_file import ClientFiles, load_job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData
from fedtree_secure.report.advice import alike, too_few
from fedtree_secure.report.expected import noise_to_clip, of_features, of_noise
from fedtree_secure.report.head_release import release_said

OFF = 0.2  # of the declared size: above this, it is said
LEAST_SHARE = 0.05  # of a label among the rows


@dataclass(frozen=True)
class ClientReport:
    """What a client's rows look like. Private.

    Attributes:
        rows, test_rows: How many there are.
        counted: How many the job's protection counts: rows, or units where it protects units.
        declared: What the job says of that.
        balance: Rows of the rarest and of the most frequent label of the set.
        twice: Training rows whose text stands there before.
        in_both: Test rows whose text is among the training rows.
        cut: Share of texts longer than `Training.max_length`.
    """

    id: str
    rows: int
    counted: int
    declared: int
    test_rows: int
    balance: str
    twice: int
    in_both: int
    cut: float


@dataclass
class Report:
    """What `examine` found.

    Attributes:
        clients: Of those whose rows could be read.
        facts: Sentences on model, noise and cost.
        advice: What may be better otherwise.
        errors: What a run would refuse.
    """

    clients: list[ClientReport] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def examine(path: Path, state: Path | None = None) -> Report:
    """Look at a job file, its model and the rows of all its clients.

    Args:
        path: The job file.
        state: Folder of the data sets' stores; see `DataSets.of_user`.

    Raises:
        ConfigurationError: The job file itself cannot be read.
    """
    job, entries = load_job(path)
    report = Report()
    clients = _clients(entries, Path(path).expanduser().resolve().parent, report)
    _collect(report, lambda: check_clients(job, clients))
    backbone: list[Backbone] = []
    _collect(report, lambda: backbone.append(Backbone(job)))
    readable = []
    for client in (c for c in clients if c.train):
        found = problems(client, job)
        report.errors += found
        readable += [] if found else [client]
    if backbone:
        data = _prepared(readable, job, backbone[0].tokenizer, report)
        report.clients = [_client(c, job, d, backbone[0].tokenizer) for c, d in data]
        _say_model(report, job, backbone[0])
        _say_labels(report, job, data)
        if data and not report.errors:
            _say_noise(report, job, clients, backbone[0], DataSets.of_user(state))
            report.facts += estimate(job, backbone[0], [d for _, d in data])
    _advise(report, job, clients)
    _compare_rows(readable, report)
    return report


def _collect(report: Report, check: Any) -> None:
    try:
        check()
    except FedTreeError as error:
        report.errors.append(str(error))


def _clients(entries: Sequence[ClientFiles], folder: Path, report: Report) -> list[Client]:
    """Every client of the job; without rows where they cannot be read."""
    found = []
    for entry in entries:
        rows: dict[str, Any] = {}
        for split, name in (("train", entry.train), ("test", entry.test)):
            try:
                rows[split] = read_rows(place_of(name, folder), entry.id) if name else None
            except DataError as error:
                report.errors.append(str(error))
        whole = len(rows) == 2
        try:
            client = client_of(
                entry, rows["train"] if whole else {}, rows["test"] if whole else None
            )
        except FedTreeError as error:
            report.errors.append(str(error))
            client = Client(entry.id, train={})
        found.append(client)
    return found


def _prepared(
    clients: Sequence[Client], job: Job, tokenizer: Any, report: Report
) -> list[tuple[Client, ClientData]]:
    found = []
    for client in clients:
        try:
            found.append((client, prepare(client, job, tokenizer)))
        except DataError as error:
            report.errors.append(str(error))
    return found


def _client(client: Client, job: Job, data: ClientData, tokenizer: Any) -> ClientReport:
    texts = [_plain(text) for text in texts_of(client)]
    held_out = [] if client.test is None else [_plain(t) for t in client.test[client.text]]
    lengths = [len(row) for row in tokenizer(list(client.train[client.text]))["input_ids"]]
    known, units = set(texts), data.train.members
    return ClientReport(
        id=client.id,
        rows=len(texts),
        counted=len(texts) if units is None else len(units),
        declared=client.records or job.training.records,
        test_rows=len(held_out),
        balance=_balance(data),
        twice=len(texts) - len(known),
        in_both=sum(text in known for text in held_out),
        cut=sum(length > job.training.max_length for length in lengths) / len(lengths),
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _balance(data: ClientData) -> str:
    counts = _counts(data)
    return f"{min(counts)}/{max(counts)}" if counts else "-"


def _counts(data: ClientData) -> list[int]:
    """Training rows of each label of the set; nothing where there are no labels."""
    if data.train.labels is None:
        return []
    found = Counter(data.train.labels.tolist())
    return [found[i] for i in range(len(data.label_set))]


def _say_model(report: Report, job: Job, backbone: Backbone) -> None:
    values = backbone.layout().length
    report.facts.append(
        f"model: {backbone.model.config.model_type}, {backbone.experts.depth} adapted layers of "
        f"width {backbone.hidden_size}, {values} trained values; tokenizer of "
        f"{len(backbone.tokenizer)} tokens"
        + ("" if job.task == "causal-lm" else f"; the head reads {backbone.pooling} states")
    )
    if found := of_features(job, backbone.pooling):
        report.advice.append(found.text)


def _say_labels(report: Report, job: Job, data: Sequence[tuple[Client, ClientData]]) -> None:
    """Who shares a head, and labels that hardly occur."""
    declared = {c.id: [str(label) for label in d.label_set] for c, d in data if d.labels_declared}
    if job.head == "group":
        groups: list[Any] = []
        _collect(report, lambda: groups.extend(head_groups(declared, job.masking.min_group)))
        sizes = ", ".join(str(len(group.members)) for group in groups)
        made = release_said(job)
        report.facts.append(
            f"heads: shared by {sizes} clients{f': {made}' if made else ''}"
            if groups
            else "heads: each client keeps its own"
        )
    silent = [c.id for c, d in data if not d.labels_declared]
    if silent:
        report.advice.append(
            f"declare labels for {', '.join(silent)}: read from the rows, they are published, "
            "and their heads stay alone"
        )
    for client, found in data:
        rare = [
            str(name)
            for name, count in zip(found.label_set, _counts(found), strict=False)
            if count < LEAST_SHARE * len(found.train)
        ]
        if rare:
            report.advice.append(
                f"client {client.id}: {', '.join(rare[:5])} "
                f"{'is' if len(rare) == 1 else 'are'} below {LEAST_SHARE:.0%} of its rows; noise "
                "hides rare labels first"
            )


def _say_noise(
    report: Report, job: Job, clients: Sequence[Client], backbone: Backbone, sets: DataSets
) -> None:
    """Noise against signal of each client, once for those that are alike."""
    values = backbone.layout().length
    same: dict[tuple[Any, ...], list[str]] = {}
    for client in clients:
        key = (
            job.budget_of(client.id),
            client.records or job.training.records,
            _spent(sets, client),
        )
        same.setdefault(key, []).append(client.id)
    ratios: dict[str, float] = {}
    for (budget, records, spent), names in same.items():
        try:
            plan = plan_noise(job, budget, spent, agreed=budget)
        except BudgetExceeded as error:
            already = epsilon_of(given_honest(spent), budget.delta)
            left = f"epsilon {already:.4f} of {budget.epsilon:g} is spent"
            report.errors.append(
                f"client {', '.join(names)}: {left} by earlier jobs; the rest is too little for "
                "this one"
                if spent
                else f"client {', '.join(names)}: {error}"
            )
            continue
        if not job.rounds:
            report.facts.append(f"noise: {', '.join(names)}: no rounds, heads alone")
            continue
        multiplier = part_of(job, plan.rounds) if job.noise == "shared" else plan.rounds
        ratio = noise_to_clip(job, plan, records, values)
        if job.noise == "shared":
            report.facts.append(_assumed(job, plan, budget, spent))
        report.facts.append(
            f"noise: {', '.join(names)} at epsilon {budget.epsilon:g}"
            + (f" ({len(spent)} charges before)" if spent else "")
            + f": multiplier {multiplier:.3g} a step; its noise is {ratio:.2g} of the clipping "
            "norm"
        )
        ratios |= dict.fromkeys(names, ratio)
    if not ratios:
        return
    mean = alike(ratios.values())
    report.facts.append(
        f"noise of the mean of one group of all: {mean / math.sqrt(len(ratios)):.2g} of the "
        "clipping norm"
    )
    if found := of_noise(job, mean, len(ratios)):
        report.advice.append(found.text)


def _assumed(job: Job, plan: NoisePlan, budget: PrivacyBudget, spent: Sequence[Event]) -> str:
    """What epsilon assumes of others, and what holds with fewer, down to none."""
    rows = table((*spent, *events_of(job, plan)), budget.delta)
    shown = ", ".join(f"{row.others}: {row.epsilon:.4g}" for row in rows)
    return (
        f"shared noise: epsilon holds while {condition(rows[0].others + 1)}. By number of honest "
        f"others: {shown}; own_epsilon is {budget.alone.epsilon:g}"
    )


def _spent(sets: DataSets, client: Client) -> tuple[Event, ...]:
    """What the client's data set has spent; its store is only read."""
    path = sets.store_of(client.dataset or client.id)
    if not path.exists():
        return ()
    with Ledger.inspect(path) as ledger:
        return tuple(ledger.events())


def _advise(report: Report, job: Job, clients: Sequence[Client]) -> None:
    source = job.topology.source if job.rounds else "none"
    if text := too_few(source, len(clients), job.masking.min_group):
        report.advice.append(text)
    for c in report.clients:
        report.advice += [f"client {c.id}: {text}" for text in _remarks(c, job)]


def _remarks(c: ClientReport, job: Job) -> Iterable[str]:
    if abs(c.counted - c.declared) > OFF * c.declared:
        yield (
            f"{c.declared} {name_of(job.privacy_unit)}s are declared and {c.counted} are there: "
            "declare a rounded size "
            "near it, or its steps are too small or too large"
        )
    if c.twice:
        yield f"{c.twice} training rows repeat a text: who is in n rows has n times the loss"
    if c.in_both:
        yield f"{c.in_both} test rows are training rows, too: the metric flatters"
    if c.cut > LEAST_SHARE:
        yield (
            f"{c.cut:.0%} of its texts are cut at max_length = {job.training.max_length}; a larger "
            "one costs time"
        )
    if not c.test_rows:
        yield "no test rows: its adapter will not be measured"


def _compare_rows(clients: Sequence[Client], report: Report) -> None:
    """Two clients with the same rows would have two budgets for them; a run refuses that."""
    sets: Mapping[str, set[str]] = {c.id: set(map(_plain, texts_of(c))) for c in clients}
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            common = len(sets[first] & sets[second])
            if common >= SAME * min(len(sets[first]), len(sets[second])):
                report.errors.append(
                    f"{common} texts of {first} are those of {second}: rows of two clients get "
                    "two budgets, and a run refuses that"
                )
