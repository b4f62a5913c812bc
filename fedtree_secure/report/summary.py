"""What a run leaves behind: summary.json, the table, and the result object."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fedtree_dp import Ledger, statement
from fedtree_dp.account.accounting import merge
from fedtree_secure.agreed.transport import Transcript
from fedtree_secure.client.data import Client, ClientData
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.report.tree_picture import draw_tree
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.storage import read_json, write_json

PACKAGES = (
    "fedtree-secure",
    "torch",
    "transformers",
    "peft",
    "opacus",
    "dp-accounting",
    "cryptography",
    "numpy",
)
REFERENCE_TITLES = {
    "head": "head only",
    "local": "local only",
    "fedit": "FedIT",
    "head_without_dp": "head, no DP",
}


@dataclass
class Result:
    """Outcome of a run.

    Attributes:
        folder: The run folder.
        adapters: Folder of each client's adapter, by client id.
        data: The content of ``summary.json``.
    """

    folder: Path
    adapters: Mapping[str, Path]
    data: dict[str, Any]

    def summary(self, console: Console | None = None) -> dict[str, Any]:
        """Print the table of clients and return the content of ``summary.json``."""
        console = console or Console()
        console.print(table(self.data))
        for line in remarks(self.data):
            console.print(line, highlight=False)
        return self.data


def client_report(
    client: Client,
    data: ClientData,
    ledger: Ledger,
    metric: dict[str, Any] | None,
    untrained: dict[str, Any] | None,
    transcript: Transcript,
) -> dict[str, Any]:
    """One entry of ``clients`` in the summary.

    Args: metric: On the client's own test rows, None without any. untrained: The same of the frozen
        backbone; None for classification, where ``majority`` is the baseline.
    """
    return {
        "dataset": client.dataset or client.id,
        "epsilon_spent": ledger.spent(),
        "epsilon_allowed": ledger.budget.epsilon,
        "delta": ledger.budget.delta,
        "events": [event.to_dict() for event in merge(ledger.events())],
        "statement": statement(ledger.events(), ledger.budget.delta, prv=False).to_dict(),
        "metric": metric,
        "majority": data.majority,
        "untrained": untrained,
        "labels": list(data.label_set),
        "labels_declared": data.labels_declared,
        "bytes_sent": transcript.sent.get(client.id, 0),
        "bytes_received": transcript.received.get(client.id, 0),
    }


def write_report(
    job: Job,
    folder: Path,
    reports: dict[str, dict[str, Any]],
    adapters: Mapping[str, Path],
    coordinator: Coordinator,
    backbone: Backbone,
    seconds: Mapping[str, float],
) -> Result:
    """Assemble and write ``summary.json`` and ``tree.png``."""
    tree = coordinator.tree
    assert tree is not None
    depth = len(coordinator.layout.layers)
    summary = {
        "format": 1,
        "job": job.to_dict(),
        "guarantee": guarantee(job, reports),
        "clients": reports,
        "layers": [
            {
                "layer": backbone.experts.indices[i],
                "clusters": [list(group) for group in tree.clusters(i)],
                "released": [list(group) for group in tree.released(i)],
            }
            for i in range(depth)
        ],
        "rounds": [vars(record) for record in coordinator.records],
        "failures": coordinator.failures,
        "trained_values": _trained_values(coordinator),
        "model_sha256": backbone.digest.hex(),
        "device": backbone.device,
        "seconds": dict(seconds),
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    write_json(folder / "summary.json", summary)
    summary = read_json(
        folder / "summary.json"
    )  # so that the result says exactly what the file says
    draw_tree(tree, [f"layer {i}" for i in backbone.experts.indices], folder / "tree.png")
    return Result(folder, dict(adapters), summary)


def add_costs(result: Result, job: Job, clients: Sequence[Client], canaries: int) -> None:
    """Add to the summary what an auditable run kept and what that costs."""
    size = (result.folder / "messages.bin").stat().st_size
    costs = [
        (
            f"{size / 1e6:.1f} MB on disk: every message, masked as it was sent; whoever holds "
            "them "
            "learns no more"
        )
    ]
    if canaries:
        records = min(client.records or job.training.records for client in clients)
        share = canaries / 2 / (records + canaries / 2)
        costs.append(
            f"no epsilon, but data: about {canaries / 2:g} random records join every client's rows "
            "and take up to "
            f"{share:.0%} of its batches; accuracy suffers by as much signal"
        )
    result.data["auditable"] = {"message_bytes": size, "canaries": canaries, "costs": costs}
    write_json(result.folder / "summary.json", result.data)


def guarantee(job: Job, reports: Mapping[str, Any]) -> dict[str, Any]:
    """The statement that a compliance officer reads: unit, adjacency, observers, and what is not
    protected.
    """
    open_sets = sorted(name for name, report in reports.items() if not report["labels_declared"])
    return {
        "unit": "one record (one training row) of one client",
        "adjacency": "add or remove one record",
        "observers": (
            "server, other clients and outsiders see post-processing of the client's own DP-SGD "
            "run; each client's noise protects it without trusting anybody. Masking is a second "
            f"wall: the server sees sums over at least {job.masking.min_group} clients, up to "
            f"{job.masking.colluders} colluding"
        ),
        "sampling": "Poisson",
        "accountant": "privacy loss distribution (dp_accounting)",
        "declared_public": [
            (
                "configuration, declared record counts, noise multipliers, label counts, who took "
                "part, the tree"
            ),
            *([f"label sets read from the rows of: {', '.join(open_sets)}"] if open_sets else []),
        ],
        "not_released": (
            "metrics below were computed at home on each client's own test rows and sent to nobody"
        ),
    }


def table(data: Mapping[str, Any]) -> RichTable:
    """The table of clients: data set, epsilon, metric, references."""
    references = data.get("references", {})
    first = next(iter(data["clients"].values()))
    name = first["metric"]["name"] if first["metric"] else "metric"
    shown = RichTable(title=f"{name} on each client's own test rows", title_justify="left")
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
        shown.add_column(title, justify="right")
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
    lines += [f"Auditable: {cost}." for cost in data.get("auditable", {}).get("costs", ())]
    cuts = [len(layer["clusters"]) for layer in data["layers"]]
    lines.append(f"Clusters by layer, shallow to deep: {' '.join(map(str, cuts))}.")
    return lines


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
        f"mean difference {mean:+.3f}."
    )


def _value(metric: Mapping[str, Any] | float | None) -> float | None:
    return metric["value"] if isinstance(metric, Mapping) else metric


def _number(metric: Mapping[str, Any] | float | None) -> str:
    value = _value(metric)
    return "-" if value is None else f"{value:.3f}"


def _mean(clients: Mapping[str, Any], key: str = "metric") -> str:
    known = [value for report in clients.values() if (value := _value(report[key])) is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _trained_values(coordinator: Coordinator) -> int:
    return coordinator.layout.length


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
