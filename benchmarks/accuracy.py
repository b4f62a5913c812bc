"""What a head that is shared in its group is worth, on real text, beside a head trained alone.

    python benchmarks/accuracy.py                # five federations, epsilon 8, 3, 1 and no privacy
    python benchmarks/accuracy.py --docs docs    # writes the table of docs/accuracy.md
    python benchmarks/accuracy.py --poolings mean native  # features of the untrained pooler, too
    python benchmarks/accuracy.py --quick        # one federation, one epsilon: only to see it run

A federation is three clients a task with 800 training and 400 test rows each. All federations are
dealt out at once, so no row is in two of them, and test rows are those of nobody's training. The
demo's third task (injuries) has too few rows for that and is left out. Heads are trained by the
product's own code on the frozen model's features: 100 full-batch DP-SGD steps within the whole
budget at delta 1e-5. `head alone` keeps a client's; `group head` averages those of the clients with
the same labels, as a run does in one masked sum (here without the sum's grid, which is a
five-hundredth of a learning rate). Both come from the same training, so what differs is the average
alone. Intervals are of the mean over the federations (Student), 95%. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from fedtree_dp import NoiseSource, PrivacyBudget
from fedtree_secure import Client, Topology, Training
from fedtree_secure.demo import clients, minilm
from fedtree_secure.testing import (
    Backbone,
    Job,
    Mechanism,
    initial_state,
    loaded_into,
    plan_noise,
    prepare,
    train_head,
)

EACH, TRAIN, TEST, DELTA = 3, 800, 400, 1e-5
TASKS = ("diagnoses", "tweets")
SHORT = 0.95  # of the rows asked for: with fewer, a label's rows ran out
EPSILONS: tuple[float | None, ...] = (8.0, 3.0, 1.0, None)
POOLINGS = ("mean", "native")


class Cached:
    """A client's features under the frozen model, and its heads."""

    def __init__(self, client: Client, backbone: Backbone) -> None:
        self.task = client.id.rsplit("-", 1)[0]
        data = prepare(client, backbone.job, backbone.tokenizer)
        assert data.test is not None
        assert data.test.labels is not None
        assert data.train.labels is not None
        self.outputs, self.labels = len(data.label_set), data.train.labels
        flat = np.zeros(backbone.experts.depth, dtype=bool)
        with loaded_into(backbone, initial_state(backbone, self.outputs), self.outputs, flat):
            self.train = backbone.observe(data.train).features
            self.test = backbone.observe(data.test).features
        self.truth = torch.from_numpy(data.test.labels)

    def head(self, backbone: Backbone, job: Job, noise: float) -> dict[str, torch.Tensor]:
        """Train a head as a client does; return its values."""
        state, flat = initial_state(backbone, self.outputs), np.zeros(backbone.experts.depth, bool)
        with loaded_into(backbone, state, self.outputs, flat):
            mechanism = Mechanism(noise, TRAIN, job.head_steps)
            args = (backbone.centred, job, mechanism, NoiseSource.from_os(), lambda: None)
            train_head(self.train, self.labels, *args)
            return {n: v.clone() for n, v in backbone.centred.state_dict().items()}

    def accuracy(self, backbone: Backbone, head: dict[str, torch.Tensor]) -> float:
        """Share of test rows that a head labels rightly."""
        state, flat = initial_state(backbone, self.outputs), np.zeros(backbone.experts.depth, bool)
        with loaded_into(backbone, state, self.outputs, flat), torch.no_grad():
            backbone.centred.load_state_dict(head)
            said = backbone.centred(self.test).argmax(-1)
        return float((said == self.truth).float().mean())


def job_of(epsilon: float | None, pooling: Any) -> Job:
    budget = PrivacyBudget(epsilon=epsilon or 8.0, delta=DELTA)
    training = Training(
        records=TRAIN, max_length=32, pooling=pooling, head_release="average"
    )  # class sums: benchmarks/head_release.py
    return Job(
        backbone=str(minilm()),
        privacy=budget,
        rounds=0,
        training=training,
        topology=Topology(source="none"),
    )


