"""Cluster and external expert in one linear layer, mixed by a learnable lam.

FedTreeLoRA, section "forward":

    h = W0 x + s (lam Bc Ac x + (1 - lam) Be Ae x)
    s = alpha / rank, lam = sigmoid(logit) in (0, 1)

The adapters are peft's own; this module adds the mixing, one lam for all adapted modules of a
transformer layer, and the fold of both experts into one ordinary peft adapter of rank 2r. Where a
layer has one cluster there is no external expert and lam is 1.
"""

import hashlib
import itertools
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import register_grad_sampler
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from fedtree_secure.config import Lora
from fedtree_secure.errors import BackboneError

CLUSTER, EXTERNAL = "cluster", "external"

# Query and value projections, which the paper adapts, where an architecture renames them.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "electra": ("query", "value"),
    "camembert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "deberta-v2": ("query_proj", "value_proj"),
    "modernbert": ("Wqkv",),
    "mpnet": ("q", "v"),
    # One matrix makes query, key and value.
    "bloom": ("query_key_value",),
    "falcon": ("query_key_value",),
    "gpt_neox": ("query_key_value",),
    "phi3": ("qkv_proj",),
}
DEFAULT_TARGETS = ("q_proj", "v_proj")


class Mix(nn.Module):
    """Convex combination of the two experts' outputs with a learnable weight.

    The logit is a free scalar, so that every optimiser step keeps lam inside (0, 1); where it
    starts is `Topology.mixing_weight`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    @property
    def lam(self) -> torch.Tensor:
        """The weight of the cluster expert, shape (1,)."""
        return torch.sigmoid(self.logit)

    def forward(self, cluster: torch.Tensor, external: torch.Tensor) -> torch.Tensor:
        """Mix two tensors of equal shape (records, ..., d_out)."""
        return external + self.lam.to(cluster.dtype) * (cluster - external)


@register_grad_sampler(Mix)  # type: ignore[untyped-decorator]
def mix_grad_sample(
    layer: Mix, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-record derivative of the loss with respect to the logit.

    It is lam (1 - lam) <backprop, cluster - external>.
    """
    cluster, external = activations
    per_record = (backprops * (cluster - external)).flatten(1).sum(1, keepdim=True)
    lam = layer.lam.detach()
    return {layer.logit: per_record * lam * (1 - lam)}


