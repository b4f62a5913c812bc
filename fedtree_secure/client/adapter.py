"""A client's result as an ordinary peft folder.

Cluster and external expert are folded with lam into one adapter of rank 2r, so that
``PeftModel.from_pretrained(base, folder)`` gives the same outputs with nothing of this package
installed.

What was trained is rounded to a grid first: the gaps between the values that floating-point
Gaussian noise can take tell about the value under the noise (Mironov, CCS 2012), and a head or a
lam never passed the masking ring's grid.
"""

import json
import math
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import Label

GRID_BITS = 22


def save_adapter(backbone: Backbone, folder: Path, labels: tuple[Label, ...]) -> None:
    """Write what is seated at the backbone to ``folder``.

    Files: ``adapter_config.json``, ``adapter_model.safetensors``, ``labels.json`` (names of the
    head's outputs) and a README that says how to load it. Layers that the backbone's checkpoint
    lacks (their initial values come from the job's seed) are saved along with the head, so that a
    reload gives the same outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora, job = backbone.experts.lora, backbone.job
    tensors: dict[str, torch.Tensor] = {}
    folded = backbone.experts.folded()
    for layer, modules in enumerate(backbone.experts.by_layer):
        for module, (a, b) in zip(modules, folded[layer], strict=True):
            tensors[f"base_model.model.{module.place}.lora_A.weight"] = on_grid(a)
            tensors[f"base_model.model.{module.place}.lora_B.weight"] = on_grid(b)
    kept = _kept_modules(backbone)
    for name, value in backbone.model.state_dict().items():
        if any(f".{module}." in f".{name}" for module in kept):
            tensors[f"base_model.model.{name}"] = value.detach().cpu().contiguous().clone()
    if backbone.head_name:
        kept.add(backbone.head_name)
        for name, value in backbone.delivered_head().state_dict().items():
            tensors[f"base_model.model.{backbone.head_name}.{name}"] = on_grid(value)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if job.task == "causal-lm" else TaskType.SEQ_CLS,
        base_model_name_or_path=job.backbone,
        r=2 * lora.r,
        lora_alpha=2 * lora.alpha,
        target_modules=_adapted(backbone),
        modules_to_save=sorted(kept) or None,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "labels.json").write_text(
        json.dumps(list(labels), ensure_ascii=False) + "\n", "utf-8"
    )
    (folder / "README.md").write_text(_readme(backbone, len(labels)), "utf-8")


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
    return [module.place for modules in backbone.experts.by_layer for module in modules]


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


def _readme(backbone: Backbone, outputs: int) -> str:
    causal = backbone.job.task == "causal-lm"
    kind = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
    extra = "" if causal else f", num_labels={outputs}"
    return f"""# Adapter made by fedtree-secure

```python
from peft import PeftModel
from transformers import {kind}
base = {kind}.from_pretrained({backbone.job.backbone!r}{extra})
model = PeftModel.from_pretrained(base, "this folder")
```

It was trained with differential privacy; `summary.json` of the run states the guarantee,
epsilon and delta.
"""
