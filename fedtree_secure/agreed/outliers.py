"""Whose uploads reach so far that the grid of a run would be useless for all others."""

import statistics
from collections.abc import Mapping

CLIP_OUTLIER = 16.0  # a client whose bound is so many times the median takes no part


def outliers(bounds: Mapping[str, float]) -> frozenset[str]:
    """Return the clients whose bound on an uploaded value (`largest_change`) is that far out.

    Args:
        bounds: Of each client; may be empty.
    """
    if not bounds:
        return frozenset()
    most = CLIP_OUTLIER * statistics.median(bounds.values())
    return frozenset(name for name, bound in bounds.items() if bound > most)
