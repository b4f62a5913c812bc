"""What sharing noise is worth: heads that a group trains by aggregated steps, with own and with
shared noise, on real text.

    python benchmarks/shared_noise.py                              # two federations
    python benchmarks/shared_noise.py --federations 5 --docs docs  # the table of docs/accuracy.md
    python benchmarks/shared_noise.py --results FILE --only 0 1    # some of them

Federations and features are those of `accuracy.py`: three clients a task, 800 rows each, no row in
two of them. A group's head is trained by 30 full-batch steps, one an aggregation, with the whole
budget at delta 1e-5: the shipped engine clips and adds noise, the sum goes through the masking
ring's grid, and the product's optimiser moves the head. Own noise: each client adds all that
epsilon asks for. Shared noise: each adds a part of 1 / sqrt(2), because of the three whose sum
opens two are counted on (min_group 3, colluders 1). Everything else is the same, rows and beginning
too, so differences are paired; intervals are over the federations (Student), 95%. `alone` is
epsilon by a client's own part, whatever the others do: what `own_epsilon` must allow. A federation
whose rows stand in the results file is not run again. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accuracy import DELTA, TRAIN, Cached, dealt, interval, job_of

from fedtree_dp import DPSGD, NoiseSource, PrivacyBudget, epsilon_of, given_honest
from fedtree_dp.account.shared import deviation_for
from fedtree_dp.sgd.grid import Grid
from fedtree_secagg import Node
from fedtree_secure import Client
from fedtree_secure.testing import (
    Backbone,
    Job,
    Topology,
    Training,
    events_of,
    initial_state,
    largest_change,
    loaded_into,
    part_of,
    plan_noise,
    quantiser_of,
    start,
)

STEPS, RATE = 30, 5e-2
EPSILONS = (8.0, 3.0, 1.0)
ALONE = 10.0  # own_epsilon over epsilon: above what a part alone gives
BEGIN, END = (
    "<!-- table: python benchmarks/shared_noise.py --federations 5 --docs docs -->",
    ("<!-- end of shared noise -->"),
)


def job(epsilon: float, noise: str) -> Job:
    """Return the job whose rounds are measured here on its head alone."""
    given = job_of(epsilon, "mean")
    own = epsilon * ALONE if noise == "shared" else None
    return dataclasses.replace(
        given,
        privacy=PrivacyBudget(epsilon, DELTA, own),
        noise=noise,
        rounds=STEPS,
        topology=Topology(source="one_group"),
        training=Training(records=TRAIN, max_length=32, head_steps=0, learning_rate=RATE),
    )


def mean_gradient(
    client: Cached, backbone: Backbone, given: Job, multiplier: float, grid: Grid | None
) -> np.ndarray[Any, Any]:
    """Return one client's noisy mean gradient of the head that is loaded, or its grid values."""
    head = backbone.centred
    head.requires_grad_(True)
    probe = torch.optim.SGD(head.parameters(), lr=0.0)

    def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    with DPSGD(
        head,
        probe,
        loss,
        noise_multiplier=multiplier,
        max_grad_norm=given.training.max_grad_norm,
        expected_batch_size=TRAIN,
        noise=NoiseSource.from_os(),
        physical_batch_size=TRAIN,
    ) as engine:
        parameters = list(head.parameters())
        if grid is not None:
            engine.release_on(grid, parameters)
        x = torch.randn(2, client.train.shape[1], generator=torch.Generator().manual_seed(0))
        engine.rehearse({"x": x, "y": torch.arange(2)})
        seen: list[np.ndarray[Any, Any]] = []
        probe.register_step_pre_hook(
            lambda *_: seen.append(
                torch.cat([p.grad.reshape(-1).double() for p in parameters]).numpy()
            )
        )
        engine.step({"x": client.train, "y": torch.from_numpy(client.labels)})
        found = seen[0] if grid is None else engine.take_released().astype(np.float64)
    head.requires_grad_(False)
    return found


