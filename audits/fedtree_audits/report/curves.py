"""Pictures of attacks: lines (a ROC) and values with intervals, from what a result's figures hold
under ``curves``.

Each entry is one panel::

    {"title": ..., "x": ..., "y": ..., "log": True, "lines": {name: [[x, ...], [y, ...]]}}
    {"title": ..., "x": ..., "line": 0.5, "intervals": {name: [value, low, high]}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtree_audits.statistics.verdict import Result

_COLOURS = ("#33658a", "#c8553d", "#588157", "#d4a373", "#6d597a", "#8a8a8a")
_SMALLEST = 5e-4  # left end of a logarithmic axis of rates


def draw(result: Result, path: Path) -> None:
    """Draw all panels beside each other and save them as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: Sequence[Mapping[str, Any]] = result.figures["curves"]
    figure = Figure(figsize=(4.6 * len(panels), 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{result.audit}: {result.verdict.value}", x=0.01, ha="left")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        (_lines if "lines" in panel else _intervals)(axes, panel)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.set_xlabel(panel["x"], fontsize=8)
        axes.tick_params(labelsize=8)
    figure.savefig(path)


def _lines(axes: Any, panel: Mapping[str, Any]) -> None:
    for colour, (name, (x, y)) in zip(_COLOURS, panel["lines"].items(), strict=False):
        axes.plot(x, y, color=colour, linewidth=1.4, label=name, drawstyle="steps-post")
    chance = [_SMALLEST, 1.0]
    axes.plot(chance, chance, color="#444444", linewidth=0.8, linestyle="--", label="chance")
    if panel.get("log"):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(_SMALLEST, 1)
        axes.set_ylim(_SMALLEST, 1)
    axes.set_ylabel(panel["y"], fontsize=8)
    axes.legend(fontsize=7, loc="lower right")


def _intervals(axes: Any, panel: Mapping[str, Any]) -> None:
    found = panel["intervals"]
    for place, (value, low, high) in enumerate(found.values()):
        axes.errorbar(
            value,
            place,
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o",
            color=_COLOURS[0],
            capsize=3,
            markersize=4,
        )
    axes.axvline(panel["line"], color="#444444", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.invert_yaxis()
