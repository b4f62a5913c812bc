"""The picture of the study of cuts: errors over epsilon, and how many groups each layer gets."""

import numpy as np

LINES = {
    "tree": ("tree", "#1f6f4a", "-"),
    "known": ("tree, distances known", "#1f6f4a", ":"),
    "one_group": ("one group", "#b4472e", "-"),
    "flat": ("flat clusters", "#2e5f9e", "--"),
    "by_group": ("by true group", "#2e5f9e", ":"),
    "alone": ("alone", "#777777", "-"),
}


def paint(cells, names, path):
    """Draw one column for each name; the cells of a column differ in epsilon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(names), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(names), sharey="row", squeeze=False)
    for column, name in zip(axes.T, names, strict=True):
        held = sorted((c for c in cells if c["name"] == name), key=lambda c: c["scene"].epsilon)
        _errors(column[0], held)
        _groups(column[1], held)
        column[0].set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("error over the signal's energy")
    axes[1, 0].set_ylabel("clusters of the tree, mean")
    axes[0, 0].legend(fontsize=7)
    axes[1, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _errors(axis, cells):
    epsilons = [cell["scene"].epsilon for cell in cells]
    for method, (label, colour, style) in LINES.items():
        means = [cell["errors"][method].mean() for cell in cells]
        axis.plot(epsilons, means, style, color=colour, label=label, marker=".", markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="epsilon")
    axis.set_xticks(epsilons, [f"{value:g}" for value in epsilons])
    axis.minorticks_off()


def _groups(axis, cells):
    layers = np.arange(len(cells[0]["groups"]))
    for index, cell in enumerate(cells):
        shade = 0.75 * (1 - index / max(len(cells) - 1, 1))
        label = f"epsilon {cell['scene'].epsilon:g}"
        axis.step(layers, cell["groups"], where="mid", color=str(shade), label=label)
    axis.set(xlabel="layer")
