"""What a client may hold: computed from public values, opened sums and recorded steps alone.

An auditor's second bookkeeping. It starts at the public initial values, goes through the engine's
record step by step, moves nodes by the opened sums, and folds an adapter by itself. What a client
keeps or delivers must be equal to that, bit for bit; what is not has come from somewhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fedtree_audits.rigs.recorder import Floats32, Opening, Values
from fedtree_secure.testing import (
    CLUSTER,
    Backbone,
    ClientState,
    NodeBook,
    Party,
    initial_state,
    mean_of,
    messages,
)

KNOWN_FIELDS = {
    "own",
    "external",
    "mixing_logits",
    "head",
    "adam",
    "nodes",
    "pending",
    "first",
    "sketched",
}
GRID_BITS = 22  # of delivered values, see the product's adapter


class Account:
    """The second bookkeeping of one client.

    Args:
        party: The client's side; its tree, terms and model are read, none of its values.
        initial: Public values that it began with.

    Attributes:
        strange: What no step accounts for, in words.
        changes: What the steps of each round changed of what is uploaded, by round.
    """

    def __init__(self, party: Party, initial: ClientState) -> None:
        self._party, self._backbone = party, party.backbone
        self._book = NodeBook(party.job, party.facts, party.tree())
        self._shares, self._mixing = party.shares(), party.mixing()
        self._moments: Values = {}
        self._home = dict(self._initial_home(initial))
        self.strange: list[str] = []
        self.changes: dict[int, Floats32] = {}

    # --- as time passes ---------------------------------------------------------------------------

    def move(self, opened: Iterable[messages.OpenedSum]) -> None:
        """Move the nodes by sums, as every member must."""
        job, named = self._party.job, {node.name: node for node in self._book.nodes}
        for entry in opened:
            grid = self._party.quantiser(entry.clip, merge=False)
            mean = mean_of(entry, named[entry.node], grid, job.masking.min_group)
            values = self._book.values[entry.node]
            if job.training.local_steps == 1:
                values.follow_gradient(mean, job.training.learning_rate)
            else:
                values.add(mean)
        self._book.remember(())

    def train_head(self, opening: Opening) -> None:
        """Go through the steps on the head alone, whose result is the mean of the later half."""
        self._follow("head", opening)
        half, steps = len(opening.after) // 2, len(opening.after)
        for place in opening.after[-1]:
            tail = torch.zeros(len(opening.after[-1][place]))
            for values in opening.after[half:]:
                tail.add_(torch.from_numpy(values[place]))
            self._home[place] = (tail / (steps - half)).numpy()

    def train_round(self, number: int, opening: Opening) -> None:
        """Go through the steps of a round."""
        shared = self._shared_values()
        self._home |= shared
        self._follow(f"round {number}", opening)
        change = np.zeros(self._party.facts.layout.length, dtype=np.float32)
        for place, where in self._ranges().items():
            if place in shared:
                first, last = opening.before[0][place], opening.after[-1][place]
                change[where] = last - first
        self.changes[number] = change
        at_home = {p: v for p, v in opening.after[-1].items() if p not in shared}
        self._home = {p: v for p, v in self._home.items() if p not in shared} | at_home
        kept = {k: v for k, v in opening.moments.items() if k.partition("/")[0] not in shared}
        self._moments |= kept

    def _follow(self, stage: str, opening: Opening) -> None:
        """Compare where each step began with where the last one ended."""
        held = self._home
        for step, (before, after) in enumerate(zip(opening.before, opening.after, strict=True), 1):
            self.strange += [
                f"{place} before step {step} of {stage}"
                for place, value in before.items()
                if not np.array_equal(value, held[place])
            ]
            held = held | after

    # --- what follows -----------------------------------------------------------------------------

    def expected(self) -> ClientState:
        """Return the values that the client must hold in the end."""
        party, found = self._party, initial_state(self._backbone, self._party.outputs)
        home = self._home | self._shared_values()
        for place, where in self._ranges().items():
            found.own[where] = home[place]
        external = messages.unpack(
            self._book.told(party.id, -1).external, party.facts.layout.length
        )
        found.external = external
        found.mixing_logits = np.concatenate([home[f"lam{i}"] for i in range(party.facts.depth)])
        for name, value in found.head.items():
            place = f"head.{name.rpartition('.')[2]}"
            found.head[name] = home[place].reshape(value.shape)
        found.adam = self._moments
        found.nodes = {node.name: self._book.values[node.name] for node in party.nodes()}
        return found

    def compare(self, state: ClientState) -> list[str]:
        """Return the names of all values of a client that are not the expected ones."""
        unknown = {f.name for f in dataclasses.fields(state)} - KNOWN_FIELDS
        held, wanted = dict(_tensors(state)), dict(_tensors(self.expected()))
        return sorted(unknown) + differing(held, wanted)

    def delivered(self, expected: ClientState) -> dict[str, torch.Tensor]:
        """Fold the expected values into the adapter that must be delivered, tensor by tensor."""
        found: dict[str, torch.Tensor] = {}
        experts = self._backbone.experts
        own, outer = self._factors(expected.own), self._factors(expected.external)
        for layer, modules in enumerate(experts.by_layer):
            logit = torch.tensor(float(expected.mixing_logits[layer]))
            lam = float(torch.sigmoid(logit)) if self._mixing[layer] else 1.0
            for module, mine, others in zip(modules, own[layer], outer[layer], strict=True):
                a = torch.cat([mine[0], others[0]])
                b = torch.cat([mine[1] * lam, others[1] * (1.0 - lam)], dim=1)
                found[f"base_model.model.{module.place}.lora_A.weight"] = on_grid(a)
                found[f"base_model.model.{module.place}.lora_B.weight"] = on_grid(b)
        return found | self._folded_head(expected)

    def _folded_head(self, expected: ClientState) -> dict[str, torch.Tensor]:
        """The head with the public centring folded in, in float64."""
        if not expected.head:
            return {}
        mean, scale = self._backbone.reference
        values = {name.rpartition(".")[2]: torch.from_numpy(v) for name, v in expected.head.items()}
        weight = values["weight"].double() * scale
        found = {"weight": on_grid(weight.float())}
        if "bias" in values:
            found["bias"] = on_grid((values["bias"].double() - weight @ mean.double()).float())
        head = self._backbone.head_name
        return {f"base_model.model.{head}.{name}": value for name, value in found.items()}

    # --- where what stands ------------------------------------------------------------------------

    def _initial_home(self, initial: ClientState) -> Iterator[tuple[str, Floats32]]:
        for place, where in self._ranges().items():
            yield place, initial.own[where].copy()
        for layer, logit in enumerate(initial.mixing_logits):
            yield f"lam{layer}", np.array([logit], dtype=np.float32)
        for name, value in initial.head.items():
            yield f"head.{name.rpartition('.')[2]}", value.reshape(-1).copy()

    def _ranges(self) -> dict[str, slice]:
        found, at = {}, 0
        experts = self._backbone.experts
        for layer in range(experts.depth):
            for i, factor in enumerate(experts.factors(CLUSTER, layer)):
                found[f"layer{layer}.{i}"] = slice(at, at + factor.numel())
                at += factor.numel()
        return found

    def _shared_values(self) -> Values:
        """Values of the layers that the client shares, at this moment."""
        flat = np.array(self._party.facts.initial, copy=True)
        for node in self._party.nodes():
            node.scatter(self._book.values[node.name].values, flat)
        return {
            place: flat[where]
            for place, where in self._ranges().items()
            if self._shares[int(place[len("layer") :].partition(".")[0])]
        }

    def _factors(self, flat: Floats32) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Cut an expert into the A and B of every module; a frozen A is the public one."""
        experts, found, at = self._backbone.experts, [], 0
        for modules in experts.by_layer:
            row = []
            for module in modules:
                pair = [module.lora_A[CLUSTER].weight.detach().clone()]
                trained = [module.lora_B[CLUSTER].weight]
                if not experts.lora.freeze_a:
                    pair, trained = [], [module.lora_A[CLUSTER].weight, *trained]
                for factor in trained:
                    size = factor.numel()
                    cut = torch.from_numpy(flat[at : at + size].copy())
                    pair.append(cut.reshape(tuple(factor.shape)))
                    at += size
                row.append((pair[0], pair[1]))
            found.append(row)
        return found


