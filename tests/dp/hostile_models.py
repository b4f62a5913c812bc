"""Weights that a lying server might choose, and records whose shapes are their own."""

from __future__ import annotations

import math

import dp_models as m
import torch

from fedtree_dp.sgd.shapes import DUMMY

PAD = 1
HOSTILE = [1e4, 1e6, 1e8, math.inf, math.nan, "padding"]


def hostile(kind: str, value: float | str) -> torch.nn.Module:
    """A tiny model whose first layer's query weights are scaled, or hold one inf or nan; or whose
    padding token is embedded as nan, so that every padded record has a gradient of nan.
    """
    model = m.lora(kind, torch.float32)
    scale = value if isinstance(value, float) and math.isfinite(value) else 1.0
    embeddings = ("word_embeddings.weight", "embed_tokens.weight")
    queries = (
        "layer.0.attention.self.query.base_layer.weight",
        "layers.0.self_attn.q_proj.base_layer.weight",
    )
    for name, p in model.named_parameters():
        if name.endswith(embeddings) and value == "padding":
            p.data[PAD] = math.nan
        if name.endswith(queries) and value != "padding":
            p.data *= scale
            p.data[0, 0] = p.data[0, 0] if math.isfinite(value) else value
    return model


def records(kind: str, lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    """Unpadded records, each a function of its number and length alone."""
    return [
        {
            k: v[:1, :length] if v.ndim > 1 else v[:1]
            for k, v in m.batch(kind, 4, length, seed=10 + i).items()
        }
        for i, length in enumerate(lengths)
    ]


def padded(record: dict[str, torch.Tensor], width: int, kind: str) -> dict[str, torch.Tensor]:
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    return {
        k: v if v.ndim == 1 else torch.nn.functional.pad(v, (0, width - v.shape[1]), value=fill[k])
        for k, v in record.items()
    }


def dummy(kind: str, width: int) -> dict[str, torch.Tensor]:
    token = {"input_ids": torch.tensor([[PAD]]), "attention_mask": torch.tensor([[1]])}
    label = torch.tensor([[-100]]) if kind == "llama" else torch.tensor([0])
    return padded({**token, "labels": label}, width, kind)


def collate(kind, rows, width, found):
    """The rows of one physical batch; `DUMMY` is a dummy."""
    chosen = [dummy(kind, width) if i == DUMMY else padded(found[i], width, kind) for i in rows]
    batch = {k: torch.cat([row[k] for row in chosen]) for k in chosen[0]}
    return {**batch, "present": torch.tensor([i != DUMMY for i in rows])}
