"""What a private step costs on a GPU: a Llama of 1.2 billion parameters in bf16, LoRA rank 16, 16
texts of 512 tokens.

    python benchmarks/gpu_step.py          # needs a CUDA device with about 40 GB
    python benchmarks/gpu_step.py --quick  # a tiny Llama on any device: only to see that it runs

The frozen weights are random and in bf16, the adapters in float32 as peft makes them. Variants as
in dp_step.py, alternated, each step timed until the device is done; memory is the allocator's peak
over two steps of one variant. Without a GPU it says so and measures nothing. The last line is one
JSON object:

    device                     the card's name
    ratio, memory_ratio        our step over the non-private one with Hugging Face's loss: time,
                               peak memory
    vs_hooks, vs_hooks_memory  our step over Opacus' hooks, with the loss of its documentation
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from dp_step import (
    Batch,
    alternated,
    batch,
    language,
    language_mean,
    language_opacus,
    opacus,
    ours,
    plain,
    twin,
    with_lora,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

LARGE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
TINY = {
    **LARGE,
    "vocab_size": 30_000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(shape: dict[str, int | bool], device: str) -> nn.Module:
    with torch.device(device):
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    return with_lora(model, ["q_proj", "k_proj", "v_proj", "o_proj"], rank=16)


def finished(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak(step: Callable[[], None], device: str) -> int | None:
    """Return the allocator's peak in bytes over two steps; None without a GPU, whose allocator
    alone keeps count.
    """
    if device != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    finished(device)
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model on any device")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.quick:
        print(
            "there is no CUDA device here, so nothing was measured; --quick runs a tiny model on "
            "the CPU"
        )
        return
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.manual_seed(0)
    model = llama(TINY if options.quick else LARGE, device)
    data: Batch = {
        key: value.to(device)
        for key, value in batch(16, 32 if options.quick else 512, causal=True).items()
    }
    steps = {
        "plain": plain(twin(model).train(), language_mean, data),
        "ours": ours(twin(model), language, data),
        "hooks": opacus(twin(model), language_opacus, data, ghost=False),
    }

    def clock() -> float:
        finished(device)
        return time.perf_counter()

    times = alternated(steps, 3 if options.quick else 15, clock, warm_up=2)
    peaks = {name: peak(step, device) for name, step in steps.items()}
    for name, taken in times.items():
        memory = f"{peaks[name] / 2**30:8.2f} GiB" if peaks[name] else ""
        print(f"    {name:8} {1e3 * statistics.median(taken):9.2f} ms {memory}")

    def faster(other: str) -> float:
        return statistics.median(a / b for a, b in zip(times["ours"], times[other], strict=True))

    def smaller(other: str) -> float | None:
        mine, theirs = peaks["ours"], peaks[other]
        return mine / theirs if mine and theirs else None

    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "ratio": faster("plain"),
        "memory_ratio": smaller("plain"),
        "vs_hooks": faster("hooks"),
        "vs_hooks_memory": smaller("hooks"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
