"""Finished cells as Markdown tables between markers of a document."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: python benchmarks/utility -->", "<!-- end of table -->"
BEGIN_VARIANTS = "<!-- table: python benchmarks/utility --variants -->"
BEGIN_FEDERATED = "<!-- table: python benchmarks/utility/federated.py -->"
COLUMNS = ("tree", "alone", "head", "one group")
Cell = dict[str, Any]


def spread(values: Sequence[float]) -> str:
    """Mean and range over the seeds, three decimals: `.803 (.798 to .809)`."""
    short = [
        f"{value:.3f}".lstrip("0") for value in (statistics.mean(values), min(values), max(values))
    ]
    return short[0] if len(values) == 1 else f"{short[0]} ({short[1]} to {short[2]})"


def markdown(cells: Sequence[Cell]) -> str:
    """One row for each task and epsilon, tasks as first met, large epsilons last; then the
    means.
    """
    lines = [
        (
            "| Task | epsilon | ours | head alone | ours minus head | probe, no DP | seeds | test "
            "rows "
            "| seconds |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    tasks = tuple(dict.fromkeys(cell["task"] for cell in cells))
    for task in tasks:
        lines += _rows(task, [cell for cell in cells if cell["task"] == task])
    return "\n".join(lines + _rows("mean of the tasks", _means(cells, len(tasks))))


def _rows(task: str, cells: Sequence[Cell]) -> list[str]:
    lines = []
    for epsilon in sorted(
        {c["epsilon"] for c in cells}, key=lambda e: float("inf") if e is None else e
    ):
        rows = [cell for cell in cells if cell["epsilon"] == epsilon]
        lines.append(
            f"| {task} | {'no DP' if epsilon is None else f'{epsilon:g}'} "
            f"| {spread([row['ours'] for row in rows])} | {spread([row['head'] for row in rows])} "
            f"| {_gain([row['ours'] for row in rows], [row['head'] for row in rows])} "
            f"| {spread([row['probe'] for row in rows])} | {len(rows)} | {rows[0]['test']:,} "
            f"| {statistics.mean(row['seconds'] for row in rows):.0f} |"
        )
    return lines


def _means(cells: Sequence[Cell], tasks: int) -> list[Cell]:
    """The mean over all tasks, for each seed and epsilon that every task has."""
    out = []
    for seed, epsilon in dict.fromkeys((cell["seed"], cell["epsilon"]) for cell in cells):
        rows = [cell for cell in cells if (cell["seed"], cell["epsilon"]) == (seed, epsilon)]
        if len(rows) == tasks > 1:
            mean = {
                key: statistics.mean(row[key] for row in rows)
                for key in ("ours", "head", "probe", "seconds")
            }
            out.append({**mean, "epsilon": epsilon, "test": sum(row["test"] for row in rows)})
    return out


def write_table(path: Path, cells: Sequence[Cell]) -> str:
    """Put the table between the document's markers and return it; a missing document or marker is
    left alone.
    """
    return _write(path, BEGIN, markdown(cells)) if cells else ""


def write_variants(path: Path, cells: Mapping[str, Sequence[Cell]]) -> str:
    """Put the comparison of the variants between its markers: accuracy of ours, mean and range over
    the seeds.
    """
    columns = sorted(
        {(cell["task"], -cell["epsilon"]) for found in cells.values() for cell in found},
        reverse=True,
    )
    lines = [
        "| What trains | "
        + " | ".join(f"{task}, epsilon {-negative:g}" for task, negative in columns)
        + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for name, found in cells.items():
        values = [
            [c["ours"] for c in found if (c["task"], -c["epsilon"]) == column] for column in columns
        ]
        lines.append(f"| {name} | " + " | ".join(spread(v) if v else "" for v in values) + " |")
    return _write(path, BEGIN_VARIANTS, "\n".join(lines))


def write_federated(path: Path, cells: Sequence[Cell]) -> str:
    """Put the table of federations between its markers: means and ranges over the seeds, by task
    and over all.
    """
    lines = [
        (
            f"| Clients a task | epsilon | task | {' | '.join(COLUMNS)} | tree minus alone | tree "
            "minus head | seeds |"
        ),
        "|" + "---|" * (6 + len(COLUMNS)),
    ]
    for each, epsilon in sorted({(cell["each"], cell["epsilon"]) for cell in cells}):
        mine = [cell for cell in cells if (cell["each"], cell["epsilon"]) == (each, epsilon)]
        for task in (*mine[0]["accuracy"], "mean"):
            values = {column: _by_seed(mine, column, task) for column in COLUMNS}
            shown = [spread(list(found.values())) if found else "" for found in values.values()]
            seeds = sorted(set(values["tree"]) & set(values["alone"]) & set(values["head"]))
            gains = [
                _gain([values["tree"][s] for s in seeds], [values[column][s] for s in seeds])
                if seeds
                else ""
                for column in ("alone", "head")
            ]
            lines.append(
                f"| {each} | {epsilon:g} | {task} | {' | '.join([*shown, *gains])} | {len(seeds)} |"
            )
    return _write(path, BEGIN_FEDERATED, "\n".join(lines)) if cells else ""


def _by_seed(cells: Sequence[Cell], column: str, task: str) -> dict[int, float]:
    return {
        cell["seed"]: statistics.mean(cell["accuracy"].values())
        if task == "mean"
        else cell["accuracy"][task]
        for cell in cells
        if cell["column"] == column
    }


def _gain(ours: Sequence[float], theirs: Sequence[float]) -> str:
    gain = [a - b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.mean(gain):+.3f} ({min(gain):+.3f} to {max(gain):+.3f})"


def _write(path: Path, marker: str, found: str) -> str:
    if path.exists():
        before, begin, rest = path.read_text("utf-8").partition(marker)
        _, end, after = rest.partition(END)
        if begin and end:
            path.write_text(f"{before}{begin}\n{found}\n{END}{after}", "utf-8")
    return found
