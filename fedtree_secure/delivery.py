"""A client's result as an ordinary peft folder.

Cluster and external expert are folded with lam into one adapter of rank 2r, so that
``PeftModel.from_pretrained(base, folder)`` gives the same outputs with nothing of this package installed.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from fedtree_secure.backbone import Backbone
from fedtree_secure.data import Label


def save_adapter(backbone: Backbone, folder: Path, labels: tuple[Label, ...]) -> None:
    """Write what is seated at the backbone to ``folder``.

    Files: ``adapter_config.json``, ``adapter_model.safetensors``, ``labels.json`` (names of the head's outputs) and
    a README that says how to load it. Layers that the backbone's checkpoint lacks (their initial values come from the
    job's seed) are saved along with the head, so that a reload gives the same outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lora, job = backbone.experts.lora, backbone.job
    tensors: dict[str, torch.Tensor] = {}
    folded = backbone.experts.folded()
    for layer, modules in enumerate(backbone.experts.by_layer):
        for module, (a, b) in zip(modules, folded[layer], strict=True):
            tensors[f"base_model.model.{module.place}.lora_A.weight"] = a
            tensors[f"base_model.model.{module.place}.lora_B.weight"] = b
    kept = _kept_modules(backbone)
    for name, value in backbone.model.state_dict().items():
        if any(f".{module}." in f".{name}" for module in kept):
            tensors[f"base_model.model.{name}"] = value.detach().cpu().contiguous().clone()
    if backbone.head_name:
        kept.add(backbone.head_name)
        for name, value in backbone.delivered_head().state_dict().items():
            tensors[f"base_model.model.{backbone.head_name}.{name}"] = value.contiguous().clone()
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if job.task == "causal-lm" else TaskType.SEQ_CLS,
        base_model_name_or_path=job.backbone,
        r=2 * lora.rank,
        lora_alpha=2 * lora.alpha,
        target_modules=list(backbone.experts.targets),
        modules_to_save=sorted(kept) or None,
        inference_mode=True,
    )
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "labels.json").write_text(json.dumps(list(labels), ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(_readme(backbone, len(labels)), "utf-8")


def _kept_modules(backbone: Backbone) -> set[str]:
    kept: set[str] = set()
    for name in backbone.fresh:
        if not backbone.head_name or not name.startswith(f"{backbone.head_name}."):
            kept.add(name.split(".")[1] if name.startswith(backbone.model.base_model_prefix) else name.split(".")[0])
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

It was trained with differential privacy; `summary.json` of the run states the guarantee, epsilon and delta.
"""
