"""What a client's private step costs with the activations of its frozen layers kept, and without.

    python benchmarks/kept_step.py              # some six minutes on two cores
    python benchmarks/kept_step.py --clock cpu  # one thread, processor time: others use it too
    python benchmarks/kept_step.py --quick      # a few rows, twice: only to see that it runs

MiniLM as the product trains it: 800 records of 32 tokens, all of them in every step, adapters of
rank 4 in the last two layers or in all six, the product's own trainer and physical batches. All
variants of a size run alternately in one process, in an order that changes with every turn; a ratio
is the median over the turns of a variant's time over that turn's time without anything kept, in
float32: what a step took before. Times are those of whole rounds of one step, rehearsal included.
The last line is one JSON object:

    last_two, all_six    ratio by variant; where nothing lies below the adapters nothing is kept
    fill                 what computing and keeping them takes once, in steps of `last_two` without
    seconds_...          median seconds of each variant
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from fedtree_dp import NoiseSource, PrivacyBudget
from fedtree_secure import Lora, Topology, Training
from fedtree_secure.testing import (
    Backbone,
    ClientData,
    Job,
    Kept,
    LocalModel,
    Mechanism,
    RoundTrainer,
    Table,
    initial_state,
    keep,
    minilm_folder,
)

WIDTH, CLASSES = 32, 8
Clock = Callable[[], float]
PRECISIONS = ("float32", "bfloat16")
LAYERS = {"last_two": 2, "all_six": None}
# Precision, and where activations are kept: MiB of memory, None for nowhere.
VARIANTS: dict[str, tuple[str, int | None]] = {
    "float32": ("float32", None),
    "float32, kept": ("float32", 1024),
    "float32, kept on disk": ("float32", 0),
    "bfloat16": ("bfloat16", None),
    "bfloat16, kept": ("bfloat16", 1024),
}


def job_of(records: int, layers: int | None, precision: str) -> Job:
    """The product's defaults at this size."""
    return Job(
        backbone=str(minilm_folder()),
        privacy=PrivacyBudget(8, 1e-5),
        lora=Lora(last_layers=layers),
        training=Training(records=records, max_length=WIDTH, precision=precision),
        topology=Topology(source="none"),
    )


def rows(backbone: Backbone, records: int) -> ClientData:
    """Random tokens of the full width."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, len(backbone.tokenizer), size=(records, WIDTH))
    table = Table(tuple(map(tuple, ids.tolist())), rng.integers(CLASSES, size=records))
    labels = tuple(str(i) for i in range(CLASSES))
    return ClientData(table, None, labels, labels_declared=True)


class Variant:
    """A client that takes rounds of one step.

    Args:
        backbone: The model.
        data: Its rows.
        memory: MiB of activations in memory; None keeps none.
        place: Where more lie.
    """

    def __init__(
        self, backbone: Backbone, data: ClientData, memory: int | None, place: Path
    ) -> None:
        self._backbone, self._data, job = backbone, data, backbone.job
        self.kept: Kept | None = None
        if memory is not None:
            settings = replace(job, training=replace(job.training, activations_in_memory=memory))
            self.kept = keep(backbone, settings, data.train, len(data.train), place)
        self._trainer = RoundTrainer(backbone, job, kept=self.kept)
        self._state = initial_state(backbone, CLASSES)
        flat = np.zeros(backbone.experts.depth, dtype=bool)
        self._model = LocalModel(CLASSES, (True,) * len(flat), flat)

    def step(self) -> None:
        """Take one round."""
        self._trainer.train(
            self._data,
            self._state,
            self._model,
            Mechanism(1.0, len(self._data.train), 1),
            NoiseSource.from_os(),
            upload_gradient=True,
        )

    def close(self) -> None:
        """Delete what is kept."""
        if self.kept is not None:
            self.kept.close()


def turns(steps: dict[str, Variant], count: int, clock: Clock) -> dict[str, list[float]]:
    """Time every variant once a turn, in random order; the first time includes the fill."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(count + 1):
        for name in random.Random(index).sample(sorted(steps), len(steps)):
            start = clock()
            steps[name].step()
            times[name].append(clock() - start)
    return times


def measure(
    clock: Clock, *, records: int = 800, count: int = 3, sizes: Sequence[str] = tuple(LAYERS)
) -> dict[str, object]:
    """Return the ratios; see the module's text."""
    found: dict[str, object] = {}
    for size in sizes:
        backbones = {kind: Backbone(job_of(records, LAYERS[size], kind)) for kind in PRECISIONS}
        data = rows(backbones["float32"], records)
        with TemporaryDirectory() as folder:
            steps = {
                name: Variant(backbones[kind], data, memory, Path(folder) / name)
                for name, (kind, memory) in VARIANTS.items()
            }
            # What keeps nothing is the step without, and not timed twice.
            steps = {n: v for n, v in steps.items() if VARIANTS[n][1] is None or v.kept}
            times = turns(steps, count, clock)
            for step in steps.values():
                step.close()
        later = {name: taken[1:] for name, taken in times.items()}
        found[size] = {
            name: statistics.median(a / b for a, b in zip(taken, later["float32"], strict=True))
            for name, taken in later.items()
        }
        seconds = {name: statistics.median(taken) for name, taken in later.items()}
        for name, taken in seconds.items():
            print(f"    {size:10} {name:24} {taken:8.2f} s", flush=True)
        if size == "last_two":
            first = times["float32, kept"][0] - seconds["float32, kept"]
            found["fill"] = first / seconds["float32"]
        found[f"seconds_{size}"] = seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, once")
    parser.add_argument("--turns", type=int, default=3, help="timed turns of all variants")
    parser.add_argument("--records", type=int, default=800, help="rows, all of them in a step")
    parser.add_argument("--size", choices=LAYERS, help="one of the two; else both")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, processor time"
    )
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    records, count = (40, 1) if options.quick else (options.records, options.turns)
    sizes = tuple(LAYERS) if options.size is None else (options.size,)
    found = measure(clock, records=records, count=count, sizes=sizes)
    print(json.dumps({"clock": options.clock, "threads": torch.get_num_threads(), **found}))


if __name__ == "__main__":
    main()
