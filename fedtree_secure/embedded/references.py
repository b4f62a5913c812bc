"""References for research runs: the same splits and the same epsilon without the tree.

``head``: the head alone on the frozen backbone; ``local``: every client for itself; ``fedit``: one
group for every layer. Each is a whole job of its own with its own ledgers, so its epsilon is
accounted as ours is; that is also why a real run never trains them. ``head_without_dp`` shows what
privacy costs: the same head steps with no noise and no epsilon at all, which only a simulation may
do.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtree_dp import NoiseSource
from fedtree_secure.client.data import Client
from fedtree_secure.client.state import fresh_belongings, seated
from fedtree_secure.client.training import train_head
from fedtree_secure.config import Topology
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.report.summary import Result
from fedtree_secure.storage import read_json, write_json

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
    job: "Federation",
    clients: Sequence[Client],
    folder: Path,
    result: Result,
    shared: "Shared",
    observer: Observer,
) -> None:
    """Train the references (those that are not finished) and add them to the run's summary."""
    found = {}
    for name, reference in reference_jobs(job).items():
        place = folder / "references" / name
        if (place / "summary.json").exists():
            outcome = Result(place, {}, read_json(place / "summary.json"))
        else:
            outcome = reference.run(
                clients,
                place,
                resume=(place / "job.json").exists(),
                simulate=True,
                observer=observer,
                shared=shared,
            )
        found[name] = {
            "private": True,
            "clients": {
                client: {key: report[key] for key in ("metric", "epsilon_spent", "events")}
                for client, report in outcome.data["clients"].items()
            },
        }
    if job.head_steps:
        found["head_without_dp"] = {
            "private": False,
            "clients": _heads_without_dp(job, clients, shared),
        }
    result.data["references"] = found
    write_json(folder / "summary.json", result.data)


def _heads_without_dp(
    job: "Federation", clients: Sequence[Client], shared: "Shared"
) -> dict[str, Any]:
    """Train each client's head as the private job does, with the noise left out."""
    backbone = shared.backbone
    assert backbone is not None
    flat = np.zeros(backbone.experts.depth, dtype=bool)
    found: dict[str, Any] = {}
    for client in clients:
        data, mine = (
            shared.data[client.id],
            fresh_belongings(backbone, len(shared.data[client.id].label_set)),
        )
        assert data.train.labels is not None
        features = shared.caches[client.id]["observed"].features
        with seated(backbone, mine, len(data.label_set), flat):
            train_head(
                features,
                data.train.labels,
                backbone.centred,
                job,
                noise_multiplier=0.0,
                records=client.records or job.training.records,
                noise=NoiseSource.from_os(),
                tick=lambda: None,
            )
            found[client.id] = {
                "metric": backbone.evaluate(data),
                "epsilon_spent": None,
                "events": [],
            }
    return found
