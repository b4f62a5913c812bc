"""References for research runs: the same splits and the same epsilon without the tree.

``head``: the head alone on the frozen backbone; ``local``: every client for itself; ``fedit``: one group for every
layer. Each is a whole job of its own with its own ledgers, so its epsilon is accounted as ours is; that is also why a
real run never trains them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedtree_secure.config import Topology
from fedtree_secure.data import Client
from fedtree_secure.progress import Observer
from fedtree_secure.report import Result
from fedtree_secure.storage import write_json

if TYPE_CHECKING:
    from fedtree_secure.federation import Federation, Shared


def reference_jobs(job: "Federation") -> dict[str, "Federation"]:
    """The reference jobs by name; a task without a trained head has no head reference."""

    def with_source(source: str) -> Topology:
        return dataclasses.replace(job.topology, source=source)  # type: ignore[arg-type]

    jobs = {
        "local": dataclasses.replace(job, topology=with_source("alone")),
        "fedit": dataclasses.replace(job, topology=with_source("single")),
    }
    if job.head_steps:
        jobs = {"head": dataclasses.replace(job, rounds=0, topology=with_source("alone")), **jobs}
    return jobs


def add_references(
    job: "Federation", clients: Sequence[Client], folder: Path, result: Result, shared: "Shared", observer: Observer
) -> None:
    """Train the references (those that are not finished) and add them to the run's summary."""
    from fedtree_secure.report import Result as Loaded
    from fedtree_secure.storage import read_json

    found = {}
    for name, reference in reference_jobs(job).items():
        place = folder / "references" / name
        if (place / "summary.json").exists():
            outcome = Loaded(place, {}, read_json(place / "summary.json"))
        else:
            outcome = reference.run(
                clients, place, resume=(place / "job.json").exists(), simulate=True, observer=observer, shared=shared
            )
        found[name] = {
            "clients": {
                client: {key: report[key] for key in ("metric", "epsilon_spent", "events")}
                for client, report in outcome.data["clients"].items()
            }
        }
    result.data["references"] = found
    write_json(folder / "summary.json", result.data)
