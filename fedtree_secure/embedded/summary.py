"""Collects what both sides of an embedded run leave behind, and writes ``summary.json``.

What a client reports of itself (metric, ledger) is read on its side and shown to whoever started
the run; none of it passed the transport.
"""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_dp import Ledger, statement
from fedtree_dp.account.shared import merged
from fedtree_dp.account.unit import name_of
from fedtree_secure.agreed.graph_facts import graphs_of
from fedtree_secure.client.costs import own_noise_report
from fedtree_secure.client.data import Client
from fedtree_secure.config import Job
from fedtree_secure.embedded.in_process import InProcess
from fedtree_secure.embedded.transcript import Transcript
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData
from fedtree_secure.report.advice import advice_of
from fedtree_secure.report.cohort import cohort_report
from fedtree_secure.report.head_release import release_report
from fedtree_secure.report.layers import layers_of
from fedtree_secure.report.summary import Result, guarantee
from fedtree_secure.report.tree_picture import draw_tree
from fedtree_secure.server.coordinator import Coordinator
from fedtree_secure.server.telemetry import noise_to_clip, reasons
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


@dataclass(frozen=True)
class Finished:
    """What a finished run leaves in memory: both sides, and the index of what passed between."""

    coordinator: Coordinator
    embedded: InProcess
    transcript: Transcript


def client_report(
    client: Client,
    data: ClientData,
    ledger: Ledger,
    metric: dict[str, Any] | None,
    without: dict[str, Any] | None,
    transcript: Transcript,
) -> dict[str, Any]:
    """One entry of ``clients`` in the summary.

    Args:
        metric: On the client's own test rows, None without any.
        without: The same with the adapters switched off. That is the frozen backbone for language
            models; for classification its head remains, and ``majority`` is the baseline.
    """
    frozen = not data.label_set
    return {
        "dataset": client.dataset or client.id,
        "epsilon_spent": ledger.spent(),
        "epsilon_allowed": ledger.budget.epsilon,
        "delta": ledger.budget.delta,
        "events": [event.to_dict() for event in merged(ledger.events())],
        "statement": statement(
            ledger.events(), ledger.budget.delta, prv=False, unit=ledger.unit
        ).to_dict(),
        "metric": metric,
        "majority": data.majority,
        "untrained": without if frozen else None,
        "without_adapters": None if frozen else without,
        "labels": list(data.label_set),
        "labels_declared": data.labels_declared,
        "bytes_sent": transcript.sent.get(client.id, 0),
        "bytes_received": transcript.received.get(client.id, 0),
        **own_noise_report(ledger),
    }


def write_report(
    job: Job,
    folder: Path,
    reports: dict[str, dict[str, Any]],
    adapters: Mapping[str, Path],
    finished: Finished,
    backbone: Backbone,
    seconds: Mapping[str, float],
) -> Result:
    """Assemble and write ``summary.json`` and ``tree.png``."""
    coordinator = finished.coordinator
    tree = coordinator.tree
    assert tree is not None
    numbers = coordinator.facts.layer_names
    names = [f"layer {number}" for number in numbers]
    whys = reasons(coordinator) or [""] * len(numbers)
    for name, ratio in noise_to_clip(coordinator).items():
        reports[name]["noise_to_clip"] = ratio
    summary = {
        "format": 1,
        "job": job.to_dict(),
        "guarantee": guarantee(job, reports, _masks(coordinator)),
        "clients": reports,
        "layers": layers_of(tree, numbers, whys),
        "heads": [list(group.members) for group in coordinator.terms.heads],
        **release_report(coordinator.terms.job),
        "rounds": [vars(record) for record in coordinator.records],
        **_cohort(coordinator, names),
        "failures": [
            {"client": f.client, "stage": f.stage, "error": type(f.error).__name__}
            for f in finished.embedded.failures
        ],
        "trained_values": coordinator.facts.layout.length,
        "model_sha256": backbone.digest.hex(),
        "device": backbone.device,
        "seconds": dict(seconds),
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    write_summary(folder, summary)
    # read again, so that the result says exactly what the file says
    summary = read_json(folder / "summary.json")
    draw_tree(tree, names, folder / "tree.png", whys)
    return Result(folder, dict(adapters), summary)


def _cohort(coordinator: Coordinator, layers: list[str]) -> dict[str, Any]:
    """What became of the cohort, where it changed."""
    heads = [f"head of {group.members[0]}" for group in coordinator.terms.heads]
    told = cohort_report(coordinator.attendance(), coordinator.facts.layout, [*layers, *heads])
    return {} if told is None else {"cohort": told}


def _masks(coordinator: Coordinator) -> list[dict[str, Any]]:
    assert coordinator.tree is not None
    terms, facts, beacons = coordinator.terms, coordinator.facts, coordinator.state.beacons
    return graphs_of(terms, facts, coordinator.tree, beacons)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``summary.json`` with the advice that follows from the rest of it."""
    summary["advice"] = [advice.to_dict() for advice in advice_of(summary)]
    write_json(folder / "summary.json", summary)


def add_costs(result: Result, job: Job, clients: Sequence[Client], canaries: int) -> None:
    """Add to the summary what an auditable run kept and what that costs."""
    size = (result.folder / "messages.bin").stat().st_size
    costs = [
        (
            f"{size / 1e6:.1f} MB on disk: every message, masked as it was sent; whoever holds "
            "them learns no more"
        )
    ]
    if canaries:
        records = min(client.records or job.training.records for client in clients)
        share = canaries / 2 / (records + canaries / 2)
        costs.append(
            f"no epsilon, but data: about {canaries / 2:g} random {name_of(job.privacy_unit)}s "
            "join every client's rows "
            "and take up to "
            f"{share:.0%} of its batches; accuracy suffers by as much signal"
        )
    result.data["auditable"] = {"message_bytes": size, "canaries": canaries, "costs": costs}
    write_summary(result.folder, result.data)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