def dealt(count: int) -> list[list[Client]]:
    """Return disjoint federations.

    Raises:
        SystemExit: The tasks have too few rows for so many.
    """
    every = clients(each=EACH * count, train=TRAIN, test=TEST, seed=17)
    found: list[list[Client]] = [[] for _ in range(count)]
    for client in every:
        if client.id.rsplit("-", 1)[0] not in TASKS:
            continue
        if len(client.train) < SHORT * TRAIN:
            raise SystemExit(f"too few rows for {count} disjoint federations; ask for fewer")
        found[(int(client.id.rsplit("-", 1)[1]) - 1) // EACH].append(client)
    return found


def measured(
    federations: list[list[Client]], pooling: str, epsilons: tuple[float | None, ...]
) -> Iterator[dict[str, Any]]:
    """Yield one row for each epsilon, federation and task."""
    backbone = Backbone(job_of(8.0, pooling), device="cpu")
    cached = [[Cached(client, backbone) for client in members] for members in federations]
    for epsilon in epsilons:
        job = job_of(epsilon, pooling)
        noise = 0.0 if epsilon is None else plan_noise(job, job.privacy).head
        for number, members in enumerate(cached):
            heads = [client.head(backbone, job, noise) for client in members]
            for task in sorted({client.task for client in members}):
                own = [(c, h) for c, h in zip(members, heads, strict=True) if c.task == task]
                mean = {n: torch.stack([h[n] for _, h in own]).mean(0) for n in own[0][1]}
                alone = [c.accuracy(backbone, h) for c, h in own]
                group = [c.accuracy(backbone, mean) for c, _ in own]
                yield {
                    "pooling": pooling,
                    "epsilon": epsilon,
                    "federation": number,
                    "task": task,
                    "alone": statistics.mean(alone),
                    "group": statistics.mean(group),
                }
        print(f"  {pooling}, epsilon {epsilon}: done", file=sys.stderr, flush=True)


def interval(values: list[float]) -> tuple[float, float]:
    """Return mean and half of the 95% interval; a half of nan for a single value."""
    if len(values) < 2:
        return values[0], math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1)) * spread


def table(rows: list[dict[str, Any]]) -> tuple[list[str], dict[str, float]]:
    """Return the lines of a Markdown table, and its means by name."""
    lines = [
        "| features | epsilon | tasks | head alone | group head | difference, paired |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, float] = {}
    tasks = sorted({row["task"] for row in rows})
    for pooling in dict.fromkeys(row["pooling"] for row in rows):
        for epsilon in dict.fromkeys(row["epsilon"] for row in rows):
            for kept in [[task] for task in tasks] + [tasks]:
                cell = [
                    row
                    for row in rows
                    if (row["pooling"], row["epsilon"]) == (pooling, epsilon)
                    and row["task"] in kept
                ]
                by = sorted({row["federation"] for row in cell})
                means = {
                    way: [
                        statistics.mean(row[way] for row in cell if row["federation"] == number)
                        for number in by
                    ]
                    for way in ("alone", "group")
                }
                gap, half = interval([b - a for a, b in zip(*means.values(), strict=True)])
                alone, group = (statistics.mean(v) for v in means.values())
                name = "all" if len(kept) > 1 else kept[0]
                shown = "no DP" if epsilon is None else f"{epsilon:g}"
                lines.append(
                    f"| {pooling} | {shown} | {name} | {alone:.3f} | {group:.3f} | "
                    f"{gap:+.3f} ± {half:.3f} |"
                )
                if name == "all":
                    key = f"{pooling}_{shown.replace(' ', '_')}"
                    found |= {f"{key}_alone": alone, f"{key}_group": group, f"{key}_gap": gap}
    return lines, found


def write(docs: Path, lines: list[str]) -> None:
    """Put a table between the marks of docs/accuracy.md."""
    page = docs / "accuracy.md"
    begin, end = "<!-- table: python benchmarks/accuracy.py --docs docs -->", "<!-- end -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([before + begin, *lines, end]) + after, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--federations", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=["mean"])
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    count = 1 if given.quick else given.federations
    rows = [
        row
        for pooling in given.poolings
        for row in measured(dealt(count), pooling, EPSILONS[:1] if given.quick else EPSILONS)
    ]
    lines, means = table(rows)
    print("\n".join(lines))
    if given.docs:
        write(given.docs, lines)
    print(json.dumps({**means, "federations": count, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
