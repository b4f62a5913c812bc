"""The result of a run: what it promises, the table of its clients, and what it says below it.

Made of the plain values in ``summary.json`` alone, so that a finished run folder can be read
without a model, a client or a server; `fedtree_secure.embedded.summary` collects these values.
"""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from fedtree_dp.account.statements import condition
from fedtree_dp.account.unit import RECORD_NEIGHBOURS, name_of
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.config import Job
from fedtree_secure.errors import suggest
from fedtree_secure.job_budgets import sentences
from fedtree_secure.report.advice import Advice, advice_of, interval
from fedtree_secure.report.head_release import LEAVES
from fedtree_secure.report.masks import sparse_said

ROW = "one record (one training row) of one client"
REFERENCE_TITLES = {
    "head": "head only",
    "head_group": "group head",
    "local": "local only",
    "fedit": "FedIT",
    "head_without_dp": "head, no DP",
}


@dataclass(frozen=True)
class ClientResult:
    """Outcome of one client.

    Attributes:
        epsilon: Spent on its data set, at ``delta``.
        delta: Of its budget.
        metric: Of the delivered adapter on the client's own test rows; None without any.
        adapter: Folder of the delivered adapter.
    """

    epsilon: float
    delta: float
    metric: float | None
    adapter: Path


@dataclass(frozen=True)
class Result:
    """Outcome of a run; prints as the table of clients.

    Attributes:
        folder: The run folder.
        adapters: Folder of each client's adapter, by client id.
        data: The content of ``summary.json``.
    """

    folder: Path
    adapters: Mapping[str, Path]
    data: dict[str, Any]

    def __getitem__(self, client: str) -> ClientResult:
        if client not in self.data["clients"]:
            raise KeyError(f"{client!r} took no part{suggest(client, self.data['clients'])}")
        report = self.data["clients"][client]
        return ClientResult(
            epsilon=float(report["epsilon_spent"]),
            delta=float(report["delta"]),
            metric=None if report["metric"] is None else float(report["metric"]["value"]),
            adapter=self.adapters[client],
        )

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What the result advises, each with a stable key."""
        return tuple(advice_of(self.data))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=120, record=True, force_jupyter=False)
        self.summary(console)
        return console.export_text().rstrip()

    def summary(self, console: Console | None = None) -> dict[str, Any]:
        """Print the table of clients and return the content of ``summary.json``."""
        console = console or Console()
        console.print(table(self.data))
        for line in remarks(self.data):
            console.print(line, highlight=False)
        return self.data


def guarantee(
    job: Job, reports: Mapping[str, Any], masks: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The statement that a compliance officer reads: unit, adjacency, observers, and what is not
    protected.

    Args:
        masks: The graphs of masks, see `agreed.graph_facts`.
    """
    unit = job.privacy_unit
    open_sets = sorted(name for name, report in reports.items() if not report["labels_declared"])
    return {
        "unit": ROW if unit is None else unit.text,
        "adjacency": RECORD_NEIGHBOURS if unit is None else unit.neighbours,
        **({} if unit is None else {"of": unit.to_dict()}),
        "observers": _observers(job, honest := _counted_on(job, reports))
        + sparse_said(masks, shared=job.noise == "shared"),
        "masks": [dict(graph) for graph in masks],
        **({} if honest == 1 else {"shared": _shared(job, honest)}),
        **({} if not job.budgets else {"budgets": sentences(job)}),
        "sampling": "Poisson",
        **({} if job.cohort.share == 1.0 else {"participation": _participation(job)}),
        "accountant": "privacy loss distribution (dp_accounting)",
        "declared_public": [
            (
                f"configuration, declared {name_of(unit)} counts, noise multipliers, label counts, "
                "who took part, the tree"
            ),
            *([f"label sets read from the rows of: {', '.join(open_sets)}"] if open_sets else []),
        ],
        "not_released": (
            "metrics below were computed at home on each client's own test rows and sent to nobody"
        ),
    }


def _participation(job: Job) -> str:
    return (
        f"a public draw asks {job.cohort.share:.0%} of the clients in each round from the second "
        "on. Each is charged for the rounds that it took; who took part is public, and no "
        "amplification by sampling of clients is claimed"
    )


