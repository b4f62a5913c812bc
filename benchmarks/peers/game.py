"""What all methods play on: noisy gradients of the clients, and values that groups move together.

Every step is the product's: its trainer, engine, clipping and noise, its optimiser of a node. Only
masking is left out: what secure aggregation opens is the sum that is taken here, but for the ring's
grid, a thousandth of the noise's standard deviation or less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from utility.variants import one_factor

from fedtree_dp import DPSGD, NoiseSource
from fedtree_secure.agreed.tree import TreeInputs
from fedtree_secure.client.state import head_from, head_values_of
from fedtree_secure.testing import (
    Job,
    LocalModel,
    Mechanism,
    NodeValues,
    NoisePlan,
    RoundTrainer,
    fingerprint,
    initial_state,
    loaded_into,
    train_head,
)
from peers.stage import Seen, Stage, autocast

Floats = np.ndarray[Any, Any]
Groups = Sequence[Sequence[int]]  # clients that share, by number
SLOTS = 257


class Trainer(RoundTrainer):
    """The product's, in larger passes: rows here are public, and all are in every step."""

    def _slots(self, mechanism: Mechanism) -> int:  # noqa: ARG002
        return SLOTS


@dataclass(frozen=True)
class Block:
    """Values that can be shared by themselves: one factor of one layer, or a group's head.

    Attributes:
        layer: Of the adapted ones, from 0; of a head the number of its label set.
        kind: ``A``, ``B`` or ``head``.
        begin, end: Place in the update vector.
    """

    layer: int
    kind: str
    begin: int
    end: int


class Game:
    """One method's run.

    Args:
        stage: Clients and frozen model.
        job: The method's.
        plan: Its noise; all zeros without privacy.
        heads: Trained heads of the clients by name of tensor, already averaged where shared.
    """

    def __init__(
        self, stage: Stage, job: Job, plan: NoisePlan, heads: Sequence[dict[str, Floats]]
    ) -> None:
        self.stage, self.job, self.plan = stage, job, plan
        self.backbone = stage.backbone(freeze_a=job.lora.freeze_a)
        self.seen: list[Seen] = stage.seen
        self.count, self.rounds = len(stage.seen), job.rounds
        self.layout = self.backbone.layout(stage.outputs)
        self.depth = self.backbone.experts.depth
        self.blocks = self._blocks()
        self.states = [initial_state(self.backbone, seen.outputs) for seen in self.seen]
        for state, head in zip(self.states, heads, strict=True):
            state.head = {name: value.copy() for name, value in head.items()}
        self.notes: dict[str, Any] = {}
        self.mixing = np.zeros((self.count, self.depth), dtype=bool)
        self._nodes: dict[tuple[Block, tuple[int, ...]], NodeValues] = {}
        self._taken = 0

    # --- who shares -------------------------------------------------------------------------------

    @property
    def together(self) -> Groups:
        """All clients."""
        return [list(range(self.count))]

    @property
    def alone(self) -> Groups:
        """Every client by itself."""
        return [[i] for i in range(self.count)]

    def same_labels(self, group: int) -> Groups:
        """The clients with a label set."""
        return [[i for i, seen in enumerate(self.seen) if seen.group == group]]

    # --- steps ------------------------------------------------------------------------------------

    def directions(self, idle: str = "") -> Floats:
        """Take one DP-SGD step of every client; return (clients, length) descent directions with
        each client's noise. Mixing weights, where there is an external expert, move at home.

        Args:
            idle: Factor that does not train in this step, `A` or `B`.
        """
        if self._taken == self.rounds:
            raise AssertionError(f"a method took more than its {self.rounds} steps")
        self._taken += 1
        engine = DPSGD if not idle else one_factor(0 if idle == "A" else 1)
        trainer = Trainer(self.backbone, self.job, engine=engine)
        records = self.job.training.records
        found = []
        for i, (seen, state) in enumerate(zip(self.seen, self.states, strict=True)):
            heads = tuple(seen.group == n for n in range(len(self.stage.outputs)))
            model = LocalModel(
                seen.outputs, (True,) * self.depth + heads, self.mixing[i], self.layout
            )
            mechanism = Mechanism(self.plan.rounds, records, 1)
            own, head = state.own.copy(), {n: v.copy() for n, v in state.head.items()}
            with autocast():
                args = (seen.data, state, model, mechanism, NoiseSource.from_os())
                found.append(trainer.train(*args, upload_gradient=True).astype(np.float64))
            state.own, state.head = own, head  # `move` takes the step on what is uploaded
        return np.stack(found)

    def move(self, directions: Floats, groups: Any) -> None:
        """Let groups follow the mean of their members' directions, by the product's optimiser.

        Args:
            directions: Of `directions`.
            groups: For a block the groups that share it; heads are shared by label set anyway.
        """
        for block in self.blocks:
            own = self.same_labels(block.layer) if block.kind == "head" else groups(block)
            for group in own:
                self._follow(directions, block, tuple(group))

    def _follow(self, directions: Floats, block: Block, group: tuple[int, ...]) -> None:
        node = self._nodes.get((block, group))
        if node is None:
            held = [self._held(i, block) for i in group]
            node = self._nodes[block, group] = NodeValues(np.mean(held, axis=0, dtype=np.float32))
        mean = directions[list(group), block.begin : block.end].mean(axis=0)
        node.follow_gradient(mean, self.job.training.learning_rate)
        for i in group:
            if block.kind == "head":
                self._put_head(i, node.values)
            else:
                self.states[i].own[block.begin : block.end] = node.values

    def set_external(self, client: int, layer: int, value: Floats | None) -> None:
        """Give a client an external expert in a layer, or none."""
        begin, end = self.backbone.experts.layers[layer]
        self.mixing[client, layer] = value is not None
        if value is not None:
            self.states[client].external[begin:end] = value

    def own(self, client: int, layer: int) -> Floats:
        """Return the cluster expert that a client holds in a layer."""
        begin, end = self.backbone.experts.layers[layer]
        return self.states[client].own[begin:end]

    # --- what is known of clients -----------------------------------------------------------------

    def fingerprints(self) -> TreeInputs:
        """Release every client's fingerprint, and sketch the distances."""
        records, size = self.job.training.records, self.job.topology.sketch_size
        args: Any = {"noise_multiplier": self.plan.fingerprint, "records": records}
        public = self.backbone.layer_reference
        released = [
            fingerprint(seen.means, public, noise=NoiseSource.from_os(), **args)
            for seen in self.seen
        ]
        noise = self.backbone.hidden_size * (self.plan.fingerprint / records) ** 2
        squared = distances([np.stack(layer) for layer in zip(*released, strict=True)], size)
        return TreeInputs(squared, np.full(self.count, noise), self.backbone.hidden_size, size)

    def of_layers(self, vectors: Floats, kind: str = "") -> list[Floats]:
        """Cut (clients, length) vectors into layers, or into one factor of each."""
        return [
            np.concatenate(
                [
                    vectors[:, b.begin : b.end]
                    for b in self.blocks
                    if b.layer == layer and b.kind != "head" and kind in ("", b.kind)
                ],
                axis=1,
            )
            for layer in range(self.depth)
        ]

    def variance(self) -> float:
        """Variance of the noise in one value of a direction."""
        training = self.job.training
        return float((training.max_grad_norm * self.plan.rounds / training.records) ** 2)

    def accuracy(self) -> list[float]:
        """Share of its test rows that each client labels rightly."""
        found = []
        for i, (seen, state) in enumerate(zip(self.seen, self.states, strict=True)):
            on = self.mixing[i]
            with autocast(), loaded_into(self.backbone, state, seen.outputs, on):
                measured = self.backbone.evaluate(seen.data)
            assert measured is not None
            found.append(float(measured["value"]))
        return found

    # --- inside -----------------------------------------------------------------------------------

    def _blocks(self) -> list[Block]:
        found, at = [], 0
        for layer, modules in enumerate(self.backbone.experts.by_layer):
            kinds = ("B",) if self.job.lora.freeze_a else ("A", "B")
            for module in modules:
                for kind in kinds:
                    weight = (module.lora_A if kind == "A" else module.lora_B)["cluster"].weight
                    found.append(Block(layer, kind, at, at + weight.numel()))
                    at += weight.numel()
        assert at == self.backbone.experts.layers[-1][1]
        heads = enumerate(self.layout.heads)
        return found + [Block(n, "head", begin, end) for n, (begin, end) in heads]

    def _held(self, client: int, block: Block) -> Floats:
        state = self.states[client]
        if block.kind == "head":
            return head_values_of(state.head)
        return state.own[block.begin : block.end]

    def _put_head(self, client: int, flat: Floats) -> None:
        head_from(self.states[client].head, flat)


