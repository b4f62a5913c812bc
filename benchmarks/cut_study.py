"""Error of the tree cut by bias and variance beside one group, flat clusters and training alone.

    python benchmarks/cut_study.py               # the whole study, some minutes on one core
    python benchmarks/cut_study.py --quick       # fewer cells and seeds, half a minute
    python benchmarks/cut_study.py --docs docs   # writes docs/cut-study.md and its picture as well

Federations are simulated (`parts/cut_scenes.py`), so that true gradients and groups are known.
Error is what `agreed/cuts.py` estimates, computed from the truth: squared distance of each client's
gradient from its cluster's mean, plus the noise of that mean, over the energy of all gradients. The
rule was chosen on other seeds than those used here. The last line is one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from parts.cut_peers import METHODS, MIN_GROUP, tree
from parts.cut_picture import paint
from parts.cut_scenes import Scene, draw
from scipy.stats import t as student

from fedtree_secure.agreed.cut_plans import Rule
from fedtree_secure.agreed.cuts import noise_aware_cuts

BEGIN, END = "<!-- {}: python benchmarks/cut_study.py --docs docs -->", "<!-- end -->"
# What the tree must never lose to, and other ways to choose a cut.
BARS, PEERS = ("one_group", "flat", "alone"), ("by_group", "silhouette", "greedy", "heights")
NONE = 6  # a depth below the last layer: no groups
SHAPES = {
    "no groups": {"depth": NONE, "own": 0.0},
    "all differ, no groups": {"depth": NONE, "own": 0.1},
    "groups in every layer": {"depth": 0},
    "groups from layer 2": {"depth": 2},
    "groups from layer 4": {"depth": 4},
    "families from 2, groups from 4": {
        "depth": 4,
        "families": 2,
        "between": 0.25,
        "groups": 4,
        "clients": 16,
    },
}
CAUTIONS = (0.0, 0.5, 1.0, 1.5, 2.0)
EPSILONS, ROWS = (1.0, 3.0, 8.0, 16.0), (300, 800, 2000)


def cells(quick):
    """Name and scene of each cell."""
    found = []
    for name, shape in SHAPES.items():
        for rows in (800,) if quick else ROWS:
            found += [(name, Scene(epsilon, rows, **shape)) for epsilon in EPSILONS]
    if not quick:
        usual = ((1.0, 2000), (3.0, 800), (8.0, 300), (8.0, 800), (16.0, 2000))
        for epsilon, rows in usual:
            scene = Scene(epsilon, rows)
            found.append(("30 clients, groups from layer 2", scene.replace(clients=30)))
            found.append(("100 clients, groups from layer 2", scene.replace(clients=100)))
            found.append(
                ("rows unequal, groups from layer 2", scene.replace(clients=12, unequal=True))
            )
            found.append(("60 rounds, groups from layer 2", scene.replace(rounds=60)))
    return sorted(found, key=lambda cell: list(dict.fromkeys(n for n, _ in found)).index(cell[0]))


def measure(name, scene, seeds):
    """Run all methods on the same federations: errors by method, and what the tree found."""
    errors = {method: [] for method in METHODS}
    numbers = []
    found = dict.fromkeys(("tree", "known"), 0)
    for seed in range(seeds):
        seen = draw(scene, seed)
        for method, cut in METHODS.items():
            labels = cut(seen)
            errors[method].append(seen.error(labels))
            if method in found:
                found[method] += all(map(_same, labels, seen.planted))
            if method == "tree":
                numbers.append([len(set(row)) for row in labels])
    return {
        "name": name,
        "scene": scene,
        "errors": {method: np.array(values) for method, values in errors.items()},
        "found": {method: count / seeds for method, count in found.items()},
        "groups": np.mean(numbers, axis=0),
    }


def _same(row, want):
    """Whether two rows of labels are one partition."""
    pairs = set(zip(row, want, strict=True))
    return len(pairs) == len(set(row)) == len(set(want))


def difference(cell, peer):
    """Mean of the tree's error minus a peer's on the same federations, and half of its interval."""
    values = cell["errors"]["tree"] - cell["errors"][peer]
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), half


def loses(cell, peer):
    """Whether the tree's error is above a peer's by more than the interval."""
    mean, half = difference(cell, peer)
    return bool(mean > half + 1e-12)


def stays_one(seeds, quick):
    """Of federations without groups, how many are left in one cluster."""
    found = []
    for clients in (9,) if quick else (9, 30, 100):
        for rounds in (10,) if quick else (10, 400):
            scene = Scene(8.0, 800, clients=clients, rounds=rounds, **SHAPES["no groups"])
            # Seeds beyond those of the other cells.
            kept = sum(max(map(max, tree(draw(scene, 5000 + seed)))) == 0 for seed in range(seeds))
            found.append({"clients": clients, "rounds": rounds, "kept": int(kept), "of": seeds})
    return found


def rules(seeds):
    """What other rules lose to known distances, on seeds that no other table uses."""
    found = []
    for rounds in (10, 60):
        scenes = [
            Scene(epsilon, rows, rounds=rounds, **shape)
            for shape in SHAPES.values()
            for epsilon, rows in ((16.0, 300), (3.0, 800), (8.0, 800), (1.0, 2000), (16.0, 2000))
        ]
        for false_splits in (Rule().false_splits, 1.0):
            losses = [[] for _ in CAUTIONS]
            for scene in scenes:
                for seed in range(20_000, 20_000 + seeds):
                    seen = draw(scene, seed)
                    least = seen.error(METHODS["known"](seen))
                    for caution, held in zip(CAUTIONS, losses, strict=True):
                        rule = Rule(caution, false_splits)
                        cuts = noise_aware_cuts(seen.merges, seen.evidence, MIN_GROUP, rule=rule)
                        held.append(seen.error(cuts.labels) / least - 1)
            asked = "yes" if false_splits < 1 else "no"
            found.append((rounds, asked, *(f"{np.mean(held):.1%}" for held in losses)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer cells and seeds")
    parser.add_argument("--seeds", type=int, help="federations a cell; 20, with --quick 10")
    parser.add_argument("--docs", type=Path, help="folder of cut-study.md")
    chosen = parser.parse_args()
    seeds = chosen.seeds or (10 if chosen.quick else 20)
    if seeds < 2 or (chosen.docs and (chosen.quick or seeds < 20)):
        parser.error("--docs needs the whole study with at least 20 seeds, anything else 2")
    begin, results = time.perf_counter(), []
    print(line(HEADER))
    for name, scene in cells(chosen.quick):
        results.append(measure(name, scene, seeds))
        print(line(row(results[-1])), flush=True)
    kept = stays_one(100, chosen.quick)
    tried = [] if chosen.quick else rules(5)
    tables = {
        "summary": summary(results),
        "one cluster": markdown(
            ("clients", "rounds", "one cluster", "of"), [c.values() for c in kept]
        ),
        "rules": markdown(
            ("rounds", "chance asked", *(f"caution {value:g}" for value in CAUTIONS)), tried
        ),
        "cells": markdown(HEADER, map(row, results)),
    }
    for name in ("summary", "one cluster", "rules"):
        print("\n" + tables[name])
    if chosen.docs:
        write(chosen.docs / "cut-study.md", tables)
        shown = [cell for cell in results if cell["scene"].rows == 800]
        paint(shown, list(SHAPES)[2:], chosen.docs / "cut-study.png")
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - begin, 1),
                "cells": len(results),
                "seeds": seeds,
                "lost": {p: sum(bool(loses(c, p)) for c in results) for p in BARS + PEERS},
                "kept": kept,
            }
        )
    )


HEADER = (
    *(
        "federation",
        "clients",
        "epsilon",
        "rows",
        "noise",
        "clusters by layer",
        "as planted",
        "would pay",
    ),
    *("tree", "known", "one group", "flat", "alone"),
    *("by group", "silhouette", "greedy", "heights", "tree loses to"),
)


def row(cell):
    """One line of the large table."""
    scene, errors = cell["scene"], cell["errors"]
    noise = errors["alone"].mean()
    return (
        *(cell["name"], scene.clients, f"{scene.epsilon:g}", f"{scene.rows:,}", short(noise)),
        " ".join(f"{value:.1f}".removesuffix(".0") for value in cell["groups"]),
        *(f"{cell['found'][method]:.0%}" for method in ("tree", "known")),
        *(short(errors[m].mean()) for m in ("tree", "known")),
        *(_beside(cell, peer) for peer in BARS + PEERS),
        ", ".join(p.replace("_", " ") for p in BARS + PEERS if loses(cell, p)),
    )


def _beside(cell, peer):
    """A peer's error minus the tree's, with the half interval: above zero, the tree is better."""
    mean, half = difference(cell, peer)
    return f"{-mean:+.3f} ± {half:.3f}" if abs(mean) + half > 1e-12 else "same"


def short(value):
    """Three figures."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def line(values):
    """One line for the screen."""
    return "  ".join(f"{value!s:>9}" for value in values)


def summary(results):
    """How often the tree wins and loses against each way, and by how much."""
    rows = []
    for peer in BARS + PEERS:
        found = [difference(cell, peer) for cell in results]
        ratio = np.mean([c["errors"][peer].mean() / c["errors"]["tree"].mean() for c in results])
        worst = max(results, key=lambda c: difference(c, peer)[0] / c["errors"]["tree"].mean())
        most = difference(worst, peer)[0] / worst["errors"][peer].mean()
        rows.append(
            (
                peer.replace("_", " "),
                sum(mean < -half - 1e-12 for mean, half in found),
                sum(loses(cell, peer) for cell in results),
                len(results),
                f"{ratio:.2f}",
                f"{max(most, 0):.1%}",
            )
        )
    return markdown(
        (
            "against",
            "tree better",
            "tree worse",
            "cells",
            "their error over the tree's, mean",
            "worst",
        ),
        rows,
    )


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, values)) + " |" for values in lines)


def write(path, tables):
    """Replace each table of the document between its markers."""
    text = path.read_text("utf-8")
    for name, table in tables.items():
        start = BEGIN.format(name)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(END)
        text = before + start + "\n" + table + "\n" + END + after
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