def _counted_on(job: Job, reports: Mapping[str, Any]) -> int:
    """Honest members that the claim counts on: of this job, and of earlier ones on a data set."""
    said = (report.get("statement", {}) for report in reports.values())  # a site has none
    rows = (found.get("honest_others", ()) for found in said)
    own = job.masking.honest if job.noise == "shared" else 1
    return max([own, *(int(found[0]["others"]) + 1 for found in rows if found)])


def _observers(job: Job, honest: int) -> str:
    masking = job.masking
    if job.noise == "shared":
        return (
            "server, other clients and outsiders see sums of clipped gradients over at least "
            f"{masking.min_group} clients. In each sum {masking.honest} members, the client among "
            "them, are counted on to add the noise that epsilon asks for, each a part; everything "
            f"else has the client's own full noise. Epsilon holds while at least {honest - 1} "
            "others of every opened sum are honest and add their noise; own_epsilon "
            f"{job.privacy.own_epsilon:g} {_or_less(job)}holds whatever all others do"
        )
    said = (
        "server, other clients and outsiders see post-processing of the client's own DP-SGD "
        "run; each client's noise protects it without trusting anybody. Masking is a second "
        f"wall: the server sees sums over at least {masking.min_group} clients, up to "
        f"{masking.colluders} colluding"
    )
    if sums_classes(job):
        said += (
            ". Of its head they see post-processing of one release of sums by class, with the "
            "client's own noise"
        )
    if honest == 1:
        return said
    return (
        f"{said}. Earlier jobs on a data set shared noise, and epsilon counts them: it holds while "
        f"at least {honest - 1} others of every sum that they opened were honest"
    )


def _or_less(job: Job) -> str:
    return "(less for some, see budgets) " if job.budgets else ""


def _shared(job: Job, honest: int) -> dict[str, Any]:
    """What epsilon assumes of others, for machines."""
    return {
        "honest": honest,
        "colluders": job.masking.colluders,
        "own_epsilon": job.privacy.own_epsilon,
        "condition": condition(honest),
    }


