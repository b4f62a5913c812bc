"""Heads of a group from one release of class sums, beside the average of heads trained at home.

    python benchmarks/head_release.py                # five federations, all epsilons
    python benchmarks/head_release.py --docs docs    # writes the table of docs/accuracy.md
    python benchmarks/head_release.py --quick        # one federation, one epsilon

Federations, tasks, features and budget are those of `benchmarks/accuracy.py`; the frozen model's
features are kept in `build/`, so a second call starts with them. Class sums are the product's own
(`fedtree_dp.class_sums`, `agreed.class_sums.head_of`), without the masked sum's grid. The trained
heads take the product's steps in closed form: a linear head's gradient for one record is an outer
product, so all clipped gradients are one matrix product. `tests/secure/test_head_release.py`
compares that with `train_head`. Each federation is measured with several draws of the noise, whose
mean is its result; differences are paired by federation, with 95% intervals over the federations
(Student). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import TRAIN, Cached, dealt, interval, job_of
from scipy.special import softmax

from fedtree_dp import NoiseSource
from fedtree_secure.testing import (
    Backbone,
    Centred,
    Job,
    Table,
    head_of,
    plan_noise,
    release_sums,
)

Floats = np.ndarray[Any, np.dtype[np.float64]]
EPSILONS = (0.25, 0.5, 1.0, 3.0)
DRAWS = 5  # of the noise, for each federation
WAYS = ("average", "class_sums")
ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Rows:
    """A client's features under the frozen model, and its labels.

    Attributes:
        train, test: (rows, in_features), before centring.
    """

    task: str
    classes: int
    train: Floats
    labels: Any
    test: Floats
    truth: Any


@dataclass(frozen=True)
class Seen:
    """All federations, and the public centre and scale of features."""

    federations: list[list[Rows]]
    mean: Floats
    scale: float


def seen(count: int, place: Path) -> Seen:
    """Return the features of all clients, from ``place`` where an earlier call left them."""
    if place.exists():
        kept = torch.load(place, weights_only=True)
        known = kept["federations"][:count]
        if len(known) == count:
            return Seen([[_read(r) for r in f] for f in known], kept["mean"].numpy(), kept["scale"])
    backbone = Backbone(job_of(8.0, "mean"), device="cpu")
    federations = [
        [_kept(Cached(client, backbone)) for client in members] for members in dealt(count)
    ]
    mean, scale = backbone.reference
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"federations": federations, "mean": mean.double(), "scale": scale}, place)
    return seen(count, place)


def _kept(client: Cached) -> dict[str, Any]:
    return {
        "task": client.task,
        "classes": client.outputs,
        "train": client.train,
        "labels": torch.from_numpy(client.labels),
        "test": client.test,
        "truth": client.truth,
    }


def _read(kept: dict[str, Any]) -> Rows:
    return Rows(
        kept["task"],
        kept["classes"],
        kept["train"].double().numpy(),
        kept["labels"].numpy(),
        kept["test"].double().numpy(),
        kept["truth"].numpy(),
    )


def made_by(job: Job, way: Any) -> Job:
    """Return a job that makes its heads in a way."""
    return replace(job, training=replace(job.training, head_release=way))


def trained(rows: Rows, public: Seen, job: Job, noise: float, rng: np.random.Generator) -> Floats:
    """Train a head at home as `train_head` does on full batches, in closed form.

    Returns:
        (classes, in_features + 1), biases last.
    """
    training = job.training
    inputs = np.c_[(rows.train - public.mean) * public.scale, np.ones(len(rows.train))]
    lengths = np.linalg.norm(inputs, axis=1)
    wanted = np.eye(rows.classes)[rows.labels]
    head = initial(job, rows.classes, inputs.shape[1] - 1)
    first, second, tail = np.zeros_like(head), np.zeros_like(head), np.zeros_like(head)
    half = job.head_steps // 2
    for step in range(1, job.head_steps + 1):
        errors = softmax(inputs @ head.T, axis=1) - wanted
        norms = np.linalg.norm(errors, axis=1) * lengths
        factors = np.minimum(1.0, training.max_grad_norm / np.maximum(norms, 1e-30))
        total = (errors * factors[:, None]).T @ inputs
        total += rng.normal(scale=noise * training.max_grad_norm, size=total.shape)
        gradient = total / training.records
        first = ADAM[0] * first + (1 - ADAM[0]) * gradient
        second = ADAM[1] * second + (1 - ADAM[1]) * gradient**2
        size = np.sqrt(second / (1 - ADAM[1] ** step)) + ADAM[2]
        head = head - training.head_learning_rate * first / (1 - ADAM[0] ** step) / size
        if step > half:
            tail += head
    return tail / (job.head_steps - half)


def initial(job: Job, classes: int, width: int) -> Floats:
    """The public beginning of a head, see `Backbone.new_head`."""
    rng = np.random.default_rng([job.seed, 0xB])
    return np.c_[rng.normal(scale=0.02, size=(classes, width)), np.zeros(classes)]


def summed(members: Sequence[Rows], public: Seen, noise: float) -> Floats:
    """Release every member's class sums and make the group's head of them."""
    released = []
    for rows in members:
        linear = torch.nn.Linear(rows.train.shape[1], rows.classes)
        centred = Centred(linear, (torch.from_numpy(public.mean).float(), public.scale))
        table = Table(((1,),) * len(rows.train), rows.labels)
        given: dict[str, Any] = {"records": TRAIN, "noise_multiplier": noise}
        features = torch.from_numpy(rows.train).float()
        released.append(
            release_sums(features, table, centred, noise=NoiseSource.from_os(), **given)
        )
    classes, deviation = members[0].classes, noise / (TRAIN * math.sqrt(len(members)))
    flat = head_of(np.mean(released, axis=0), classes, deviation).astype(np.float64)
    return np.c_[flat[:-classes].reshape(classes, -1), flat[-classes:]]


def accuracy(head: Floats, members: Sequence[Rows], public: Seen) -> float:
    """Mean share of test rows that a head labels rightly."""
    found = []
    for rows in members:
        inputs = np.c_[(rows.test - public.mean) * public.scale, np.ones(len(rows.test))]
        found.append(float(((inputs @ head.T).argmax(axis=1) == rows.truth).mean()))
    return statistics.mean(found)


def measured(public: Seen, epsilons: Sequence[float], draws: int) -> list[dict[str, Any]]:
    """Return one row for each epsilon, federation, task and way."""
    found = []
    for epsilon in epsilons:
        jobs = {way: made_by(job_of(epsilon, "mean"), way) for way in WAYS}
        noise = {way: plan_noise(job, job.privacy).head for way, job in jobs.items()}
        for number, federation in enumerate(public.federations):
            for task in sorted({rows.task for rows in federation}):
                members = [rows for rows in federation if rows.task == task]
                by: dict[str, list[float]] = {way: [] for way in WAYS}
                for draw in range(draws):
                    rng = np.random.default_rng([number, draw, int(1000 * epsilon)])
                    job = jobs["average"]
                    heads = [trained(r, public, job, noise["average"], rng) for r in members]
                    made = np.mean(heads, axis=0), summed(members, public, noise["class_sums"])
                    for way, head in zip(WAYS, made, strict=True):
                        by[way].append(accuracy(head, members, public))
                means = {way: statistics.mean(values) for way, values in by.items()}
                found.append({"epsilon": epsilon, "federation": number, "task": task, **means})
        print(f"  epsilon {epsilon:g}: done", flush=True)
    return found


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [
        "| epsilon | tasks | average of trained heads | class sums | difference, paired |",
        "|---|---|---|---|---|",
    ]
    tasks = sorted({row["task"] for row in rows})
    for epsilon in sorted({row["epsilon"] for row in rows}, reverse=True):
        for kept in [[task] for task in tasks] + [tasks]:
            cell = [r for r in rows if r["epsilon"] == epsilon and r["task"] in kept]
            gaps = []
            for number in sorted({row["federation"] for row in cell}):
                here = [row for row in cell if row["federation"] == number]
                gaps.append(statistics.mean(r["class_sums"] - r["average"] for r in here))
            gap, half = interval(gaps)
            means = [statistics.mean(row[name] for row in cell) for name in WAYS]
            name = "all" if len(kept) > 1 else kept[0]
            spread = "" if math.isnan(half) else f" ± {half:.3f}"
            lines.append(
                f"| {epsilon:g} | {name} | {means[0]:.3f} | {means[1]:.3f} | {gap:+.3f}{spread} |"
            )
    return lines


def write(docs: Path, lines: Sequence[str]) -> None:
    """Put the table between its marks in docs/accuracy.md."""
    page = docs / "accuracy.md"
    begin = "<!-- table: python benchmarks/head_release.py --docs docs -->"
    end = "<!-- end of head release -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([before + begin, *lines, end]) + after, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--federations", type=int, default=5)
    parser.add_argument("--epsilons", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--features", type=Path, default=Path("build/head-release.pt"))
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    public = seen(1 if given.quick else given.federations, given.features)
    epsilons = given.epsilons[:1] if given.quick else given.epsilons
    rows = measured(public, epsilons, 1 if given.quick else DRAWS)
    lines = table(rows)
    print("\n".join(lines))
    if given.docs:
        write(given.docs, lines)
    seconds = round(time.process_time() - began, 1)
    print(json.dumps({"federations": len(public.federations), "cpu_seconds": seconds}))


if __name__ == "__main__":
    main()