class MixedLinear(PeftLinear):  # type: ignore[misc]
    """A peft LoRA layer whose two adapters are mixed instead of added."""

    mix: Mix
    mixing: bool = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the frozen layer's plus the experts' output for x: (records, ..., d_in)."""
        base: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return base
        cluster = self._expert(CLUSTER, x)
        return base + (self.mix(cluster, self._expert(EXTERNAL, x)) if self.mixing else cluster).to(
            base.dtype
        )

    def _expert(self, name: str, x: torch.Tensor) -> torch.Tensor:
        factor_a, factor_b = self.lora_A[name], self.lora_B[name]
        output: torch.Tensor = factor_b(factor_a(x.to(factor_a.weight.dtype))) * self.scaling[name]
        return output


class Experts:
    """The two adapters injected into a backbone, addressed layer by layer as flat vectors.

    Args:
        model: A transformers model; it is changed in place and frozen, adapters are the only
            additions.
        lora: Rank, scale, targets and whether A is trained.
        architecture: ``config.model_type`` of the model.
        seed: Public seed of the initial A (uniform after He et al., as peft does); B starts at 0.

    Raises:
        BackboneError: A target is missing or is no plain linear layer.
    """

    def __init__(self, model: nn.Module, lora: Lora, architecture: str, seed: int) -> None:
        self.lora = lora
        self.targets = lora.targets or TARGETS.get(architecture, DEFAULT_TARGETS)
        check_targets(model, self.targets, architecture)
        found = places(model, self.targets, lora.last_layers)
        check_rank(model, found, lora.r)
        for name in (CLUSTER, EXTERNAL):
            config = LoraConfig(
                r=lora.r, lora_alpha=lora.alpha, target_modules=found, lora_dropout=0.0
            )
            config._register_custom_module({nn.Linear: MixedLinear})
            with warnings.catch_warnings():  # two adapters in one model are meant
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(config, model, adapter_name=name)
        groups = _group_by_layer(model)
        self.indices, self.by_layer = tuple(groups), list(groups.values())
        self.mixes = [Mix() for _ in self.by_layer]
        for modules, mix in zip(self.by_layer, self.mixes, strict=True):
            for module in modules:
                module.mix = mix.to(module.base_layer.weight.device)
        model.requires_grad_(False)
        self._initialise(seed)
        sizes = np.cumsum(
            [0, *(sum(p.numel() for p in self.factors(CLUSTER, i)) for i in range(self.depth))]
        )
        self.layers = tuple((a, b) for a, b in itertools.pairwise(sizes.tolist()))

    @property
    def depth(self) -> int:
        """Number of adapted transformer layers."""
        return len(self.by_layer)

    def factors(self, expert: str, layer: int) -> Iterator[nn.Parameter]:
        """The exchanged factors of one layer, for each module A (unless frozen), then B."""
        for module in self.by_layer[layer]:
            if not self.lora.freeze_a:
                yield module.lora_A[expert].weight
            yield module.lora_B[expert].weight

    def read(self, expert: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Return the expert's exchanged values as one float32 vector of the layout's layer part."""
        values = [
            p.detach().float().cpu().reshape(-1)
            for i in range(self.depth)
            for p in self.factors(expert, i)
        ]
        return torch.cat(values).numpy().copy()

    def write(self, expert: str, vector: "np.ndarray[Any, Any]") -> None:
        """Overwrite the expert's exchanged values; a frozen A stays at its initial value."""
        flat, at = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32)), 0
        with torch.no_grad():
            for layer in range(self.depth):
                for p in self.factors(expert, layer):
                    p.copy_(flat[at : at + p.numel()].view_as(p))
                    at += p.numel()

    def b_factors(self) -> list["np.ndarray[Any, np.dtype[np.float64]]"]:
        """Return the cluster expert's B factors, flat by layer: the paper compares these."""
        return [
            torch.cat(
                [m.lora_B[CLUSTER].weight.detach().double().cpu().reshape(-1) for m in modules]
            ).numpy()
            for modules in self.by_layer
        ]

    def set_mixing(self, layers: "np.ndarray[Any, np.dtype[np.bool_]]") -> None:
        """Say which layers have an external expert, shape (depth,)."""
        for modules, on in zip(self.by_layer, layers, strict=True):
            for module in modules:
                module.mixing = bool(on)

    def initial_digest(self) -> bytes:
        """SHA-256 over both factors of the initial cluster expert: part of what a client signs."""
        digest = hashlib.sha256()
        for modules in self.by_layer:
            for module in modules:
                for factor in (module.lora_A[CLUSTER].weight, module.lora_B[CLUSTER].weight):
                    digest.update(factor.detach().float().cpu().numpy().tobytes())
        return digest.digest()

    def folded(self) -> dict[int, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Return per layer and module the pair (A, B) of one adapter of rank 2r that equals the
        mixed experts.

        A is (2r, d_in), B is (d_out, 2r); to be scaled by alpha / rank of the original adapters.
        """
        folded = {}
        for layer, (modules, mix) in enumerate(zip(self.by_layer, self.mixes, strict=True)):
            folded[layer] = [
                _fold(module, float(mix.lam.detach()) if module.mixing else 1.0)
                for module in modules
            ]
        return folded

    def _initialise(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0xA])
        with torch.no_grad():
            for modules in self.by_layer:
                for module in modules:
                    shape = module.lora_A[CLUSTER].weight.shape
                    bound = 1 / np.sqrt(shape[1])
                    initial = torch.from_numpy(
                        rng.uniform(-bound, bound, size=tuple(shape)).astype(np.float32)
                    )
                    for name in (CLUSTER, EXTERNAL):
                        module.lora_A[name].weight.copy_(initial)
                        module.lora_B[name].weight.zero_()


def _fold(module: MixedLinear, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    a = [module.lora_A[n].weight.detach().float() for n in (CLUSTER, EXTERNAL)]
    b = [
        module.lora_B[n].weight.detach().float() * w
        for n, w in ((CLUSTER, lam), (EXTERNAL, 1.0 - lam))
    ]
    return torch.cat(a, dim=0).cpu().contiguous(), torch.cat(b, dim=1).cpu().contiguous()


def check_targets(model: nn.Module, targets: tuple[str, ...], architecture: str) -> None:
    """Refuse targets that no transformer layer has, with the names that it has."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    endings = sorted({name.rsplit(".", 1)[-1] for name in linear if re.search(r"\.\d+\.", name)})
    for target in targets:
        hits = [
            name
            for name in linear
            if name.rsplit(".", 1)[-1] == target and re.search(r"\.\d+\.", name)
        ]
        if not hits:
            raise BackboneError(
                f"the backbone ({architecture}) has no linear layer named {target!r} to attach "
                f"LoRA to; {_instead(model, endings)}"
            )


def _instead(model: nn.Module, endings: list[str]) -> str:
    """What to do about a target that is not there."""
    if endings:
        return f"its transformer layers have: {', '.join(endings)}. Set lora.targets"
    if any(type(module).__name__ == "Conv1D" for module in model.modules()):
        return (
            "its projections are transformers' Conv1D, a transposed layer without a tested "
            "per-record gradient here. Take a model whose projections are torch.nn.Linear, such "
            "as one of Llama's, OPT's or GPT-NeoX's architecture"
        )
    return (
        "its transformer layers have no torch.nn.Linear at all. Take a backbone of an architecture "
        "that docs/models.md lists"
    )


def places(model: nn.Module, targets: tuple[str, ...], last: int | None) -> list[str]:
    """Full names of the linear layers that get an adapter: targets in the last so many layers."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        layer = re.search(r"\.(\d+)\.", name)
        if layer and isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in targets:
            found.setdefault(int(layer.group(1)), []).append(name)
    if last is not None and last > len(found):
        raise BackboneError(
            f"lora.last_layers is {last}; the backbone has {len(found)} layers with {targets}"
        )
    kept = sorted(found)[-last:] if last else sorted(found)
    return [name for layer in kept for name in found[layer]]


def check_rank(model: nn.Module, found: list[str], rank: int) -> None:
    """Refuse a rank above the width of an adapted layer, before memory is taken for it.

    Raises:
        BackboneError: Such an adapter would have more values than the layer itself.
    """
    layers = (model.get_submodule(name) for name in found)
    least = min(min(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear))
    if rank > least:
        raise BackboneError(
            f"lora.r is {rank}; the adapted layers are {least} wide, so allowed is at most {least}"
        )


def _group_by_layer(model: nn.Module) -> dict[int, list[MixedLinear]]:
    groups: dict[int, list[MixedLinear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, MixedLinear):
            match = re.search(r"\.(\d+)\.", name)
            if match:
                module.place = name
                groups.setdefault(int(match.group(1)), []).append(module)
    return {index: groups[index] for index in sorted(groups)}