def table(data: Mapping[str, Any]) -> RichTable:
    """The table of clients: data set, epsilon, metric, references."""
    references = data.get("references", {})
    first = next(iter(data["clients"].values()))
    name = first["metric"]["name"] if first["metric"] else "metric"
    shown = RichTable(
        title=f"{name} on each client's own test rows",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    shown.add_column(
        "client", no_wrap=True, overflow="fold", min_width=max(map(len, data["clients"]))
    )
    named = any(client != report["dataset"] for client, report in data["clients"].items())
    if named:
        shown.add_column("data set")
    baseline = "untrained" if first["untrained"] else "majority"
    for title in (
        "ε spent",
        "of",
        "ours",
        *(REFERENCE_TITLES[key] for key in references),
        baseline,
    ):
        shown.add_column(title, justify="right", min_width=5)
    for client, report in data["clients"].items():
        others = [_number(references[key]["clients"][client]["metric"]) for key in references]
        shown.add_row(
            client,
            *([report["dataset"]] if named else []),
            f"{report['epsilon_spent']:.2f}",
            f"{report['epsilon_allowed']:g}",
            f"[bold]{_number(report['metric'])}",
            *others,
            _number(report[baseline]),
        )
    if len(data["clients"]) > 1 and first["metric"]:
        means = [_mean(references[key]["clients"]) for key in references]
        shown.add_section()
        blank = [""] * (3 if named else 2)
        shown.add_row(
            "mean",
            *blank,
            f"[bold]{_mean(data['clients'])}",
            *means,
            _mean(data["clients"], baseline),
        )
    return shown


def remarks(data: Mapping[str, Any]) -> list[str]:
    """Plain sentences below the table: rounds that failed, the tree."""
    lines = []
    failed = [record["round"] for record in data["rounds"] if record["error"]]
    if failed:
        lines.append(
            f"Rounds that opened nothing: {', '.join(map(str, failed))} (charged all the same)."
        )
    lines += [
        _comparison(data["clients"], key, found)
        for key, found in data.get("references", {}).items()
    ]
    lines += data.get("guarantee", {}).get("budgets", [])
    lines += _assumed(data)
    lines += _accuracy(data)
    lines += [f"Auditable: {cost}." for cost in data.get("auditable", {}).get("costs", ())]
    advice = [f"Advice: {found.text}." for found in advice_of(data)]
    return [*lines, *_heads(data), *_tree(data), *advice]


def _assumed(data: Mapping[str, Any]) -> list[str]:
    """What epsilon assumes of others, where noise is shared, and what holds with fewer."""
    reports = [r for r in data["clients"].values() if "own_epsilon_spent" in r]
    if not reports:
        return []
    worst = max(reports, key=lambda r: r["own_epsilon_spent"])
    rows = [f"{row['others']}: {row['epsilon']:.2f}" for row in worst["statement"]["honest_others"]]
    return [
        (
            "Noise is shared: ε holds while, in every opened sum, others are honest and add their "
            f"noise. By number of honest others: {', '.join(rows)} (of own_epsilon "
            f"{worst['own_epsilon_allowed']:g})."
        )
    ]


def _accuracy(data: Mapping[str, Any]) -> list[str]:
    """What accuracy alone does not say: how uncertain it is, and whether rare labels are found."""
    found = [r["metric"] for r in data["clients"].values() if r["metric"]]
    known = [metric for metric in found if "interval" in metric]
    if not known:
        return []
    half = statistics.median((m["interval"][1] - m["interval"][0]) / 2 for m in known)
    scores = sorted(metric["macro_f1"] for metric in known)
    return [
        (
            f"A client's accuracy is uncertain by ±{half:.3f} (95%, Wilson; median); macro F1 "
            f"{scores[0]:.3f} to {scores[-1]:.3f}. By client, with counts by label: summary.json."
        )
    ]


def _heads(data: Mapping[str, Any]) -> list[str]:
    """Who shares a head."""
    groups = data.get("heads", [])
    if data["job"]["training"]["head"] not in ("auto", "group") or not any(
        report["labels"] for report in data["clients"].values()
    ):
        return []
    if not groups:
        return []
    shared = f"Heads are shared by {', '.join(str(len(group)) for group in groups)} clients."
    made = data.get("head_release", {"way": "average"})
    if made["way"] == "average":  # as ever
        return [shared]
    return [shared, f"They come from {LEAVES[made['way']]}, because {made['why']}."]


def _tree(data: Mapping[str, Any]) -> list[str]:
    """How many clusters each layer has, and why."""
    cuts = [len(layer["clusters"]) for layer in data["layers"]]
    lines = [f"Clusters by layer, shallow to deep: {' '.join(map(str, cuts))}."]
    whys = [layer["why"] for layer in data["layers"] if layer.get("why")]
    return lines + [f"  {why}." for why in dict.fromkeys(whys)]


def _comparison(clients: Mapping[str, Any], key: str, reference: Mapping[str, Any]) -> str:
    """One honest sentence: for how many clients we are above and below a reference, and by how much
    on average.
    """
    gaps = [
        report["metric"]["value"] - reference["clients"][name]["metric"]["value"]
        for name, report in clients.items()
        if report["metric"]
    ]
    if not gaps:
        return ""
    above, below = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    mean = sum(gaps) / len(gaps)
    under = "the same epsilon" if reference["private"] else "no privacy at all"
    return (
        f"Against {REFERENCE_TITLES[key]} ({under}): higher for {above}, lower for {below} of "
        f"{len(gaps)} clients, "
        f"mean difference {mean:+.3f}{interval_of(gaps)}."
    )


def interval_of(gaps: list[float]) -> str:
    """The 95% interval of a mean of paired differences (Student), over the clients of this run."""
    found = interval(gaps)
    return "" if found is None else f" (95% of {found[0]:+.3f} to {found[1]:+.3f})"


def _value(metric: Mapping[str, Any] | float | None) -> float | None:
    return metric["value"] if isinstance(metric, Mapping) else metric


def _number(metric: Mapping[str, Any] | float | None) -> str:
    value = _value(metric)
    return "-" if value is None else f"{value:.3f}"


def _mean(clients: Mapping[str, Any], key: str = "metric") -> str:
    known = [value for report in clients.values() if (value := _value(report[key])) is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"
