"""Losses with one value for each record, which clipping needs.

`output.loss` of Hugging Face models is a mean over the tokens of the whole batch: removing one
record rescales all others (moved a clipped sum by 8.56 clipping norms where 1 was promised). Here a
sequence is divided by its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedtree_dp.errors import ConfigurationError

IGNORED = -100
# Logits worked on at a time: on a CPU so many that they stay in its cache, elsewhere so many that
# few kernels start.
BLOCK = {"cpu": 1 << 20}
LARGE_BLOCK = 1 << 26


def per_sequence_loss(logits: Tensor, labels: Tensor, *, causal: bool = False) -> Tensor:
    """Cross entropy of each sequence, averaged over its own labelled positions.

    Args:
        logits: (records, classes) with labels (records,), or (records, positions, classes) with
            labels (records, positions).
        labels: class numbers; -100 is left out. A record without labels has loss 0.
        causal: the logits of a position predict the label of the next one, as a causal language
            model's do. Pass logits and labels whole: `logits[:, :-1]` and `labels[:, 1:]` say the
            same and cost two copies of the logits.

    Returns:
        Shape (records,), float32 or wider. With a vocabulary of tens of thousands the logits are
        the largest tensor of a step; they are read once, and what is kept for the backward pass is
        their gradient, in their own type.

    Raises:
        ConfigurationError: the shapes do not fit together.
    """
    if (
        logits.ndim != labels.ndim + 1
        or logits.shape[:-1] != labels.shape
        or labels.ndim not in (1, 2)
    ):
        raise ConfigurationError(
            f"per_sequence_loss: logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; "
            "give (records, "
            "classes) and (records,), or (records, positions, classes) and (records, positions)"
        )
    if labels.ndim == 1:
        if causal:
            raise ConfigurationError(
                "per_sequence_loss: causal needs labels of shape (records, positions)"
            )
        wide = logits if logits.dtype.itemsize >= 4 else logits.float()
        return F.cross_entropy(wide, labels, reduction="none", ignore_index=IGNORED)
    if causal:
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return _SequenceLoss.apply(logits, labels)  # type: ignore[no-untyped-call,no-any-return]


class _SequenceLoss(torch.autograd.Function):
    """Softmax cross entropy whose gradient is made with it, block by block: softmax minus the
    label, over the count.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        counted = labels != IGNORED
        share = counted.to(kind) / counted.sum(dim=1, keepdim=True).clamp(min=1)
        targets = labels.clamp(min=0)[:, :, None]
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        losses = logits.new_zeros(len(logits), dtype=kind)
        for record, start, stop in _blocks(logits):
            where = record, slice(start, stop)
            target, part = targets[where], share[where][:, None]
            room = None if gradient is None or gradient.dtype != kind else gradient[where]
            logs = torch.log_softmax(logits[where], 1, dtype=kind, out=room)
            ignored = ~counted[where][:, None]  # what is ignored may be nan
            losses[record] -= (logs.gather(1, target) * part).masked_fill_(ignored, 0.0).sum()
            if gradient is not None:
                soft = logs.exp_().mul_(part).scatter_add_(1, target, -part)
                soft.masked_fill_(ignored, 0.0)
                if room is None:
                    gradient[where] = soft
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        if not bool((g == 1).all()):  # the sum over records, which a private step takes, has ones
            gradient = gradient * g[:, None, None].to(gradient.dtype)
        return gradient, None


def _blocks(logits: Tensor) -> Iterator[tuple[int, int, int]]:
    records, positions, classes = logits.shape
    rows = max(1, BLOCK.get(logits.device.type, LARGE_BLOCK) // classes)
    for record in range(records):
        for start in range(0, positions, rows):
            yield record, start, min(start + rows, positions)
