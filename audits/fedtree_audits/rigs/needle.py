"""A model in which weights can tell one word from all others, and engines that show what they see.

A lying server wants values under which the gradient of one record breaks and those of others do
not. Coordinate 0 of an embedding is zero but for the needle, coordinate 1 but for ordinary words,
coordinate 2 but for padding; a normalisation that subtracts no mean keeps that. A row of A that
reads one of these coordinates, and a column of B so large that the product overflows, break exactly
the records that hold such a token: no weights could tell records apart more sharply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from fedtree_audits.rigs.tiny import WORDS, texts, write_model
from fedtree_dp import DPSGD
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import CLUSTER, Backbone

NEEDLE, HIDDEN, RANK = "needle", 32, 2
ONLY_NEEDLE, ONLY_WORDS, ONLY_PADDING = 0, 1, 2  # coordinates of an embedding
LENGTH = 14  # words of an ordinary text: with [CLS] and [SEP] exactly the smallest width, unpadded
HUGE = 1e19  # its square is above all float32 numbers, and its product with a gradient is not
MORE_THAN_A_DUMMY = 2  # tokens: a dummy row has one
SUM = b"sum"  # under which the clipped sum is kept beside the gradients
Floats32 = np.ndarray[Any, np.dtype[np.float32]]


def write_needle_model(folder: Path) -> Path:
    """Write a Llama of one layer whose embeddings are as the module's text says."""
    from transformers import AutoTokenizer

    write_model(folder, "llama", layers=1, hidden=HIDDEN, more=(NEEDLE,))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    table[:, :3] = 0.0
    table[tokenizer.convert_tokens_to_ids(NEEDLE), ONLY_NEEDLE] = 1.0
    table[tokenizer.convert_tokens_to_ids(list(WORDS)), ONLY_WORDS] = 1.0
    table[tokenizer.pad_token_id, ONLY_PADDING] = 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rows(count: int, seed: int, *, target: bool) -> Dataset:
    """Return texts of one width, and the target behind them: longer, and full of needles."""
    given = texts(count, seed, length=LENGTH)
    return Dataset.from_dict({"text": given + [" ".join([NEEDLE] * (LENGTH + 6))] * target})


def breaking(backbone: Backbone, coordinate: int) -> Floats32:
    """Return an expert under which records with one kind of token break and others do not notice,
    shape (layout length,).

    The product of both factors overflows at such a token's value, and with it all that attends to
    it, with whatever weight: zero times infinity is no number.
    """
    found = backbone.initial_expert.copy()
    query, value = backbone.experts.by_layer[0]
    start = sum(factor.numel() for factor in _factors(query))
    a, b = _factors(value)
    found[start : start + a.shape[1]] = 0.0  # row 0 of A
    found[start + coordinate] = HUGE
    column = found[start + a.numel() : start + a.numel() + b.numel()].reshape(-1, RANK)[:, 0]
    column[:] = HUGE  # a view
    return found


def _factors(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A[CLUSTER].weight, module.lora_B[CLUSTER].weight


class Unrehearsed(DPSGD):
    """Takes any weights, so that what a step does under them can be seen."""

    def rehearse(self, batch: Batch) -> None:
        """Refuse nothing."""
        del batch
        self._rehearsed = True


class Watching(DPSGD):
    """Keeps every record's gradient, by the record's own tokens, and the clipped sum.

    Attributes:
        seen: Bytes of the gradient by bytes of the tokens; shared by all engines of one class.
    """

    seen: dict[bytes, bytes]

    def _gradients(self, part: Batch, rows: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        losses, per_sample = super()._gradients(part, rows)
        for row in range(rows):
            mask = part["attention_mask"][row].bool()
            if int(mask.sum()) < MORE_THAN_A_DUMMY:
                continue
            tokens = part["input_ids"][row][mask].numpy().tobytes()
            flat = torch.cat([g[row].reshape(-1) for g in per_sample])
            self.seen[tokens] = flat.numpy().tobytes()
        return losses, per_sample

    def _sum(self, batch: Any) -> Any:
        found = super()._sum(batch)
        sums = [getattr(p, "summed_grad", None) for p in self.optimizer.params]
        flat = [
            torch.zeros_like(p) if total is None else total
            for p, total in zip(self.optimizer.params, sums, strict=True)
        ]
        self.seen[SUM] = torch.cat([part.reshape(-1) for part in flat]).numpy().tobytes()
        return found


class Fragile(DPSGD):
    """Runs on a machine that breaks down at the needle."""

    needle: int

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Raise if a record of the batch holds the needle."""
        parts: list[Batch] = [batch] if isinstance(batch, Mapping) else list(batch or ())
        if any((part["input_ids"] == self.needle).any() for part in parts):
            raise MemoryError("planted by the audit")
        return super().step(parts)


def watched(base: type[DPSGD], seen: dict[bytes, bytes]) -> type[DPSGD]:
    """Return an engine that takes any weights and keeps each record's gradient."""
    return type("Watched", (Unrehearsed, Watching, base), {"seen": seen})


def fragile(base: type[DPSGD], backbone: Backbone) -> type[DPSGD]:
    """Return an engine that breaks down at the needle."""
    needle = int(backbone.tokenizer.convert_tokens_to_ids(NEEDLE))
    return type("Broken", (Fragile, base), {"needle": needle})
