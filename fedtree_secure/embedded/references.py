"""References for research runs: the same splits and the same epsilon without the tree.

``head``: the head alone on the frozen backbone; ``head_group``: the same, averaged once among the
clients with its labels; ``local``: every client for itself, head too; ``fedit``: one group for
every layer, heads as the job has them. Each is a whole job of its own with its own stores, so its
epsilon is accounted as ours is; that is also why a real run never trains them. ``head_without_dp``
shows what privacy costs: the same head steps with no noise and no epsilon at all, which only a
simulation may do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedtree_dp import NoiseSource
from fedtree_secure.client.data import Client, prepare
from fedtree_secure.client.head import train_head
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.config import Job, Source
from fedtree_secure.embedded.forecast import HEAD_STEP, HEADS, Part, parts_of
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.embedded.summary import write_summary
from fedtree_secure.embedded.watching import Watch
from fedtree_secure.report.summary import Result
from fedtree_secure.storage import read_json

Train = Callable[[Job, Path], Result]
WITHOUT_DP = "heads without DP"


def reference_jobs(job: Job) -> dict[str, Job]:
    """The reference jobs by name; a task without a trained head has no head reference."""

    def with_source(source: Source, **changes: Any) -> Job:
        topology = dataclasses.replace(job.topology, source=source)
        if source == "none":  # nobody to share noise with
            changes["noise"] = "own"
        return dataclasses.replace(job, topology=topology, **changes)

    alone = job.training
    if job.head == "group":
        alone = dataclasses.replace(alone, head="local", head_release="auto")
    jobs = {
        "local": with_source("none", training=alone),
        "fedit": with_source("one_group"),
    }
    if job.head_steps:
        heads = {"head": with_source("none", rounds=0, training=alone)}
        if job.head == "group":
            heads["head_group"] = with_source("none", rounds=0)
        jobs = {**heads, **jobs}
    return jobs


def plan_of_references(job: Job, out: Path, records: Sequence[int]) -> list[Part]:
    """Return what is still to be trained beside a run in ``out``; see `parts_of`."""
    parts = []
    for name, reference in reference_jobs(job).items():
        place = _place_of(out, name)
        if not (place / "summary.json").exists():
            parts += parts_of(str(place), reference, records)
    if job.head_steps:
        work = HEAD_STEP * job.head_steps
        parts.append(Part(str(out), WITHOUT_DP, HEADS, len(records), work))
    return parts


def _place_of(out: Path, name: str) -> Path:
    return out / "references" / name


def add_references(
    job: Job,
    clients: Sequence[Client],
    result: Result,
    shared: Shared,
    train: Train,
    watch: Watch,
) -> None:
    """Train the references (those that are not finished) and add them to the run's summary.

    Args:
        train: Runs a job into a folder.
        watch: Is told about what no job of its own trains.
    """
    found: dict[str, Any] = {}
    for name, reference in reference_jobs(job).items():
        place = _place_of(result.folder, name)
        finished = place / "summary.json"
        outcome = read_json(finished) if finished.exists() else train(reference, place).data
        found[name] = {
            "private": True,
            "clients": {
                client: {key: report[key] for key in ("metric", "epsilon_spent", "events")}
                for client, report in outcome["clients"].items()
            },
        }
    if job.head_steps:
        heads = _heads_without_dp(job, clients, shared, watch)
        found["head_without_dp"] = {"private": False, "clients": heads}
    result.data["references"] = found
    write_summary(result.folder, result.data)


def _heads_without_dp(
    job: Job, clients: Sequence[Client], shared: Shared, watch: Watch
) -> dict[str, Any]:
    """Train each client's head as the private job does, with the noise left out."""
    backbone = shared.backbone(job)
    flat = np.zeros(backbone.experts.depth, dtype=bool)
    found: dict[str, Any] = {}
    watch.phase(WITHOUT_DP, len(clients))
    for client in clients:
        data = prepare(client, job, backbone.tokenizer)
        assert data.train.labels is not None
        outputs = len(data.label_set)
        with (
            watch.at_work(client.id, WITHOUT_DP),
            loaded_into(backbone, initial_state(backbone, outputs), outputs, flat),
        ):
            cache = shared.cache_of(client.id, job.privacy_unit)
            observed = cache.get("observed") or backbone.observe(data.train)
            train_head(
                observed.features,
                data.train.labels,
                backbone.centred,
                job,
                Mechanism(0.0, client.records or job.training.records, job.head_steps),
                NoiseSource.from_os(),
                lambda: None,
                data.train.members,
            )
            found[client.id] = {
                "metric": backbone.evaluate(data),
                "epsilon_spent": None,
                "events": [],
            }
    return found
