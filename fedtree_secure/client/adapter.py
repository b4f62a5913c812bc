"""A client's result as an ordinary peft folder.

Cluster and external expert are folded with lam into one adapter of rank 2r. `load_adapter` puts it
on its backbone; nothing of this package is needed to do the same by hand (the folder's README).

What was trained is rounded to a grid first: the gaps between the values that floating-point
Gaussian noise can take tell about the value under the noise (Mironov, CCS 2012), and a head or a
lam never passed the masking ring's grid.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.delivered import FACTS, HEAD
from fedtree_secure.model.identity import tokenizer_digest
from fedtree_secure.model.rows import Label

GRID_BITS = 22


@dataclass(frozen=True)
class Outcome:
    """What a run cost and reached, for the adapter that it delivers.

    Attributes:
        epsilon, delta: Spent on the client's data set, over all jobs up to this one.
        metric: ``{"name": ..., "value": ...}`` on the client's own test rows, None without any. It
            is exact: no epsilon covers it.
        own_epsilon, condition: Where noise was shared: what holds whatever all others do, and what
            of them ``epsilon`` counts on; else None and empty.
    """

    epsilon: float
    delta: float
    metric: Mapping[str, Any] | None
    own_epsilon: float | None = None
    condition: str = ""


def save_adapter(
    backbone: Backbone, folder: Path, labels: tuple[Label, ...], outcome: Outcome | None = None
) -> None:
    """Write what is seated at the backbone to ``folder``.

    Files: ``adapter_config.json``, ``adapter_model.safetensors``, ``fedtree.json`` (labels of the
    outputs, pooling, length of texts, tokenizer, scale, epsilon, metric), ``head.safetensors``
    where the head reads pooled states, and a README that says how to load it. Layers that the
    backbone's checkpoint lacks (their initial values come from the job's seed) are saved along with
    the head, so that a reload gives the same outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora, job = backbone.experts.lora, backbone.job
    tensors: dict[str, torch.Tensor] = {}
    folded = backbone.experts.folded()
    for layer, modules in enumerate(backbone.experts.by_layer):
        for module, (a, b) in zip(modules, folded[layer], strict=True):
            place = _place(backbone, module.place)
            tensors[f"base_model.model.{place}.lora_A.weight"] = on_grid(a)
            tensors[f"base_model.model.{place}.lora_B.weight"] = on_grid(b)
    kept = _kept_modules(backbone)
    for name, value in backbone.model.state_dict().items():
        if any(f".{module}." in f".{name}" for module in kept):
            inside = _place(backbone, name)
            tensors[f"base_model.model.{inside}"] = value.detach().cpu().contiguous().clone()
    if backbone.head_name:
        head = {n: on_grid(v) for n, v in backbone.delivered_head().state_dict().items()}
        if backbone.pooling == "native":
            kept.add(backbone.head_name)
            named = {f"base_model.model.{backbone.head_name}.{n}": v for n, v in head.items()}
            tensors |= named
        else:
            save_file(head, folder / HEAD, metadata={"format": "pt"})
    config = LoraConfig(
        task_type=_task_type(backbone),
        base_model_name_or_path=job.backbone,
        r=2 * lora.r,
        lora_alpha=2 * lora.alpha,
        target_modules=_adapted(backbone),
        modules_to_save=sorted(kept) or None,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = {
        "task": job.task,
        "backbone": job.backbone,
        "pooling": backbone.pooling,
        "labels": list(labels),
        "id2label": {str(position): label for position, label in enumerate(labels)},
        "max_length": job.training.max_length,
        "tokenizer": {
            "class": type(backbone.tokenizer).__name__,
            "tokens": len(backbone.tokenizer),
            "sha256": tokenizer_digest(backbone.tokenizer).hex(),
        },
        "scale": lora.alpha / lora.r,
        "model_sha256": backbone.frozen_digest.hex(),
    }
    if outcome is not None:
        claim: dict[str, Any] = {"epsilon": outcome.epsilon, "delta": outcome.delta}
        if outcome.own_epsilon is not None:
            claim |= {"own_epsilon": outcome.own_epsilon, "condition": outcome.condition}
        facts["privacy"] = claim
        facts["metric"] = _plain_metric(outcome.metric)
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / "README.md").write_text(_readme(backbone), "utf-8")


