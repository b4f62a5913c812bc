"""Finished runs side by side, from their summaries alone: settings that differ, and each client's
epsilon and metric, with the interval of the paired difference.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_secure.errors import RunFolderError
from fedtree_secure.report.summary import interval_of
from fedtree_secure.storage import read_json


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: Their folders.
        metric: What all of them measured.
        settings: Those that differ, by their dotted names, one value for each run.
        clients: For each client, epsilon and metric in each run; None where it took no part.
        said: One sentence for each run after the first.
    """

    runs: tuple[Path, ...]
    metric: str
    settings: Mapping[str, tuple[Any, ...]]
    clients: Mapping[str, tuple[tuple[float, float | None] | None, ...]]
    said: tuple[str, ...]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Compare runs with the first of them.

    Raises:
        RunFolderError: One is no finished run, or they measured different things, or have no client
            in common.
    """
    if len(runs) < 2:
        raise RunFolderError("one run was given; give two or more to compare")
    found = [_summary(run) for run in runs]
    names = [_metric_name(data) for data in found]
    if len({name for name in names if name}) > 1:
        both = ", ".join(f"{run}: {name or 'none'}" for run, name in zip(runs, names, strict=True))
        raise RunFolderError(f"the runs measured different things ({both})")
    every = dict.fromkeys(client for data in found for client in data["clients"])
    clients = {name: tuple(_outcome(data, name) for data in found) for name in every}
    if not any(all(row) for row in clients.values()):
        raise RunFolderError("the runs have no client in common")
    said = [_sentence(runs, clients, at) for at in range(1, len(runs))]
    settings = differing([data["job"] for data in found])
    return Comparison(tuple(runs), next(filter(None, names), ""), settings, clients, tuple(said))


def _summary(run: Path) -> dict[str, Any]:
    found = read_json(run / "summary.json")
    if not isinstance(found, dict) or not {"clients", "job"} <= set(found):
        raise RunFolderError(f"{run / 'summary.json'} is no summary of a run")
    return found


def _metric_name(data: Mapping[str, Any]) -> str:
    found = (report["metric"] for report in data["clients"].values())
    return next((str(metric["name"]) for metric in found if metric), "")


def _outcome(data: Mapping[str, Any], client: str) -> tuple[float, float | None] | None:
    report = data["clients"].get(client)
    if report is None:
        return None
    metric = report["metric"]
    return float(report["epsilon_spent"]), None if metric is None else float(metric["value"])


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= (
            _flat(value, f"{before}{name}.")
            if isinstance(value, dict)
            else {f"{before}{name}": value}
        )
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return what is not the same in all of some nested settings, by dotted name, a value each."""
    flat = [_flat(one) for one in settings]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = {name: tuple(one.get(name) for one in flat) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _sentence(
    runs: Sequence[Path],
    clients: Mapping[str, tuple[tuple[float, float | None] | None, ...]],
    at: int,
) -> str:
    gaps = []
    for row in clients.values():
        first, other = row[0], row[at]
        if first and other and first[1] is not None and other[1] is not None:
            gaps.append(other[1] - first[1])
    if not gaps:
        return f"{runs[at]} against {runs[0]}: no client was measured in both."
    return (
        f"{runs[at]} against {runs[0]}: higher for {sum(gap > 0 for gap in gaps)}, lower for "
        f"{sum(gap < 0 for gap in gaps)} of {len(gaps)} clients, mean difference "
        f"{statistics.mean(gaps):+.3f}{interval_of(gaps)}."
    )
