"""Tokenised rows, which the frozen model reads. Private; nothing here knows whose they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtree_secure.config import Job

if TYPE_CHECKING:
    import torch

Label = str | int
DUMMY = -1  # as fedtree_dp.sgd.shapes.DUMMY, which would load torch


@dataclass(frozen=True)
class Table:
    """Tokenised rows of one split.

    Attributes:
        tokens: Token ids of each row, cut to the job's maximum length.
        labels: (n,) int64 positions in the label set, or None for language modelling.
        units: (n,) int64 number of each row's unit, from 0, or None where each row is a unit of its
            own.
    """

    tokens: tuple[tuple[int, ...], ...]
    labels: "np.ndarray[tuple[int], np.dtype[np.int64]] | None"
    units: "np.ndarray[tuple[int], np.dtype[np.int64]] | None" = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def members(self) -> tuple[tuple[int, ...], ...] | None:
        """For each unit its rows, in their order; None where each row is a unit of its own."""
        if self.units is None:
            return None
        found: list[list[int]] = [[] for _ in range(int(self.units.max(initial=-1)) + 1)]
        for row, unit in enumerate(self.units.tolist()):
            found[unit].append(row)
        return tuple(map(tuple, found))

    def none(self) -> "Table":
        """Return a table of the same kind without rows."""
        first = (None if values is None else values[:0] for values in (self.labels, self.units))
        return Table((), *first)

    def batch(
        self,
        indices: Sequence[int] | Any,
        pad: int,
        device: "torch.device | str" = "cpu",
        *,
        width: int | None = None,
    ) -> dict[str, "torch.Tensor"]:
        """Collate rows.

        Args:
            indices: Of the rows; -1 is a dummy, where a width is given.
            pad: Token of padding.
            device: Where the tensors are wanted.
            width: Tokens that every row is padded to. Without it the longest row decides: only
                where no other row can be private.

        Returns:
            ``input_ids`` and ``attention_mask`` of shape (n, width); ``labels`` of shape (n,) where
            there are any; with a width, ``present`` of shape (n,), False for dummies.
        """
        import torch

        fixed = width is not None
        rows = [(pad,) if i == DUMMY and fixed else self.tokens[int(i)] for i in indices]
        if width is None:
            width = max((len(r) for r in rows), default=1)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        batch, places = {"input_ids": ids, "attention_mask": mask}, np.asarray(indices, np.int64)
        if fixed:
            batch["present"] = torch.from_numpy(places != DUMMY)
            places = np.where(places == DUMMY, 0, places)  # a dummy's label is never looked at
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[places])
        return {name: value.to(device) for name, value in batch.items()}


@dataclass(frozen=True)
class ClientData:
    """What training and evaluation need of a client.

    Attributes:
        train, test: Tokenised splits; ``test`` may be None.
        label_set: Names of the head's outputs; empty for language modelling.
        labels_declared: False if the label set was read from the rows and is therefore listed as
            public.
    """

    train: Table
    test: Table | None
    label_set: tuple[Label, ...]
    labels_declared: bool

    @property
    def majority(self) -> float | None:
        """Accuracy on the test rows of always answering the most frequent training label."""
        if self.train.labels is None or self.test is None or self.test.labels is None:
            return None
        frequent = int(np.bincount(self.train.labels, minlength=len(self.label_set)).argmax())
        return float((self.test.labels == frequent).mean())


def tokenise(texts: list[str], tokenizer: Any, job: Job) -> tuple[tuple[int, ...], ...]:
    """Return token ids of each text, cut to the job's maximum length; see `tokenise_to`."""
    causal = job.task == "causal-lm"
    return tokenise_to(job.training.max_length, texts, tokenizer, causal=causal)


def tokenise_to(
    limit: int, texts: list[str], tokenizer: Any, *, causal: bool
) -> tuple[tuple[int, ...], ...]:
    """Return token ids of each text, cut to ``limit``.

    An end token closes a text of a language model that was not cut: after a cut the text goes on,
    and to learn that it ends there is to learn something false.
    """
    if not causal or tokenizer.eos_token_id is None:
        encoded = tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
        return tuple(tuple(row) for row in encoded)
    # Uncut first: tokenizers that close a text themselves would close a cut one, too.
    end = tokenizer.eos_token_id
    whole = tokenizer(texts, truncation=False, padding=False)["input_ids"]
    ended = [row if row[-1:] == [end] else [*row, end] for row in whole]
    return tuple(tuple(row[:limit]) for row in ended)
