"""The trainable upper part of a backbone, fed with cached outputs of its frozen lower layers.

Lower layers without adapters give the same hidden states in every step, so they are computed once;
and the last layer's feed-forward part is computed for the first token only, which is all that
BERT's pooler reads. Neither changes a result. What trains is the product's own `Backbone`, loss,
engine and optimiser; a row's "token ids" are its number in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedtree_secure.testing import Backbone, ClientData, Table

BATCH = 64


class Lookup(nn.Module):
    """Stands where the embeddings stood: gives the cached hidden states of the rows whose numbers
    it is given.

    Args:
        states: (rows, longest, hidden).
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, input_ids: Tensor | None = None, **_: Any) -> Tensor:
        """Return float32 hidden states of shape (records, width, hidden) for ids of shape (records,
        width). Ids that are no row's number, as those of a rehearsal, stand for any row: texts here
        are public.
        """
        assert input_ids is not None
        return self.states[input_ids[:, 0] % len(self.states), : input_ids.shape[1]].float()


@dataclass(frozen=True)
class Numbered(Table):
    """A table whose token ids are row numbers, as many as the row has tokens.

    Attributes:
        first: Number of its first row in the cache.
    """

    first: int = 0

    def batch(
        self,
        indices: Sequence[int] | Any,
        pad: int,
        device: torch.device | str = "cpu",
        *,
        width: int | None = None,
    ) -> dict[str, Tensor]:
        """Collate rows as `Table.batch` does; a dummy has the states of the first row's first
        token.
        """
        found = super().batch(indices, pad, device, width=width)
        numbers = torch.as_tensor(np.asarray(indices, dtype=np.int64)).clamp(min=0) + self.first
        found["input_ids"] = numbers[:, None].expand_as(found["input_ids"]).contiguous()
        return found


class UpperPart:
    """A backbone that was cut below its lowest adapter; new data can be put under it again and
    again.

    Args:
        backbone: Changed in place; its text can only be reached through `numbered` afterwards.
        dtype: In which the hidden states are kept.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype = torch.bfloat16) -> None:
        self.backbone, self._dtype = backbone, dtype
        bert, lowest = backbone.model.bert, min(backbone.experts.indices)
        layers = list(bert.encoder.layer)
        self._embeddings, self._lower, self._upper = (
            bert.embeddings,
            layers[:lowest],
            layers[lowest:],
        )
        self._feed_forward = self._upper[-1].feed_forward_chunk

    @torch.no_grad()
    def numbered(self, data: ClientData) -> ClientData:
        """Compute the lower layers' outputs for all rows; return tables that stand for them."""
        assert data.test is not None
        rows = [*data.train.tokens, *data.test.tokens]
        longest = self.backbone.job.training.max_length
        states = torch.zeros(len(rows), longest, self.backbone.hidden_size, dtype=self._dtype)
        bert = self.backbone.model.bert
        bert.embeddings, bert.encoder.layer = self._embeddings, nn.ModuleList(self._lower)
        table, order = (
            Table(tuple(rows), None),
            np.argsort([len(row) for row in rows], kind="stable"),
        )
        for start in range(0, len(rows), BATCH):
            picked = order[start : start + BATCH]
            batch = table.batch(picked, self.backbone.pad, self.backbone.device)
            out = bert(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            states[torch.from_numpy(picked), : out.shape[1]] = out.to(self._dtype)
        bert.embeddings, bert.encoder.layer = Lookup(states), nn.ModuleList(self._upper)
        self._upper[-1].feed_forward_chunk = self._of_first_token
        return ClientData(
            Numbered(data.train.tokens, data.train.labels),
            Numbered(data.test.tokens, data.test.labels, first=len(data.train)),
            data.label_set,
            data.labels_declared,
        )

    def _of_first_token(self, attention_output: Tensor) -> Tensor:
        """The last layer's feed-forward part, only where it is read: BERT's pooler sees nothing but
        the first token.
        """
        out: Tensor = self._feed_forward(attention_output[:, :1])
        return out

    @torch.no_grad()
    def features(self, table: Table) -> Tensor:
        """What the seated head's trainable end sees of every row, shape (rows, in_features),
        float32.
        """
        seen: list[Tensor] = []
        end = self.backbone.centred
        handle = end.register_forward_pre_hook(lambda _, args: seen.append(args[0].float()))
        out = torch.empty(len(table), end.projection.in_features)
        order = np.argsort([len(row) for row in table.tokens], kind="stable")
        try:
            for start in range(0, len(table), BATCH):
                picked = order[start : start + BATCH]
                batch = table.batch(picked, self.backbone.pad, self.backbone.device)
                self.backbone.model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                )
                out[torch.from_numpy(picked)] = seen.pop()
        finally:
            handle.remove()
        return out
