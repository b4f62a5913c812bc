"""The tree over the layers as a picture: trunk at the bottom, clients as leaves on top."""

from collections.abc import Sequence
from pathlib import Path

from fedtree_secure.agreed.tree import Tree

PALETTE = ("#3b6ea5", "#c8553d", "#588157", "#8e6c8a", "#d4a373", "#4f7cac", "#9c6644", "#6b705c")
LOCAL = "#9a9a9a"


_REASONS = 4.6  # inches beside the tree


def draw_tree(tree: Tree, layers: Sequence[str], path: Path, whys: Sequence[str] = ()) -> None:
    """Write a PNG. Filled circles are groups whose sum is opened, with their size; grey dots stay
    at home.

    Args:
        tree: Who shares what.
        layers: Names, shallow to deep.
        path: Of the picture.
        whys: For each layer a sentence that says why it is cut as it is; none where cuts were not
            weighed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = _leaf_order(tree, len(layers))
    place = {name: i for i, name in enumerate(order)}
    width = max(6.0, 0.75 * len(order) + 2.5)
    beside = _REASONS if any(whys) else 0.0
    figure = Figure(figsize=(width + beside, max(4.0, 0.55 * len(layers) + 2.0)), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colour = _colours(tree, len(layers), order)
    for part in range(len(layers)):
        for group in tree.clusters(part):
            x = sum(place[name] for name in group) / len(group)
            shared = len(group) >= tree.min_group
            tint = colour[group] if shared else LOCAL
            for name in group:
                above = (
                    place[name] if part == len(layers) - 1 else _centre(tree, part + 1, name, place)
                )
                axes.plot(
                    [x, above], [part, part + 1], color=tint, linewidth=1.6, alpha=0.55, zorder=1
                )
            size = 260 if shared else 50
            axes.scatter([x], [part], s=size, color=tint, zorder=2, edgecolors="white")
            if shared:
                axes.text(
                    x,
                    part,
                    str(len(group)),
                    ha="center",
                    va="center",
                    color="white",
                    fontsize=8,
                    zorder=3,
                )
    axes.set_yticks(range(len(layers)), list(layers), fontsize=8)
    axes.set_ylim(-0.6, len(layers) + 0.2)
    axes.set_xlim(-0.7, len(order) - 0.3)
    axes.set_xticks(range(len(order)), order, rotation=40, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_title(
        "Who shares which layer (number: clients in an opened sum; grey: kept at home)",
        fontsize=9,
        y=-0.08,
    )
    for part, why in enumerate(whys):
        # the layer and who shares it stand beside it already
        said = why.partition(": ")[2] or why
        text = axes.text(len(order) - 0.1, part, said, va="center", fontsize=8)
        text.set_in_layout(False)  # the room beside the tree is kept free below
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    figure.tight_layout(rect=(0, 0, width / (width + beside), 1))
    figure.savefig(path)


def _leaf_order(tree: Tree, layers: int) -> list[str]:
    rows = tree.labels[:layers]
    return sorted(
        tree.members, key=lambda name: (*(row[tree.members.index(name)] for row in rows), name)
    )


def _centre(tree: Tree, part: int, name: str, place: dict[str, int]) -> float:
    group = next(g for g in tree.clusters(part) if name in g)
    return sum(place[member] for member in group) / len(group)


def _colours(tree: Tree, layers: int, order: Sequence[str]) -> dict[tuple[str, ...], str]:
    groups = {
        group
        for part in range(layers)
        for group in tree.clusters(part)
        if len(group) >= tree.min_group
    }
    ranked = sorted(groups, key=lambda g: (-len(g), order.index(g[0])))
    return {group: PALETTE[i % len(PALETTE)] for i, group in enumerate(ranked)}
