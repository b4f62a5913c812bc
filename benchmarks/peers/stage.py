"""Who takes part, and what the frozen layers make of their rows, computed once for all methods.

A federation is some clients on each of some tasks. Test rows of different seeds are disjoint: a
task's rows are put in one order that no seed changes, its head is dealt out as test rows, seed by
seed, and training rows are drawn from the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from utility.cached import Lookup, Numbered
from utility.tasks import TASKS, Rows

from fedtree_secure.testing import (
    Backbone,
    Client,
    ClientData,
    Job,
    Table,
    initial_state,
    loaded_into,
    prepare,
)

BATCH, SEEDS = 256, 10  # rows of a pass; seeds whose test rows are kept apart
KEPT = torch.bfloat16  # of the cached states


@dataclass(frozen=True)
class Federation:
    """Which rows whose are.

    Attributes:
        tasks: Names in `TASKS`.
        each: Clients of a task.
        train, test: Rows of a client.
        conflicting: Clients of the second task have the rows of the first, with its labels renamed
            by a fixed permutation: one domain, labels that contradict each other.
    """

    tasks: tuple[str, ...]
    each: int = 3
    train: int = 800
    test: int = 400
    conflicting: bool = False

    def clients(self, seed: int, folder: Path) -> list[Client]:
        """Deal the rows of a seed out."""
        found: list[Client] = []
        for number, task in enumerate(self.tasks):
            source = self.tasks[0] if self.conflicting else task
            share = (len(self.tasks), number) if self.conflicting else (1, 0)
            rows = _dealt(TASKS[source](folder), self, seed, share)
            if self.conflicting and number:
                rows = [_renamed(part, number) for part in rows]
            labels = tuple(sorted({label for part in rows for _, label in part}))
            for n in range(self.each):
                train, test = (
                    Dataset.from_dict({"text": [t for t, _ in part], "label": [c for _, c in part]})
                    for part in (rows[0][n :: self.each], rows[1][n :: self.each])
                )
                name = f"{task}-{number}-{n}"
                found.append(
                    Client(name, train=train, test=test, labels=labels, records=self.train)
                )
        return found


def _dealt(rows: Rows, wanted: Federation, seed: int, share: tuple[int, int]) -> tuple[Rows, Rows]:
    """Training and test rows of all clients of a task; `share` is how many tasks have these rows,
    and which of them asks.
    """
    unique = list(dict(rows).items())
    order = np.random.default_rng(0x7E57).permutation(len(unique))
    (tasks, number), test, train = share, wanted.each * wanted.test, wanted.each * wanted.train
    if (SEEDS * test + train) * tasks > len(unique):
        raise SystemExit(
            f"{len(unique)} rows are too few for {SEEDS} seeds; ask for fewer test rows"
        )
    first = (seed % SEEDS * tasks + number) * test
    rest = np.random.default_rng([seed, 0x7A]).permutation(order[SEEDS * tasks * test :])
    picked = (rest[number * train :][:train], order[first:][:test])
    return tuple([unique[i] for i in part] for part in picked)  # type: ignore[return-value]


def _renamed(rows: Rows, number: int) -> Rows:
    labels = sorted({label for _, label in rows})
    other = {label: labels[(at + number) % len(labels)] for at, label in enumerate(labels)}
    return [(text, other[label]) for text, label in rows]


@dataclass
class Seen:
    """A client's rows as the frozen layers see them.

    Attributes:
        data: Tables whose token ids are row numbers of the cached states.
        features, test_features: (rows, in_features) what the head reads without adapters.
        means: (rows, depth, hidden) of the training rows, for fingerprints.
        group: Number of its label set.
    """

    data: ClientData
    means: np.ndarray[Any, np.dtype[np.float32]]
    group: int
    outputs: int
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    test_features: Tensor = field(default_factory=lambda: torch.empty(0))


class Stage:
    """A federation under one frozen model, for all methods and epsilons of a seed."""

    def __init__(self, job: Job, clients: Sequence[Client]) -> None:
        self.job = job
        whole = Backbone(job, device="cpu")
        data = [prepare(client, job, whole.tokenizer) for client in clients]
        tables = [table for d in data for table in (d.train, d.test) if table is not None]
        with autocast():
            states, means = _states(whole, tables)
        sets = list(dict.fromkeys(d.label_set for d in data))
        self.seen: list[Seen] = []
        at = 0
        for d in data:
            assert d.test is not None
            middle, end = at + len(d.train), at + len(d.train) + len(d.test)
            numbered = ClientData(
                Numbered(d.train.tokens, d.train.labels, first=at),
                Numbered(d.test.tokens, d.test.labels, first=middle),
                d.label_set,
                d.labels_declared,
            )
            self.seen.append(
                Seen(numbered, means[at:middle], sets.index(d.label_set), len(d.label_set))
            )
            at = end
        self.outputs = [len(labels) for labels in sets]
        self._states = states
        self.models = {True: self._upper(whole)}
        self._observe()

    def backbone(self, *, freeze_a: bool) -> Backbone:
        """Return the model's upper part, with A frozen or not."""
        if freeze_a not in self.models:
            lora = replace(self.job.lora, freeze_a=freeze_a)
            self.models[freeze_a] = self._upper(
                Backbone(replace(self.job, lora=lora), device="cpu")
            )
        return self.models[freeze_a]

    def _upper(self, backbone: Backbone) -> Backbone:
        """Cut the frozen layers off; the last layer works for the first token alone."""
        bert = backbone.model.base_model
        # Torch's fused attention takes most of a step's time on CPUs, in its backward.
        bert.set_attn_implementation("eager")
        layers = list(bert.encoder.layer)[min(backbone.experts.indices) :]
        bert.embeddings, bert.encoder.layer = Lookup(self._states), nn.ModuleList(layers)
        if backbone.pooling in ("first", "native"):
            layers[-1].forward = partial(_of_first_token, layers[-1])
        return backbone

    @torch.no_grad()
    def _observe(self) -> None:
        backbone, flat = self.models[True], np.zeros(self.models[True].experts.depth, bool)
        for seen in self.seen:
            state = initial_state(backbone, seen.outputs)
            assert seen.data.test is not None
            with autocast(), loaded_into(backbone, state, seen.outputs, flat):
                seen.features = _features(backbone, seen.data.train)
                seen.test_features = _features(backbone, seen.data.test)