def trained(members: list[Cached], backbone: Backbone, given: Job) -> dict[str, torch.Tensor]:
    """Train a group's head by aggregated steps; return its values."""
    plan, outputs = plan_noise(given, given.privacy), members[0].outputs
    flat = np.zeros(backbone.experts.depth, dtype=bool)
    with loaded_into(backbone, initial_state(backbone, outputs), outputs, flat):
        shapes = {name: value.shape for name, value in backbone.centred.named_parameters()}
        size = sum(shape.numel() for shape in shapes.values())
        part = part_of(given, plan.rounds) if given.noise == "shared" else plan.rounds
        clip = largest_change(given, part, TRAIN, merge=False)
        quantiser = quantiser_of(given, clip, len(members), merge=False)
        grid = None
        if given.noise == "shared":
            step = quantiser.step * TRAIN
            noise = deviation_for(part, given.training.max_grad_norm / step, size)
            limit = int(2 * given.training.max_grad_norm / quantiser.step)
            grid = Grid(step, noise.deviation, limit)
        node = Node("head", tuple(f"c{i}" for i in range(len(members))), ((0, size),))
        own = [p.detach().reshape(-1) for p in backbone.centred.parameters()]
        held = start(node, torch.cat(own).numpy())
        for _ in range(STEPS):
            values = torch.from_numpy(held.values.copy())
            at = 0
            for p in backbone.centred.parameters():
                p.data = values[at : at + p.numel()].view(p.shape).clone()
                at += p.numel()
            sums = [mean_gradient(c, backbone, given, part, grid) for c in members]
            if grid is None:
                sums = [
                    quantiser.quantise(np.clip(s, -clip, clip), NoiseSource.from_os().bytes(32))
                    for s in sums
                ]
            total = np.sum([s.astype(np.int64) for s in sums], axis=0)
            held.follow_gradient(-quantiser.decode(total) / len(members), RATE)
        values, found, at = torch.from_numpy(held.values.copy()), {}, 0
        for name, shape in shapes.items():
            found[name] = values[at : at + shape.numel()].view(shape).clone()
            at += shape.numel()
        return {**backbone.centred.state_dict(), **found}


def measured(federations: list[list[Client]], numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Yield one row for each of these federations, each epsilon and task."""
    backbone = Backbone(job_of(8.0, "mean"), device="cpu")
    for number in numbers:
        cached = [Cached(client, backbone) for client in federations[number]]
        for epsilon in EPSILONS:
            for task in sorted({client.task for client in cached}):
                members = [client for client in cached if client.task == task]
                row: dict[str, Any] = {"federation": number, "epsilon": epsilon, "task": task}
                for noise in ("own", "shared"):
                    head = trained(members, backbone, job(epsilon, noise))
                    row[noise] = statistics.mean(c.accuracy(backbone, head) for c in members)
                yield row
        print(f"  federation {number}: done", file=sys.stderr, flush=True)


def all_rows(count: int, only: list[int] | None, results: Path | None) -> list[dict[str, Any]]:
    """Return the rows of the results file and those that are missing in it, which join it."""
    known = results.read_text("utf-8").splitlines() if results and results.exists() else []
    rows = [row for row in map(json.loads, known) if row["of"] == count]
    done = {row["federation"] for row in rows}
    wanted = range(count) if only is None else only
    for row in measured(dealt(count), [number for number in wanted if number not in done]):
        rows.append({"of": count, **row})
        if results:
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def alone(epsilon: float) -> float:
    """Return epsilon by one client's part alone, and check that the claim is what it should be."""
    given = job(epsilon, "shared")
    events = events_of(given, plan_noise(given, given.privacy))
    assert epsilon_of(given_honest(events), DELTA) <= epsilon
    return epsilon_of(events, DELTA)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], dict[str, float]]:
    """Return the lines of a Markdown table, and its figures by name."""
    lines = [
        "| epsilon | alone | tasks | own noise | shared noise | difference, paired |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, float] = {}
    tasks = sorted({row["task"] for row in rows})
    for epsilon in EPSILONS:
        by_own = alone(epsilon)
        for kept in [[task] for task in tasks] + [tasks]:
            cell = [r for r in rows if r["epsilon"] == epsilon and r["task"] in kept]
            means = [
                [
                    statistics.mean(r[noise] for r in cell if r["federation"] == number)
                    for number in sorted({r["federation"] for r in cell})
                ]
                for noise in ("own", "shared")
            ]
            gap, half = interval([b - a for a, b in zip(*means, strict=True)])
            own, shared = (statistics.mean(values) for values in means)
            name = "all" if len(kept) > 1 else kept[0]
            lines.append(
                f"| {epsilon:g} | {by_own:.3g} | {name} | {own:.3f} | {shared:.3f} | "
                f"{gap:+.3f} ± {half:.3f} |"
            )
            if name == "all":
                key = f"epsilon_{epsilon:g}"
                found |= {f"{key}_own": own, f"{key}_shared": shared, f"{key}_gap": gap}
    return lines, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--federations", type=int, default=2)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of federations to run now")
    parser.add_argument("--results", type=Path, help="finished rows, one a line")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    lines, figures = table(all_rows(given.federations, given.only, given.results))
    print("\n".join(lines))
    if given.docs:
        page = given.docs / "accuracy.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        page.write_text("\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2], "utf-8")
    seconds = time.perf_counter() - began
    print(json.dumps({**figures, "federations": given.federations, "seconds": seconds}))


if __name__ == "__main__":
    main()
