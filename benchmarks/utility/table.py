"""Finished cells as a Markdown table between two markers of a document."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: python benchmarks/utility -->", "<!-- end of table -->"
Cell = dict[str, Any]


def spread(values: Sequence[float]) -> str:
    """Mean and range over the seeds, three decimals: `.803 (.798 to .809)`."""
    short = [f"{value:.3f}".lstrip("0") for value in (statistics.mean(values), min(values), max(values))]
    return short[0] if len(values) == 1 else f"{short[0]} ({short[1]} to {short[2]})"


def markdown(cells: Sequence[Cell]) -> str:
    """One row for each task and epsilon, in the order in which tasks were first met, large epsilons last."""
    lines = [
        "| Task | epsilon | ours | head alone | ours minus head | probe, no DP | seeds | test rows | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = [cell for cell in cells if cell["task"] == task]
        for epsilon in sorted({c["epsilon"] for c in of_task}, key=lambda e: float("inf") if e is None else e):
            rows = [cell for cell in of_task if cell["epsilon"] == epsilon]
            gain = [row["ours"] - row["head"] for row in rows]
            lines.append(
                f"| {task} | {'no DP' if epsilon is None else f'{epsilon:g}'} "
                f"| {spread([row['ours'] for row in rows])} | {spread([row['head'] for row in rows])} "
                f"| {statistics.mean(gain):+.3f} ({min(gain):+.3f} to {max(gain):+.3f}) "
                f"| {spread([row['probe'] for row in rows])} | {len(rows)} | {rows[0]['test']:,} "
                f"| {statistics.mean(row['seconds'] for row in rows):.0f} |"
            )
    return "\n".join(lines)


def write_table(path: Path, cells: Sequence[Cell]) -> str:
    """Put the table between the document's markers and return it; a missing document or marker is left alone."""
    found = markdown(cells)
    if cells and path.exists():
        before, begin, rest = path.read_text("utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            path.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", "utf-8")
    return found