def autocast() -> torch.autocast:
    """Arithmetic of the upper part."""
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def _states(backbone: Backbone, tables: Sequence[Table]) -> tuple[Tensor, Any]:
    """Inputs of the lowest adapted layer (rows, longest, hidden), and the means of the states
    after each adapted layer.
    """
    rows = tuple(row for table in tables for row in table.tokens)
    table, bert = Table(rows, None), backbone.model.base_model
    lowest, after = min(backbone.experts.indices), [i + 1 for i in backbone.experts.indices]
    shape = (len(rows), backbone.job.training.max_length, backbone.hidden_size)
    states = torch.zeros(shape, dtype=KEPT)
    means = np.empty((len(rows), len(after), backbone.hidden_size), dtype=np.float32)
    for picked, batch in _passes(table, backbone):
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        found = bert(**given, output_hidden_states=True).hidden_states
        states[picked, : found[lowest].shape[1]] = found[lowest].to(KEPT)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        layers = [(found[i].float() * mask).sum(1) / mask.sum(1) for i in after]
        means[picked] = torch.stack(layers, dim=1).numpy()
    return states, means


def _passes(table: Table, backbone: Backbone) -> Any:
    order = np.argsort([len(row) for row in table.tokens], kind="stable")
    for start in range(0, len(table), BATCH):
        picked = order[start : start + BATCH]
        yield picked, table.batch(picked, backbone.pad)


def _features(backbone: Backbone, table: Table) -> Tensor:
    seen: list[Tensor] = []
    end = backbone.centred
    handle = end.register_forward_pre_hook(lambda _, args: seen.append(args[0].float()))
    out = torch.empty(len(table), end.projection.in_features)
    for picked, batch in _passes(table, backbone):
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        backbone.model(**given)
        out[picked] = seen.pop()
    handle.remove()
    return out


def _of_first_token(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """A BERT layer, where only the first token's output is read: what the others would give is not
    computed. Returns (records, 1, hidden).
    """
    attention = layer.attention
    inner, first = attention.self, hidden_states[:, :1]

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, inner.attention_head_size).transpose(1, 2)

    mask = None if attention_mask is None else attention_mask[:, :, :1]
    scores = heads(inner.query(first)) @ heads(inner.key(hidden_states)).transpose(2, 3)
    scores = scores * inner.scaling if mask is None else scores * inner.scaling + mask
    found = scores.softmax(dim=-1).to(scores.dtype) @ heads(inner.value(hidden_states))
    mixed = found.transpose(1, 2).reshape(len(first), 1, -1)
    out: Tensor = layer.feed_forward_chunk(attention.output(mixed, first))
    return out