def distances(layers: Sequence[Floats], size: int) -> Floats:
    """Sketch (clients, values) vectors of each layer; return (layers, clients, clients) squared
    distances, as the product's sketch opens them.
    """
    rng, found = np.random.default_rng(), []
    for vectors in layers:
        views = vectors @ rng.normal(scale=size**-0.5, size=(vectors.shape[1], size))
        gram = views @ views.T
        squared = np.maximum(np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram, 0.0)
        np.fill_diagonal(squared, 0.0)
        found.append((squared + squared.T) / 2)
    return np.stack(found)


def trained_heads(stage: Stage, job: Job, noise: float) -> list[dict[str, Floats]]:
    """Train every client's head at home, as a run does."""
    backbone, found = stage.backbone(freeze_a=True), []
    flat = np.zeros(backbone.experts.depth, bool)
    for seen in stage.seen:
        state = initial_state(backbone, seen.outputs)
        with loaded_into(backbone, state, seen.outputs, flat):
            mechanism = Mechanism(noise, job.training.records, job.head_steps)
            assert seen.data.train.labels is not None
            args = (seen.features, seen.data.train.labels, backbone.centred, job, mechanism)
            train_head(*args, NoiseSource.from_os(), lambda: None)
        found.append(state.head)
    return found


def averaged(stage: Stage, heads: Sequence[dict[str, Floats]]) -> list[dict[str, Floats]]:
    """Average the heads of each label set, as a run's merge round does."""
    found = [dict(head) for head in heads]
    for group in range(len(stage.outputs)):
        members = [h for h, seen in zip(found, stage.seen, strict=True) if seen.group == group]
        mean = np.mean([head_values_of(head) for head in members], axis=0, dtype=np.float32)
        for head in members:
            head_from(head, mean)
    return found


@torch.no_grad()
def accuracy_of_heads(stage: Stage, heads: Sequence[dict[str, Floats]]) -> list[float]:
    """Share of test rows that heads on frozen features label rightly."""
    backbone, found = stage.backbone(freeze_a=True), []
    flat = np.zeros(backbone.experts.depth, bool)
    for seen, head in zip(stage.seen, heads, strict=True):
        state = initial_state(backbone, seen.outputs)
        state.head = head
        assert seen.data.test is not None
        with loaded_into(backbone, state, seen.outputs, flat):
            said = backbone.centred(seen.test_features).argmax(1).numpy()
        found.append(float((said == seen.data.test.labels).mean()))
    return found
