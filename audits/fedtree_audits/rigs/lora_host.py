"""LoRA layers of a real transformer as the place where canaries sit, trained by the shipped engine.

A Dirac canary is a record whose gradient is one coordinate far above the clipping norm: nothing can
be recognised better in a noisy sum. On a LoRA layer h = W x + s B A x with B = 0 (its initial
value, kept by a learning rate of 0) the loss c h_k at an input x with A x = e_j has the gradient c
s at B_kj and zero elsewhere. So each coordinate of each B factor is one canary, and engine,
per-sample gradients, clipping over all factors, noise and sampler are those of a job; only
attention and head are passed by, because no gradient could be steered through them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedtree_audits.rigs.engines import Build, Probe
from fedtree_audits.statistics.scores import Bools, Floats
from fedtree_dp import PoissonGaussian
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import CLUSTER, Experts, Lora

SIZE = 3.0  # norm of a canary's gradient, in clipping norms
LAYERS, HEADS = 2, 4
MODULES = 2 * LAYERS  # query and value of each layer


class Host:
    """A BERT with the product's adapters, and one canary for each of the first coordinates of its B
    factors.

    Args:
        canaries: how many places are needed; the hidden size follows from it.
        lora: rank, scale and whether A is trained; places are query and value.
    """

    def __init__(self, canaries: int, lora: Lora) -> None:
        from transformers import BertConfig, BertModel

        # at least twice the rank, so that A x = e_j has a solution that is far from ill-conditioned
        hidden = HEADS * math.ceil(max(canaries / (MODULES * lora.r), 2 * lora.r) / HEADS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = BertModel(
                BertConfig(
                    vocab_size=8,
                    hidden_size=hidden,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS,
                    intermediate_size=HEADS,
                    max_position_embeddings=8,
                ),
                add_pooling_layer=False,
            )
        placed = Lora(r=lora.r, alpha=lora.alpha, freeze_a=lora.freeze_a)
        experts = Experts(self.model, placed, "bert", seed=0)
        self.layers = [module for modules in experts.by_layer for module in modules]
        self.parameters = [
            p for layer in range(experts.depth) for p in experts.factors(CLUSTER, layer)
        ]
        for p in self.parameters:
            p.requires_grad_(True)
        self._rank, self._scale = lora.r, lora.alpha / lora.r
        # Columns x_j with A x_j = e_j, one (hidden, rank) matrix for each layer
        self._inputs = [
            torch.linalg.pinv(layer.lora_A[CLUSTER].weight.detach()).T.contiguous()
            for layer in self.layers
        ]
        self.places = self._places(canaries)

    def _places(self, canaries: int) -> npt.NDArray[np.int64]:
        """Where each canary's coordinate stands in the flat gradient, shape (canaries,)."""
        starts, at = {}, 0
        for p in self.parameters:
            starts[p] = at
            at += p.numel()
        begin = np.array([starts[layer.lora_B[CLUSTER].weight] for layer in self.layers])
        number = np.arange(canaries)
        return np.asarray(begin[number % MODULES] + number // MODULES)

    def records(self, chosen: npt.NDArray[np.int64]) -> Batch:
        """Return canaries as a batch: layer, row of B and column of B of each."""
        place = torch.from_numpy(chosen // MODULES)
        return {
            "layer": torch.from_numpy(chosen % MODULES),
            "row": torch.div(place, self._rank, rounding_mode="floor"),
            "column": place % self._rank,
        }

    def units(self, chosen: npt.NDArray[np.int64], size: int) -> Batch:
        """Return canaries that are whole units: each as many records as a unit may have."""
        if size == 1:
            return self.records(chosen)
        batch = self.records(np.tile(chosen, size))
        number = torch.arange(len(chosen) * size)
        last = number >= len(chosen) * (size - 1)
        return {**batch, "unit": number % max(len(chosen), 1), "last": last}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return one value for each record, whose gradient is SIZE at the canary's coordinate."""
        del model  # its adapted layers are called one by one
        total = torch.zeros(len(batch["row"]))
        for number, (layer, inputs) in enumerate(zip(self.layers, self._inputs, strict=True)):
            mine = (batch["layer"] == number).float()[:, None]
            out = layer(inputs[batch["column"]] * mine) * mine
            total = total + out.gather(1, batch["row"][:, None]).squeeze(1)
        return total * (SIZE / self._scale)


@functools.lru_cache(maxsize=2)
def host(canaries: int, lora: Lora) -> Host:
    """Return a host; the last two are kept, since training leaves their weights as they are."""
    return Host(canaries, lora)


@dataclass(frozen=True)
class Seen:
    """What the server saw of one training, and what the auditor knows.

    Attributes:
        sums: noisy sums by step and canary, in clipping norms, shape (steps, canaries).
        included: the coins, shape (canaries,).
        drawn: whether a step's batch held the canary, shape (steps, canaries).
        commitment: SHA-256 of salt and coins, made before training.
    """

    sums: Floats
    included: Bools
    drawn: Bools
    commitment: str


def train(
    build: Build, event: PoissonGaussian, key: bytes, canaries: int, lora: Lora, size: int = 1
) -> Seen:
    """Train on canaries alone with the shipped loop: sampler, engine, noise.

    Args:
        build: what is audited.
        event: rate, noise multiplier and steps.
        key: 32 bytes that coins, noise and batches come from.
        canaries: how many coins are tossed.
        lora: settings of the adapters.
        size: records of one canary, which is a whole unit where there are several.
    """
    coins = build.source(hashlib.sha256(b"coins" + key).digest(), 0)
    included = coins.uniform(canaries) < 0.5
    commitment = hashlib.sha256(
        hashlib.sha256(b"salt" + key).digest() + included.tobytes()
    ).hexdigest()
    members, place = np.flatnonzero(included), host(canaries, lora)
    source = build.source(key, 0)
    sampler = build.sampler(len(members), event.sample_rate, source)
    divisor = max(1.0, event.sample_rate * canaries / 2)
    probe = _Watch(place.parameters, place.places)
    drawn = np.zeros((event.steps, canaries), dtype=np.bool_)
    with build.engine(
        place.model,
        probe,
        place.loss,
        noise_multiplier=event.noise_multiplier,
        max_grad_norm=1.0,
        expected_batch_size=divisor,
        noise=source,
        physical_batch_size=512,
    ) as engine:
        engine.rehearse(place.records(np.arange(2)))
        engine.optimizer.__class__ = build.optimizer
        for step in range(event.steps):
            batch = members[sampler.draw()]
            drawn[step, batch] = True
            engine.step(place.units(batch, size) if len(batch) else None)
    return Seen(np.stack(probe.seen) * divisor, included, drawn, commitment)


class _Watch(Probe):
    """Keeps the canaries' coordinates of every step and nothing else."""

    def __init__(self, parameters: list[nn.Parameter], places: npt.NDArray[np.int64]) -> None:
        super().__init__(parameters)
        self._places = places

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Keep the gradient at the canaries' places."""
        super().step(closure)
        self.seen[-1] = self.seen[-1][self._places]
