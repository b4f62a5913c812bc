"""Epsilon against rounds, batch and noise as a picture: one panel each, the other two numbers as
planned.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from fedtree_dp.account.planner import Axis, PlanRow
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.report.priced_plan import PricedPlan

FACTORS = tuple(2.0 ** (step / 2) for step in range(-4, 5))
COLOURS = ("#3b6ea5", "#c8553d", "#588157", "#8e6c8a", "#d4a373")
AXES: dict[Axis, tuple[str, Callable[[PlanRow], float]]] = {
    "rounds": ("rounds", lambda row: float(row.plan.rounds)),
    "batch": ("expected batch (records)", lambda row: float(row.plan.batch)),
    "noise": ("noise multiplier of the rounds", lambda row: float(row.noise_multiplier)),
}


def draw_plans(plans: Sequence[PricedPlan], path: Path) -> None:
    """Write a PNG: a line for each plan, a dot where the plan itself is, a dashed line where its
    budget ends.

    Raises:
        ConfigurationError: ``path`` does not end in .png, or its folder does not exist.
    """
    if path.suffix.lower() != ".png" or not path.resolve().parent.is_dir():
        raise ConfigurationError(
            f"the plot is written as a PNG into a folder that exists; {path} is neither"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.0), dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    for index, plan in enumerate(plans):
        colour, curves = COLOURS[index % len(COLOURS)], plan.curves(FACTORS)
        for (name, (label, value)), panel in zip(AXES.items(), panels, strict=True):
            rows = sorted((row for row in curves[name] if 0 < row.epsilon < math.inf), key=value)
            panel.plot(
                [value(row) for row in rows],
                [row.epsilon for row in rows],
                color=colour,
                label=plan.title,
            )
            panel.scatter([value(plan.row)], [plan.row.epsilon], color=colour, zorder=3)
            if plan.allowed is not None:
                panel.axhline(plan.allowed, color=colour, linestyle="--", linewidth=0.8)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xlabel(label)
            panel.grid(visible=True, which="both", alpha=0.2)
    panels[0].set_ylabel(f"epsilon at delta {plans[0].row.delta:g}")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
