"""Load a delivered adapter: `model, tokenizer = load_adapter("runs/x/adapters/hospital-a")`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedtree_secure.errors import BackboneError
from fedtree_secure.model.loading import find_checkpoint

FACTS, HEAD = "fedtree.json", "head.safetensors"


def load_adapter(folder: str | Path, backbone: str | Path | None = None) -> tuple[nn.Module, Any]:
    """Put a delivered adapter on its backbone.

    Args:
        folder: Of the adapter, in a run folder's ``adapters``.
        backbone: Where the backbone lies on this machine; where it lay during the run if None.

    Returns:
        The model in evaluation mode, which takes ``input_ids`` and ``attention_mask`` and returns
        ``logits``, and its tokenizer. ``fedtree.json`` in the folder names the labels of the
        outputs and the length that texts were cut to.

    Raises:
        BackboneError: There is no such adapter, or no such backbone.
    """
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    from fedtree_secure.model.pooling import PooledClassifier

    place = Path(folder)
    facts = read_facts(place)
    checkpoint, extra = find_checkpoint(str(backbone or facts["backbone"]))
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, **extra}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, **safe)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = facts["max_length"]
    if facts["pooling"] == "native":
        outputs = {"num_labels": len(facts["labels"])} if facts["labels"] else {}
        base = _class_of(facts).from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, **outputs, **safe
        )
        if base.config.pad_token_id is None:
            base.config.pad_token_id = tokenizer.pad_token_id
        _name_outputs(base.config, facts["labels"])
        return PeftModel.from_pretrained(base, place).eval(), tokenizer
    encoder = AutoModel.from_pretrained(
        checkpoint, dtype=torch.float32, use_safetensors=True, **safe
    )
    merged = PeftModel.from_pretrained(encoder, place).merge_and_unload()
    model = PooledClassifier(merged, facts["pooling"])
    weights = load_file(place / HEAD)
    model.classifier = nn.Linear(weights["weight"].shape[1], len(weights["weight"]))
    model.classifier.load_state_dict(weights)
    _name_outputs(model.config, facts["labels"])
    return model.eval(), tokenizer


def _name_outputs(config: Any, labels: list[str]) -> None:
    """Let the configuration name the outputs, as users of transformers expect it to."""
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: position for position, label in enumerate(labels)}


def read_facts(folder: Path) -> dict[str, Any]:
    """Read what an adapter says of itself.

    Raises:
        BackboneError: It says nothing.
    """
    try:
        found: dict[str, Any] = json.loads((folder / FACTS).read_text("utf-8"))
        missing = {"task", "backbone", "pooling", "labels", "max_length"} - set(found)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{folder} holds no delivered adapter ({FACTS}: {error})") from None
    if missing:
        raise BackboneError(f"{folder / FACTS} lacks {', '.join(sorted(missing))}")
    return found


def _class_of(facts: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    causal = facts["task"] == "causal-lm"
    return AutoModelForCausalLM if causal else AutoModelForSequenceClassification
