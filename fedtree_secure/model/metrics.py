"""How good a model is on test rows. Exact numbers of private rows: they stay with their owner.

Accuracy comes with the interval of Wilson (1927), which holds at few rows and at 0 and 1 as well.
Macro F1 is the mean over the labels that occur among rows or answers: a model that never says a
rare label loses there what accuracy hides.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WILSON_95 = 1.959964  # two-sided 95% of the normal distribution
MOST_COUNTED = 50  # labels; the table of counts of more is left out


def confusion(given: Sequence[int], answered: Sequence[int], labels: int) -> Any:
    """Return counts (labels, labels): row the true label, column the answer."""
    found = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(found, (np.asarray(given, dtype=np.int64), np.asarray(answered, dtype=np.int64)), 1)
    return found


def macro_f1(counts: Any) -> float:
    """Return the mean F1 over the labels that occur, from a table of `confusion`."""
    right = np.diag(counts).astype(float)
    occur = counts.sum(axis=0) + counts.sum(axis=1)
    return float((2 * right[occur > 0] / occur[occur > 0]).mean())


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Return the 95% interval of a share: ``right`` of ``rows``."""
    share, z = right / rows, WILSON_95
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def of_classifier(given: Sequence[int], answered: Sequence[int], labels: int) -> dict[str, Any]:
    """Return accuracy with its interval, macro F1, and the counts behind them.

    Args:
        given, answered: Positions in the label set, one for each row; at least one row.
        labels: How many labels there are.
    """
    counts = confusion(given, answered, labels)
    right, rows = int(np.trace(counts)), len(given)
    found = {
        "name": "accuracy",
        "value": right / rows,
        "interval": list(wilson(right, rows)),
        "rows": rows,
        "macro_f1": macro_f1(counts),
    }
    return found | ({"confusion": counts.tolist()} if labels <= MOST_COUNTED else {})


def of_language_model(nll: float, tokens: int) -> dict[str, Any]:
    """Return perplexity: e to the mean negative log likelihood of a next token.

    Args:
        nll: Sum over all next tokens, in nats.
        tokens: How many there are.
    """
    mean = min(nll / max(tokens, 1), 700.0)
    return {"name": "perplexity", "value": math.exp(mean), "tokens": tokens}
