"""What a tree of adapters is worth under privacy, beside every way to share that it competes with.

    python benchmarks/trees.py                        # every cell; hours of one core
    python benchmarks/trees.py --settings last --epsilons 8 --seeds 0 1 --methods tree FedIT
    python benchmarks/trees.py --table-only           # the tables of docs/trees.md

All methods have the same clients, rows, frozen features, head of the group, budget and number of
steps; see `peers`. A cell is a method, a setting, an epsilon and a seed; each finished one is a
line of the results file and is not run again. Test rows of different seeds are disjoint. Head steps
come first and are, within one call, the same for all methods whose plan gives them the same noise.
Differences are paired by seed; intervals are over the seeds (Student), 95%.

Settings (`SETTINGS`): features are those of a pooler that MiniLM was not trained with, so that a
head alone finds little; texts are cut to 24 tokens; 800 rows a client, 400 test rows.

    last        adapters in the last layer, two tasks of three clients
    last two    in the last two layers, so that a tree can share one and split the other
    conflict    last layer, one task; half of the clients have its labels renamed by a permutation
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from accuracy import interval
from peers import METHODS
from peers.game import Floats, Game, accuracy_of_heads, averaged, trained_heads
from peers.stage import Federation, Stage

from fedtree_dp import PrivacyBudget, epsilon_of
from fedtree_secure import Lora, Topology, Training
from fedtree_secure.testing import Job, NoisePlan, events_of, minilm_folder, plan_noise

DELTA = 1e-5
Epsilon = float | None
Cell = dict[str, Any]
BASE, OURS = "head group", ("tree", "tree, A and B")


@dataclass(frozen=True)
class Setting:
    """What is trained, and on whose rows.

    Attributes:
        federation: Clients and their rows.
        last_layers: That have adapters.
    """

    federation: Federation
    last_layers: int

    def job(self, epsilon: Epsilon, seed: int, changes: dict[str, Any]) -> Job:
        """Return the product's defaults but for what a setting and a method change."""
        train = self.federation.train
        found = Job(
            backbone=str(minilm_folder()),
            privacy=PrivacyBudget(8.0 if epsilon is None else epsilon, DELTA),
            rounds=changes.get("rounds", 10),
            seed=seed,
            lora=Lora(last_layers=self.last_layers, freeze_a=changes.get("freeze_a", True)),
            training=Training(records=train, max_length=24, pooling="native"),
            topology=Topology(source=changes.get("source", "one_group")),
        )
        weight, head = changes.get("mixing_weight"), changes.get("head")
        if weight is not None:
            found = replace(found, topology=replace(found.topology, mixing_weight=weight))
        if head is not None:
            found = replace(found, training=replace(found.training, head=head))
        if epsilon is not None:  # class sums: benchmarks/head_release.py
            found = replace(found, training=replace(found.training, head_release="average"))
        return found

    def digest(self) -> str:
        """Hash what all cells of this setting depend on: cells of another are run again."""
        plain = self.job(None, 0, {}).to_dict() | {"backbone": ""}
        plain["federation"] = asdict(self.federation)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


TWO = Federation(("wordnet-8", "20ng-6"))
SETTINGS = {
    "last": Setting(TWO, 1),
    "last two": Setting(TWO, 2),
    "conflict": Setting(Federation(("wordnet-8", "renamed"), conflicting=True), 1),
}


class Table:
    """One seed of a setting: its stage, and heads that several methods start from."""

    def __init__(self, setting: Setting, seed: int, folder: Path) -> None:
        self.setting, self.seed = setting, seed
        people = setting.federation.clients(seed, folder)
        self.stage = Stage(setting.job(None, seed, {}), people)
        self._heads: dict[float, list[dict[str, Floats]]] = {}

    def cell(self, name: str, epsilon: Epsilon) -> Cell:
        """Play one method."""
        method, began = METHODS[name], time.process_time()
        job = self.setting.job(epsilon, self.seed, method.SETTINGS)
        plan = NoisePlan() if epsilon is None else plan_noise(job, job.privacy)
        if plan.head not in self._heads:  # without privacy, too, all methods start from the same
            self._heads[plan.head] = trained_heads(self.stage, job, plan.head)
        heads = self._heads[plan.head]
        if job.head == "group":
            heads = averaged(self.stage, heads)
        game = Game(self.stage, job, plan, heads)
        method.play(game)
        found = game.accuracy() if job.rounds else accuracy_of_heads(self.stage, heads)
        spent = None if epsilon is None else epsilon_of(events_of(job, plan), DELTA)
        groups = [seen.group for seen in self.stage.seen]
        return {
            "accuracy": [round(value, 5) for value in found],
            "groups": groups,
            "noise": {"head": plan.head, "rounds": plan.rounds},
            "epsilon_spent": spent,
            "cpu_seconds": round(time.process_time() - began, 1),
            **game.notes,
        }


