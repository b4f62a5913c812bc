"""What the federation adds at a given epsilon: the tree beside one group, every client alone, and
the head alone.

    python benchmarks/utility/federated.py               # the third table of docs/utility.md; hours
    python benchmarks/utility/federated.py --each 3 --columns tree  # some cells
    python benchmarks/utility/federated.py --table-only  # write the table from finished cells

Two tasks, several clients on each, all rows different. Every cell is one `Federation.run` with the
product's defaults but for what bounds the time (adapters in the last two layers, 24 tokens):
fingerprint, sketch, tree, ledgers and masking included. Each finished cell is one line of the
results file; a cell that is there is not run again. The columns, mean accuracy over the clients on
test rows of their own:

    tree, one group, alone    head and adapters; who shares a layer: the groups that the private
                              sketch found, all, nobody
    head                      the head alone, with all of epsilon: the frozen-backbone reference
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from datasets import Dataset
from table import COLUMNS, write_federated
from tasks import TASKS, first_wave, split

from fedtree_dp import PrivacyBudget
from fedtree_secure import Client, Federation, Lora
from fedtree_secure.testing import Shared, data_sets_in, minilm_folder

CHOSEN = ("wordnet-8", "20ng-6")
TRAIN, TEST, DELTA = 1000, 200, 1e-5
NAMES = ("column", "each", "epsilon", "seed")


def job_of(column: str, epsilon: float, seed: int) -> Federation:
    """Return the product's defaults but for the column and for what bounds the time."""
    default = Federation(
        backbone=str(minilm_folder()),
        privacy=PrivacyBudget(epsilon, DELTA),
        seed=seed,
        lora=Lora(last_layers=2),
        training=first_wave(TRAIN),
    )
    if column == "tree":
        return default
    source = "one_group" if column == "one group" else "none"
    topology = dataclasses.replace(default.job.topology, source=source)
    return default.replace(topology=topology, rounds=0 if column == "head" else default.job.rounds)


def clients_of(task: str, each: int, seed: int, folder: Path) -> list[Client]:
    """Deal rows of a task out to its clients."""
    train, test = split(TASKS[task](folder), each * TRAIN, each * TEST, seed)
    labels = tuple(sorted({label for _, label in train}))

    def part(rows: list[tuple[str, str]], number: int) -> Dataset:
        mine = rows[number::each]
        return Dataset.from_dict(
            {"text": [text for text, _ in mine], "label": [label for _, label in mine]}
        )

    return [
        Client(f"{task}-{n}", train=part(train, n), test=part(test, n), labels=labels)
        for n in range(each)
    ]


def cell(
    column: str, each: int, epsilon: float, seed: int, folder: Path, shared: Shared
) -> dict[str, Any]:
    """Run one federation; return the mean accuracy of each task's clients."""
    start = time.perf_counter()
    people = [client for task in CHOSEN for client in clients_of(task, each, seed, folder)]
    job = job_of(column, epsilon, seed)
    with tempfile.TemporaryDirectory() as out, data_sets_in(Path(out)):
        reports = job.run(people, Path(out) / "run", shared=shared).data["clients"]
    accuracy = {
        task: statistics.mean(
            r["metric"]["value"] for name, r in reports.items() if name.startswith(f"{task}-")
        )
        for task in CHOSEN
    }
    spent = max(report["epsilon_spent"] for report in reports.values())
    return {
        "accuracy": accuracy,
        "epsilon_spent": spent,
        "seconds": round(time.perf_counter() - start),
    }


def settings() -> str:
    """Return a hash of everything that a cell depends on but column, group size, epsilon
    and seed.
    """
    plain = job_of("tree", 8.0, 0).job.to_dict() | {"backbone": "", "test": TEST, "tasks": CHOSEN}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def read(path: Path, key: str) -> list[dict[str, Any]]:
    """Return finished cells of these settings."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [found for found in map(json.loads, lines) if found["settings"] == key]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", nargs="+", type=int, default=[3, 10], help="clients of each task")
    parser.add_argument("--epsilons", nargs="+", type=float, default=[8.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS)
    parser.add_argument(
        "--data", type=Path, default=Path("build/utility-data"), help="where packages are kept"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("build/federated.jsonl"), help="finished cells"
    )
    parser.add_argument(
        "--table",
        type=Path,
        default=Path("docs/utility.md"),
        help="document with the table's markers",
    )
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    key = settings()
    done = {tuple(c[name] for name in NAMES) for c in read(options.results, key)}
    for seed, each in itertools.product(options.seeds, () if options.table_only else options.each):
        shared = Shared()  # the model, and its features of these rows
        for epsilon, column in itertools.product(options.epsilons, options.columns):
            name = (column, each, epsilon, seed)
            if name in done:
                continue
            found = cell(*name, options.data, shared)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"settings": key, **dict(zip(NAMES, name, strict=True)), **found})
                    + "\n"
                )
            print(f"{column}, {each} a task, epsilon {epsilon:g}, seed {seed}: {found}", flush=True)
    print(write_federated(options.table, read(options.results, key)))


if __name__ == "__main__":
    main()
