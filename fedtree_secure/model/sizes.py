"""What a job trains and reads, from the model's configuration alone: no weight is read."""

from typing import Any

import torch
from torch import nn

from fedtree_secure.config import Job
from fedtree_secure.model.experts import (
    DEFAULT_TARGETS,
    TARGETS,
    check_rank,
    check_targets,
    places,
)
from fedtree_secure.model.loading import find_checkpoint
from fedtree_secure.model.pooling import trained_pooling


def known_pooling(job: Job) -> str:
    """Return what the head reads, as far as it can be told without loading weights; else nothing.

    Raises:
        BackboneError: The backbone is missing, or was trained for a pooling that is not offered.
    """
    if job.training.pooling != "auto" or job.task == "causal-lm":
        return "" if job.task == "causal-lm" else job.training.pooling
    return trained_pooling(find_checkpoint(job.backbone)[0]) or ""


def trained_values(job: Job) -> int:
    """Return d, the values of a client's adapters that are trained, noised and uploaded.

    Raises:
        BackboneError: The backbone is missing, or has no linear layer of the adapters' names.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    folder, extra = find_checkpoint(job.backbone)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **extra)
    kind: Any = (
        AutoModelForCausalLM if job.task == "causal-lm" else AutoModelForSequenceClassification
    )
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    targets = job.lora.targets or TARGETS.get(str(config.model_type), DEFAULT_TARGETS)
    check_targets(model, targets, str(config.model_type))
    names = places(model, targets, job.lora.last_layers)
    check_rank(model, names, job.lora.r)
    found = 0
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        width = linear.out_features + (0 if job.lora.freeze_a else linear.in_features)
        found += job.lora.r * width
    return found