def _plain_metric(metric: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The metric without counts by label, which whoever gets an adapter needs least."""
    return None if metric is None else {k: v for k, v in metric.items() if k != "confusion"}


def _task_type(backbone: Backbone) -> TaskType:
    if backbone.job.task == "causal-lm":
        return TaskType.CAUSAL_LM
    return TaskType.SEQ_CLS if backbone.pooling == "native" else TaskType.FEATURE_EXTRACTION


def _place(backbone: Backbone, name: str) -> str:
    """Name of a part in the class that a reader loads: without our classifier around it."""
    return name if backbone.pooling == "native" else name.removeprefix("encoder.")


def on_grid(values: torch.Tensor) -> torch.Tensor:
    """Return the values on a grid, contiguous.

    Its step is 2^-22 of the power of two above the largest magnitude: coarser than the spacing of
    float32 for all values but the largest few, and far finer than the noise in them.
    """
    largest = float(values.abs().max()) if values.numel() else 0.0
    step = 2.0 ** (math.frexp(largest)[1] - GRID_BITS) if largest > 0 else 1.0
    return (torch.round(values.double() / step) * step).to(values.dtype).contiguous()


def _adapted(backbone: Backbone) -> list[str]:
    """What peft must match: full names where only the last layers have an adapter."""
    if backbone.experts.lora.last_layers is None:
        return list(backbone.experts.targets)
    modules = (module for layer in backbone.experts.by_layer for module in layer)
    return [_place(backbone, module.place) for module in modules]


def _kept_modules(backbone: Backbone) -> set[str]:
    kept: set[str] = set()
    for name in backbone.fresh:
        if not backbone.head_name or not name.startswith(f"{backbone.head_name}."):
            kept.add(
                name.split(".")[1]
                if name.startswith(backbone.model.base_model_prefix)
                else name.split(".")[0]
            )
    return kept


def _readme(backbone: Backbone) -> str:
    job, length = backbone.job, backbone.job.training.max_length
    return f"""# Adapter made by fedtree-secure

```python
from fedtree_secure import load_adapter
model, tokenizer = load_adapter("this folder")
cut = {{"truncation": True, "max_length": {length}, "padding": True}}
batch = tokenizer(["a text"], return_tensors="pt", **cut)
logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
```

Backbone: {job.backbone}. Texts were cut to {length} tokens in training: longer ones cost
accuracy. Label names by output, tokenizer, epsilon and metric stand in `{FACTS}`.
{_by_hand(backbone)}

It was trained with differential privacy; `summary.json` of the run states the guarantee, epsilon
and delta. The metric is exact, and no epsilon covers it: take it out of `{FACTS}` before you give
the adapter to somebody who must not learn it.
"""


def _by_hand(backbone: Backbone) -> str:
    """How to load it where this package is not installed."""
    place = Path(backbone.job.backbone)
    gguf = f", with `gguf_file={place.name!r}`," if place.suffix == ".gguf" else ""
    if backbone.pooling == "native":
        kind = (
            "AutoModelForCausalLM"
            if backbone.job.task == "causal-lm"
            else "AutoModelForSequenceClassification"
        )
        return (
            "Without this package: `PeftModel.from_pretrained(base, folder)` of peft, on the "
            f"backbone as `{kind}`{gguf} of transformers."
        )
    return (
        "Without this package: `PeftModel.from_pretrained(base, folder)` of peft, on the backbone "
        f"as `AutoModel`{gguf} of transformers; pool its last hidden states ({backbone.pooling}), "
        f"scale each to norm 1, and apply the linear layer in `{HEAD}`."
    )