def run(given: argparse.Namespace) -> None:
    """Play every cell that is missing."""
    done = {_name(cell) for cell in read(given.results)}
    for setting, seed in itertools.product(given.settings, given.seeds):
        missing = [
            (epsilon, method)
            for epsilon in given.epsilons
            for method in given.methods
            if (setting, method, epsilon, seed) not in done
        ]
        if not missing:
            continue
        table = Table(SETTINGS[setting], seed, given.data)
        for epsilon, method in missing:
            cell = {"setting": setting, "method": method, "epsilon": epsilon, "seed": seed}
            cell |= {"digest": SETTINGS[setting].digest(), **table.cell(method, epsilon)}
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")
            mean = statistics.mean(cell["accuracy"])
            print(
                f"{setting}, epsilon {epsilon}, seed {seed}: {method} {mean:.4f} "
                f"({cell['cpu_seconds']:.0f} s)",
                flush=True,
            )


def _name(cell: Cell) -> tuple[Any, ...]:
    return cell["setting"], cell["method"], cell["epsilon"], cell["seed"]


def read(path: Path) -> list[Cell]:
    """Return finished cells of today's settings; of one that was run twice, the later."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    digests = {name: setting.digest() for name, setting in SETTINGS.items()}
    cells = (c for c in map(json.loads, lines) if c["digest"] == digests.get(c["setting"]))
    return list({_name(cell): cell for cell in cells}.values())


def tables(cells: list[Cell]) -> Iterator[tuple[str, list[str]]]:
    """Yield each setting with the lines of its Markdown table."""
    for setting in (name for name in SETTINGS if any(c["setting"] == name for c in cells)):
        head = ["epsilon", "method", "seeds", "accuracy", "minus head group"]
        head += [f"{ours} minus it" for ours in ("tree", "tree, A and B,")]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        mine = [cell for cell in cells if cell["setting"] == setting]
        for epsilon in sorted({c["epsilon"] for c in mine}, key=lambda e: -1 if e is None else -e):
            here = [cell for cell in mine if cell["epsilon"] == epsilon]
            by = {name: _by_seed(here, name) for name in METHODS}
            for name, found in by.items():
                if found:
                    lines.append(_row(epsilon, name, by))
        yield setting, lines


def _by_seed(cells: list[Cell], name: str) -> dict[int, float]:
    return {c["seed"]: statistics.mean(c["accuracy"]) for c in cells if c["method"] == name}


def _row(epsilon: Epsilon, name: str, by: dict[str, dict[int, float]]) -> str:
    shown = "no DP" if epsilon is None else f"{epsilon:g}"
    mean = statistics.mean(by[name].values())
    gaps = [
        _gap(by[name], by[BASE], same=name == BASE),
        *(_gap(by[ours], by[name], same=name == ours) for ours in OURS),
    ]
    return f"| {shown} | {name} | {len(by[name])} | {mean:.3f} | {' | '.join(gaps)} |"


def _gap(ours: dict[int, float], theirs: dict[int, float], *, same: bool) -> str:
    """Mean of the paired differences and half of its 95% interval."""
    seeds = sorted(set(ours) & set(theirs))
    if same or not seeds:
        return ""
    mean, half = interval([ours[seed] - theirs[seed] for seed in seeds])
    return f"{mean:+.3f}" + (f" ± {half:.3f}" if len(seeds) > 1 else "")


def write(page: Path, setting: str, lines: list[str]) -> None:
    """Put a setting's table between its marks in a document, if they are there."""
    begin, end = f"<!-- table: python benchmarks/trees.py, {setting} -->", "<!-- end of table -->"
    if not page.exists():
        return
    before, mark, rest = page.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if mark and closed:
        page.write_text("\n".join([before + begin, *lines, end]) + after, "utf-8")


def epsilon_or_none(text: str) -> Epsilon:
    """Read an epsilon; `none` is no privacy."""
    return None if text == "none" else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--epsilons", nargs="+", type=epsilon_or_none, default=[8.0, None, 3.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=Path("build/utility-data"))
    parser.add_argument("--results", type=Path, default=Path("build/trees.jsonl"))
    parser.add_argument("--page", type=Path, default=Path("docs/trees.md"))
    parser.add_argument("--table-only", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    given.results.parent.mkdir(parents=True, exist_ok=True)
    if not given.table_only:
        run(given)
    for setting, lines in tables(read(given.results)):
        print("\n".join([setting, *lines]))
        write(given.page, setting, lines)


if __name__ == "__main__":
    main()
