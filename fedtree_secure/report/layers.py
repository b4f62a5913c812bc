"""Who shares which layer, as summaries and reports say it."""

from collections.abc import Sequence
from typing import Any

from fedtree_secure.agreed.tree import Tree


def layers_of(
    tree: Tree, names: Sequence[int], whys: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return an entry for each layer, shallow to deep.

    Args:
        tree: Of the run.
        names: Numbers of the adapted layers in the model.
        whys: For each layer why it is cut as it is, where that is known.
    """
    return [
        {
            "layer": name,
            "clusters": [list(group) for group in tree.clusters(at)],
            "released": [list(group) for group in tree.released(at)],
            **({} if whys is None else {"why": whys[at]}),
        }
        for at, name in enumerate(names)
    ]
