"""Accuracy at a given epsilon, beside the frozen backbone with a linear head at the same epsilon.

    python benchmarks/utility               # the whole table of docs/utility.md
    python benchmarks/utility --tasks wordnet-8 --epsilons 8 --seeds 0  # some cells
    python benchmarks/utility --table-only  # write the table from finished cells
    python benchmarks/utility --variants    # which factors train: the second table

One client trains as `fedtree-secure run` trains it under `topology.source = "none"`: the head by
DP-SGD on cached features, then head and LoRA together by DP-SGD, with the noise of `plan_noise` for
the whole budget. Only the lower, adapter-free layers are cached (see cached.py) and the arithmetic
is bfloat16. Each finished cell is one line of the results file; a cell that is there is not trained
again, so that an interrupted run goes on where it was.

The columns, accuracy on test rows that trained nothing:

    ours       head, then LoRA and head, within epsilon
    head       the head alone, with all of epsilon: the frozen-backbone reference
    probe      logistic regression on the frozen features, without DP, to convergence
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from cached import UpperPart
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from table import write_table, write_variants
from tasks import TASKS, Rows, first_wave, split
from torch import Tensor
from variants import DEFAULT, EPSILONS, SEEDS, VARIANTS, one_factor
from variants import TASKS as TASKS_OF_VARIANTS

from fedtree_dp import DPSGD, Event, NoiseSource, PoissonGaussian, PrivacyBudget, epsilon_of
from fedtree_secure import Client, Lora, Topology
from fedtree_secure.testing import (
    Backbone,
    ClientData,
    ClientState,
    Job,
    LocalModel,
    Mechanism,
    NoisePlan,
    RoundTrainer,
    initial_state,
    loaded_into,
    minilm_folder,
    plan_noise,
    prepare,
    train_head,
)

DELTA = 1e-5
PROBE_C = 10.0  # the better of .1, 1 and 10 on the tuning seeds
DEFAULT_TASKS = ("icd-10", "tweets-sent3", "20ng-6", "wordnet-8")
Epsilon = float | None


def settings(train: int, seed: int, epsilon: Epsilon, variant: str = DEFAULT) -> Job:
    """Return the product's defaults but for what bounds the time: adapters in the last two layers,
    24 tokens.
    """
    job = Job(
        backbone=str(minilm_folder()),
        privacy=PrivacyBudget(1.0 if epsilon is None else epsilon, DELTA),
        seed=seed,
        lora=Lora(last_layers=2),
        training=first_wave(train),
        topology=Topology(source="none"),
    )
    return VARIANTS[variant].apply(job)


class Setting:
    """One task with one seed: the rows, the cut backbone and the cached features, for all epsilons.

    Args:
        rows: Of the task.
        train, test: How many of them.
        variant: What differs from the defaults.
    """

    def __init__(
        self, rows: Rows, train: int, test: int, seed: int, variant: str = DEFAULT
    ) -> None:
        self.seed, self.records, self.variant = seed, train, variant
        parts = split(rows, train, test, seed)
        labels = tuple(sorted({label for part in parts for _, label in part}))
        columns = [
            Dataset.from_dict({"text": [t for t, _ in part], "label": [c for _, c in part]})
            for part in parts
        ]
        job = settings(train, seed, None, variant)
        self.backbone = Backbone(job)
        client = Client("one", train=columns[0], test=columns[1], labels=labels, records=train)
        data = prepare(client, job, self.backbone.tokenizer)
        self.outputs = len(labels)
        self.flat = np.zeros(self.backbone.experts.depth, dtype=bool)
        upper = UpperPart(self.backbone)
        with autocast(), loaded_into(self.backbone, self.fresh(), self.outputs, self.flat):
            self.data: ClientData = upper.numbered(data)
            assert self.data.test is not None
            self.features, self.test_features = (
                upper.features(t) for t in (self.data.train, self.data.test)
            )
        self.majority = self.data.majority

    def fresh(self) -> ClientState:
        """The public initial values."""
        return initial_state(self.backbone, self.outputs)

    def probe(self) -> float:
        """Accuracy of logistic regression on the frozen features, centred and scaled as the head's
        are.
        """
        mean, scale = self.backbone.reference
        model = LogisticRegression(C=PROBE_C, max_iter=1000)
        model.fit(((self.features - mean) * scale).numpy(), self.data.train.labels)
        return float(
            model.score(((self.test_features - mean) * scale).numpy(), self.data.test.labels)
        )

    def head(self, job: Job, noise_multiplier: float) -> float:
        """Train the loaded head alone; return its accuracy on the frozen features."""
        train_head(
            self.features,
            self.data.train.labels,
            self.backbone.centred,
            job,
            Mechanism(noise_multiplier, self.records, job.head_steps),
            NoiseSource.from_os(),
            lambda: None,
        )
        return accuracy(self.backbone.centred(self.test_features), self.data.test.labels)

    def ours(self, job: Job, plan: NoisePlan) -> dict[str, float]:
        """Train head, then adapters and head; return the accuracy after both stages."""
        mine = self.fresh()
        with loaded_into(self.backbone, mine, self.outputs, self.flat):
            first = self.head(job, plan.head)
        steps, in_turns = job.rounds * job.training.local_steps, VARIANTS[self.variant].in_turns
        mechanism = Mechanism(plan.rounds, self.records, 1 if in_turns else steps)
        local = LocalModel(self.outputs, (False,) * len(self.flat), self.flat)
        for turn in range(steps if in_turns else 1):
            engine = one_factor(turn) if in_turns else DPSGD
            trainer = RoundTrainer(self.backbone, job, engine=engine)
            with autocast():
                trainer.train(
                    self.data, mine, local, mechanism, NoiseSource.from_os(), upload_gradient=False
                )
        with autocast(), loaded_into(self.backbone, mine, self.outputs, self.flat):
            found = self.backbone.evaluate(self.data)
        assert found is not None
        return {"ours_after_head": first, "ours": found["value"]}

    def cell(self, epsilon: Epsilon) -> dict[str, Any]:
        """Train ours and the reference at one epsilon (None: the same steps without noise)."""
        job = settings(self.records, self.seed, epsilon, self.variant)
        alone = dataclasses.replace(job, rounds=0)
        plan, reference = (
            NoisePlan() if epsilon is None else plan_noise(j, j.privacy) for j in (job, alone)
        )
        start = time.perf_counter()
        found: dict[str, Any] = self.ours(job, plan)
        found["seconds"] = round(time.perf_counter() - start, 1)
        with loaded_into(self.backbone, self.fresh(), self.outputs, self.flat):
            found["head"] = self.head(job, reference.head)
        found["noise"] = {"head": plan.head, "rounds": plan.rounds, "head_alone": reference.head}
        if epsilon is not None:
            found["epsilon_spent"] = epsilon_of(events(job, plan), DELTA)
            found["epsilon_spent_head"] = epsilon_of(events(alone, reference), DELTA)
        return found


def events(job: Job, plan: NoisePlan) -> list[Event]:
    """What a ledger would hold after the job."""
    training = job.training
    found: list[Event] = [PoissonGaussian(plan.head, training.head_sample_rate, job.head_steps)]
    if job.rounds:
        found.append(
            PoissonGaussian(plan.rounds, training.sample_rate, training.local_steps * job.rounds)
        )
    return found


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def accuracy(logits: Tensor, labels: Any) -> float:
    return float((logits.detach().argmax(1).numpy() == labels).mean())


def fingerprint(train: int, test: int, variant: str = DEFAULT) -> str:
    """Of everything that a cell depends on but task, seed and epsilon: cells of other settings are
    trained again.
    """
    plain = settings(train, 0, None, variant).to_dict() | {"backbone": "", "test": test}
    if VARIANTS[variant].in_turns:
        plain["in_turns"] = True
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def read_cells(path: Path, key: str) -> list[dict[str, Any]]:
    """Finished cells of these settings; of one that was trained twice, the later."""
    if not path.exists():
        return []
    cells = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    mine = {
        (cell["task"], cell["seed"], cell["epsilon"]): cell
        for cell in cells
        if cell["settings"] == key
    }
    return list(mine.values())


def run(options: argparse.Namespace, key: str, variant: str = DEFAULT) -> None:
    """Train all cells that are missing; all seeds of seed 0 first, so that a broken-off run has
    every task.
    """
    done = {(c["task"], c["seed"], c["epsilon"]) for c in read_cells(options.results, key)}
    for seed in options.seeds:
        for task in options.tasks:
            missing = [e for e in options.epsilons if (task, seed, e) not in done]
            if not missing:
                continue
            setting = Setting(TASKS[task](options.data), options.train, options.test, seed, variant)
            fixed = {
                "task": task,
                "seed": seed,
                "settings": key,
                "train": options.train,
                "test": options.test,
                "majority": setting.majority,
                "probe": setting.probe(),
            }
            for epsilon in missing:
                cell = {**fixed, "epsilon": epsilon, **setting.cell(epsilon)}
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(cell) + "\n")
                figures = (
                    f"ours {cell['ours']:.3f} head {cell['head']:.3f} probe {cell['probe']:.3f}"
                )
                print(
                    f"{variant}: {task} seed {seed} epsilon {epsilon}: {figures} "
                    f"({cell['seconds']:.0f} s)",
                    flush=True,
                )


def epsilon_or_none(text: str) -> Epsilon:
    return None if text == "none" else float(text)


def fill_in(options: argparse.Namespace, tasks: Any, seeds: Any, epsilons: Any) -> None:
    """Set what the caller left out."""
    for name, default in (("tasks", tasks), ("seeds", seeds), ("epsilons", epsilons)):
        setattr(options, name, getattr(options, name) or default)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS))
    parser.add_argument(
        "--epsilons", nargs="+", type=epsilon_or_none, help="numbers, or none for no DP"
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument(
        "--data", type=Path, default=Path("build/utility-data"), help="where packages are kept"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("build/utility.jsonl"), help="finished cells"
    )
    parser.add_argument(
        "--table",
        type=Path,
        default=Path("docs/utility.md"),
        help="document with the table's markers",
    )
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument(
        "--variants", action="store_true", help="the second table, on tasks and seeds of its own"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.variants:
        fill_in(options, TASKS_OF_VARIANTS, SEEDS, EPSILONS)
        found = {}
        for name in VARIANTS:
            key = fingerprint(options.train, options.test, name)
            if not options.table_only:
                run(options, key, name)
            found[name] = [c for c in read_cells(options.results, key) if c["seed"] in SEEDS]
        print(write_variants(options.table, found))
        return
    fill_in(options, DEFAULT_TASKS, (0, 1, 2), (8.0, 3.0, 1.0, None))
    key = fingerprint(options.train, options.test)
    if not options.table_only:
        run(options, key)
    print(
        write_table(
            options.table, [c for c in read_cells(options.results, key) if c["seed"] not in SEEDS]
        )
    )


if __name__ == "__main__":
    main()
