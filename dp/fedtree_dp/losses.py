"""Losses with one value for each record, which clipping needs.

`output.loss` of Hugging Face models is a mean over the tokens of the whole batch: removing one record rescales all
others (moved a clipped sum by 8.56 clipping norms where 1 was promised). Here a sequence is divided by its own tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def per_sequence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each sequence, averaged over its own labelled positions.

    Args:
        logits: (records, classes) with labels (records,), or (records, positions, classes) with labels
            (records, positions). For a causal language model pass `logits[:, :-1]` and `labels[:, 1:]`.
        labels: class numbers; -100 is left out. A record without labels has loss 0.

    Returns:
        Shape (records,), float32 or wider.
    """
    wide = logits if logits.dtype.itemsize >= 4 else logits.float()
    if labels.ndim == 1:
        return F.cross_entropy(wide, labels, reduction="none", ignore_index=IGNORED)
    each = F.cross_entropy(wide.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return each.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)
