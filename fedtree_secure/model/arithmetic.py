"""In which type the frozen model computes a training step.

What a step releases does not become more or less private by it: gradients are clipped as they are,
and sums, clips and noise are float32 with either type (`fedtree_dp.sgd.optimizer`).
"""

import contextlib
import logging
from typing import Any

import torch

from fedtree_secure.settings import Precision

log = logging.getLogger("fedtree_secure.model")
_NATIVE = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")  # of a CPU, by torch's names


def computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16: without, it is slower than float32."""
    if torch.device(device).type != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in _NATIVE)


def use_precision(wanted: Precision, model: Any, device: str) -> bool:
    """Prepare a model for a type; say whether its steps are to be computed in bfloat16.

    Args:
        wanted: The job's choice.
        model: The transformers model.
        device: Where it is.
    """
    if wanted == "float32":
        return False
    if not computes_bfloat16(device):
        log.warning("this processor has no bfloat16: training.precision stays float32 here")
        return False
    if torch.device(device).type == "cpu":
        # Torch's fused attention spends most of such a step in its backward pass on CPUs. A model
        # that cannot change it keeps it: its steps are slower and the same.
        with contextlib.suppress(ValueError, AttributeError, NotImplementedError):
            model.base_model.set_attn_implementation("eager")
    return True


def arithmetic(device: str, *, bfloat16: bool) -> contextlib.AbstractContextManager[Any]:
    """The context of a step's passes."""
    if not bfloat16:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