def on_grid(values: torch.Tensor) -> torch.Tensor:
    """Round to multiples of 2^-22 of the power of two above the largest magnitude."""
    largest = float(values.abs().max())
    step = 2.0 ** (math.frexp(largest)[1] - GRID_BITS) if largest > 0 else 1.0
    return (torch.round(values.double() / step) * step).to(values.dtype)


def differing(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names under which two sets of arrays differ by a bit, or which only one has."""
    return [
        name
        for name in sorted({*held, *wanted})
        if name not in held
        or name not in wanted
        or not np.array_equal(np.asarray(held[name]), np.asarray(wanted[name]))
    ]


def frozen(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return a copy of everything in the model that no client may change."""
    return {
        name: value.detach().clone()
        for name, value in backbone.model.state_dict().items()
        if "lora_" not in name
        and not name.endswith("mix.logit")
        and not name.startswith(f"{backbone.head_name}.")
    }


def _tensors(state: ClientState) -> Iterator[tuple[str, Any]]:
    for name in ("own", "external", "mixing_logits", "pending", "first", "sketched"):
        if getattr(state, name) is not None:
            yield name, getattr(state, name)
    for group in ("head", "adam"):
        yield from ((f"{group} {name}", value) for name, value in getattr(state, group).items())
    for name, node in state.nodes.items():
        for part in ("values", "first", "second", "steps"):
            yield f"{name} {part}", getattr(node, part)
