"""Where plain Opacus 1.6 is wrong, fails or is silent, and what this package does instead.

Each test first shows Opacus' behaviour and then ours, so it also fails on the day Opacus mends a
trap: then the entry in docs/opacus-traps.md goes. Every test is named there.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import dp_models as m
import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fedtree_dp import (
    DPSGD,
    ConfigurationError,
    NoiseSource,
    PoissonSampler,
    PrivateOptimizer,
    TrainingError,
)


def dpsgd(model, loss, optimizer=None, **settings):
    defaults = {
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 4.0,
        "noise": m.noise(),
    }
    return DPSGD(model, optimizer or m.recorder(model), loss, **{**defaults, **settings})


def opacus(model, *, clip=1.0, sigma=0.0, reduction="sum", batch=1, **settings):
    model.train()
    wrapped = GradSampleModule(model, loss_reduction=reduction)
    settings = {
        "noise_multiplier": sigma,
        "max_grad_norm": clip,
        "expected_batch_size": batch,
        **settings,
    }
    return wrapped, DPOptimizer(m.recorder(model), **settings)


def opacus_step(wrapped, optimizer):
    m.loss(wrapped, m.batch("bert")).sum().backward()
    optimizer.step()


def opacus_sum(model, loss, data, **settings):
    wrapped, optimizer = opacus(model, **settings)
    loss(wrapped, data).backward()
    optimizer.clip_and_accumulate()
    total = [p.summed_grad.clone() for p in optimizer.params]
    wrapped.to_standard_module()
    return total


def distance(a, b) -> float:
    return float(torch.stack([(x - y).norm() for x, y in zip(a, b, strict=True)]).norm())


def one_long_record() -> dict[str, torch.Tensor]:
    """Twenty equal records with 2 labelled tokens each, and one with 38."""
    ids = torch.randint(2, 100, (1, 40), generator=torch.Generator().manual_seed(0)).repeat(21, 1)
    labels = torch.full_like(ids, -100)
    labels[:, 1:3] = ids[:, 1:3]
    labels[0, 1:39] = ids[0, 1:39]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def record_norms(model, data) -> list[float]:
    rows = ({k: v[i : i + 1] for k, v in data.items()} for i in range(len(data["labels"])))
    sums = [m.reference(model, m.loss, row, 1e9) for row in rows]
    return [float(torch.stack([g.norm() for g in total]).norm()) for total in sums]


def test_token_mean_loss():
    model, data = m.lora("llama", lora_dropout=0.0), one_long_record()
    rest = {k: v[1:] for k, v in data.items()}
    token_mean = lambda model, part: model(**part).loss  # noqa: E731
    clip = max(record_norms(model, data))
    moved = distance(
        *(opacus_sum(model, token_mean, d, clip=clip, reduction="mean") for d in (data, rest))
    )
    assert moved > 4 * clip  # one record; the accountant assumes at most 1 x clip
    with (
        dpsgd(model.eval(), token_mean) as t,
        pytest.raises(ConfigurationError, match="one record changes every other"),
    ):
        t.rehearse(data)
    sums = []
    for part in (data, rest):
        optimizer = m.recorder(model, lr=1e-9)
        with dpsgd(
            model,
            m.loss,
            optimizer,
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=1.0,
        ) as t:
            t.rehearse(part)
            t.step(part)
        sums.append(optimizer.seen[0])
    assert distance(*sums) <= clip * (1 + 1e-6)


def noisy_gradient(seed):
    model = m.mixed()
    wrapped, optimizer = opacus(model, sigma=81.0, **seed)
    nn.functional.cross_entropy(
        wrapped(m.mixed_batch()["x"]), m.mixed_batch()["y"], reduction="sum"
    ).backward()
    optimizer.clip_and_accumulate()
    clean = [p.summed_grad.clone() for p in optimizer.params]
    if not seed:
        torch.manual_seed(42)
    optimizer.add_noise()
    return clean, [p.grad.clone() for p in optimizer.params]


def test_seeded_noise():
    clean, noisy = noisy_gradient({})
    torch.manual_seed(42)  # what transformers.set_seed(42) in a training script does
    guessed = [g - torch.normal(0.0, 81.0, g.shape, dtype=g.dtype) for g in noisy]
    assert m.gap(guessed, clean) < 1e-6
    _, first = noisy_gradient(
        {"generator": torch.Generator()}
    )  # unseeded, but its default seed is a constant
    _, second = noisy_gradient({"generator": torch.Generator()})
    assert distance(first, second) == 0.0
    runs = []
    for _ in range(2):
        torch.manual_seed(42)
        optimizer = m.recorder(m.mixed())
        with dpsgd(m.mixed(), m.mixed_loss, noise=NoiseSource.from_os()) as t:
            t.rehearse(m.mixed_batch())
            t.step(None)
            runs.append(t.optimizer.original_optimizer.seen[0])
        assert optimizer.seen == []
    assert distance(*runs) > 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_record(bad):
    data = m.mixed_batch()
    data["x"][3, 0, 0] = bad
    total = opacus_sum(m.mixed(), lambda model, part: m.mixed_loss(model, part).sum(), data)
    assert any(g.isnan().any() for g in total)
    model = m.mixed()
    with dpsgd(model, m.mixed_loss) as t:
        t.rehearse(m.mixed_batch())
        assert t.step(data).dropped_nonfinite == 1
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", m.KINDS)
def test_empty_poisson_batch(kind):
    model = m.lora(kind)
    none = {k: v[:0] for k, v in m.batch(kind).items()}
    wrapped, _ = opacus(model)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        m.loss(wrapped, none).sum().backward()
    model = wrapped.to_standard_module()
    before = [p.detach().clone() for p in model.parameters()]
    with dpsgd(model, m.loss) as t:
        t.rehearse(m.batch(kind))
        assert t.step(none).records == 0
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


def private_setup(size, **loader):
    data = TensorDataset(torch.randn(size, 4), torch.zeros(size, dtype=torch.long))
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, **{"batch_size": 10, **loader}),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
def test_divisor_and_rate_from_the_private_size():
    settings = [private_setup(size) for size in (100, 101)]  # neighbouring data sets
    rates = [loader.batch_sampler.sample_rate for _, _, loader in settings]
    assert (
        rates[0] != rates[1]
    )  # removing a record changes everybody's probability, and the divisor at other sizes
    divisors = [private_setup(size)[1].expected_batch_size for size in (19, 20)]
    assert divisors[0] != divisors[1]
    with pytest.raises(ConfigurationError, match="public divisor"):
        dpsgd(m.mixed(), m.mixed_loss, expected_batch_size=None)
    samplers = [PoissonSampler(size, 0.1, m.noise()) for size in (100, 101)]
    assert len({sampler.sample_rate for sampler in samplers}) == 1


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
def test_weighted_and_shuffled_sampling():
    weighted = WeightedRandomSampler([1.0] * 900 + [50.0] * 100, num_samples=20)
    _, _, loader = private_setup(1000, sampler=weighted)
    assert (
        loader.batch_sampler.sample_rate == 0.5
    )  # of 1,000 records; 10 were asked for; nothing is said
    for wrong in (weighted, [0.1] * 10, torch.full((10,), 0.1)):
        with pytest.raises(ConfigurationError, match="sample_rate must be"):
            PoissonSampler(10, wrong, m.noise())
    with pytest.raises(ConfigurationError, match="NoiseSource"):
        PoissonSampler(10, 0.1, torch.Generator())


def test_lora_that_does_not_train():
    model = m.lora("bert", modules_to_save=None, lora_dropout=0.0)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.zeros_(p)
    wrapped, optimizer = opacus(model, sigma=1.0)
    m.loss(wrapped, m.batch("bert")).sum().backward()
    # noise moves the weights, the loss curve of a head would even fall, and nothing is said
    optimizer.step()
    model = wrapped.to_standard_module()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.zeros_(p)
    with dpsgd(model, m.loss) as t, pytest.raises(TrainingError, match="820"):
        t.rehearse(m.batch("bert"))


def test_optimizer_over_stale_parameters():
    stale = m.recorder(m.mixed())
    model = m.mixed()
    wrapped = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(stale, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1)
    for p in (
        optimizer.params
    ):  # what is left on parameters that were replaced, e.g. by model.to(device)
        p.grad_sample = torch.zeros(9, *p.shape)
    m.mixed_loss(wrapped, m.mixed_batch()).sum().backward()
    optimizer.step()  # trains nothing, says nothing
    model = wrapped.to_standard_module()
    with pytest.raises(ConfigurationError, match="820"):
        dpsgd(model, m.mixed_loss, stale)


def test_implicit_position_ids():
    model = m.backbone("bert").requires_grad_(False)
    model.bert.embeddings.position_embeddings.requires_grad_(True)
    model.classifier.requires_grad_(True)
    wrapped, optimizer = opacus(model)
    m.loss(wrapped, m.batch("bert")).sum().backward()
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        optimizer.step()
    with (
        dpsgd(wrapped.to_standard_module(), m.loss) as t,
        pytest.raises(TrainingError, match=r"position_embeddings.*implicit position ids"),
    ):
        t.rehearse(m.batch("bert"))


def test_non_reentrant_checkpointing():
    model = m.lora("bert", lora_dropout=0.0)
    expected = m.reference(model, m.loss, m.batch("bert"), 0.5)
    model.activation_checkpointing_enable()  # the default of transformers 5 is non-reentrant
    model.eval()
    wrapped, optimizer = opacus(model, clip=0.5)
    for module in model.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        opacus_step(wrapped, optimizer)
    model = wrapped.to_standard_module()
    for module in model.modules():
        vars(module).pop("activations", None)
    recorder = m.recorder(model, lr=1e-9)
    with dpsgd(
        model, m.loss, recorder, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=1.0
    ) as t:
        t.rehearse(m.batch("bert"))
        t.step(m.batch("bert"))
    assert m.gap(recorder.seen[0], expected) < 1e-6


def test_dora():
    model = m.lora("bert", use_dora=True, modules_to_save=None, lora_dropout=0.0)
    wrapped, optimizer = opacus(model)
    with pytest.raises((RuntimeError, ValueError, AttributeError, TypeError, IndexError)):
        opacus_step(wrapped, optimizer)
    with pytest.raises(ConfigurationError, match="DoRA"):
        dpsgd(m.lora("bert", use_dora=True), m.loss)


def test_tied_weights_under_ghost_clipping():
    model = m.backbone("llama", tie_word_embeddings=True).requires_grad_(False)
    model.model.embed_tokens.requires_grad_(True)
    data = m.batch("llama")
    expected = m.reference(model, m.loss, data, 0.5)
    ghost = GradSampleModuleFastGradientClipping(
        model.train(), max_grad_norm=0.5, loss_reduction="sum"
    )
    with pytest.raises(NotImplementedError, match="tying is not supported"):
        m.loss(ghost, data)
    model = ghost.to_standard_module()
    recorder = m.recorder(model, lr=1e-9)
    with dpsgd(
        model, m.loss, recorder, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=1.0
    ) as t:
        t.rehearse(data)
        t.step(data)
    assert m.gap(recorder.seen[0], expected) < 1e-6


def test_weight_used_outside_its_module():
    model, data = m.Outside().double(), {"x": m.mixed_batch()["x"]}
    loss = lambda model, part: model(part["x"]).flatten(1).square().sum(1)  # noqa: E731
    total = opacus_sum(model, lambda model, part: loss(model, part).sum(), data, clip=1e9)
    assert (
        m.gap(total, m.reference(model, loss, data, 1e9)) > 0.1
    )  # half of the gradient is missing, silently
    with dpsgd(model, loss) as t, pytest.raises(TrainingError, match="outside its module"):
        t.rehearse(data)


def test_save_pretrained(tmp_path):
    model = m.lora("bert")
    wrapped, _ = opacus(model)
    with pytest.raises(AttributeError):
        wrapped.save_pretrained(tmp_path)
    model = wrapped.to_standard_module()
    with dpsgd(model, m.loss) as t:
        t.rehearse(m.batch("bert"))
        t.step(m.batch("bert"))
        model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_evaluation_mode():
    """Opacus captures nothing in evaluation mode, and training mode switches dropout on."""
    model = m.lora("bert")
    wrapped, _ = opacus(model)
    wrapped.eval()
    losses = m.loss(wrapped, m.batch("bert"))
    with pytest.raises(ValueError, match="No activations detected"):
        losses.sum().backward()
    model = wrapped.to_standard_module()
    model.train()
    with dpsgd(model, m.loss) as t:
        t.rehearse(m.batch("bert"))
        assert t.step(m.batch("bert")).records == 7
        assert not model.training
    assert model.training


def test_the_divisor_grows_with_micro_batches():
    """Accumulating two half batches halves Opacus' step (issue 420)."""
    data = m.mixed_batch(8)
    halves = [{k: v[:4] for k, v in data.items()}, {k: v[4:] for k, v in data.items()}]
    steps = []
    for parts in ([data], halves):
        wrapped, optimizer = opacus(m.mixed(), reduction="mean", batch=8)
        for part in parts:
            m.mixed_loss(wrapped, part).mean().backward()
        optimizer.step()
        steps.append(optimizer.original_optimizer.seen[0])
    assert m.gap([2 * g for g in steps[1]], steps[0]) < 1e-6
    ours = []
    for limit in (8, 4):
        model = m.mixed()
        recorder = m.recorder(model)
        settings = {
            "noise_multiplier": 0.0,
            "expected_batch_size": 8.0,
            "physical_batch_size": limit,
        }
        with dpsgd(model, m.mixed_loss, recorder, **settings) as t:
            t.rehearse(data)
            t.step(data)
        ours.append(recorder.seen[0])
    assert m.gap(*ours) < 1e-12


def test_bfloat16_sums():
    """1,000 clipped gradients added in bfloat16 stop growing; noise in bfloat16 has 8 bits."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    plain = DPOptimizer(
        torch.optim.SGD([p], lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=1
    )
    ours = PrivateOptimizer(
        torch.optim.SGD([p], lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=1,
        noise=m.noise(),
    )
    sums = []
    for optimizer in (plain, ours):
        optimizer.zero_grad()
        for _ in range(1000):
            p.grad_sample = torch.full((1, 1), 0.9, dtype=torch.bfloat16)
            optimizer.clip_and_accumulate()
        sums.append(float(p.summed_grad))
    assert sums[0] < 300
    assert sums[1] == pytest.approx(900, rel=0.01)


def test_our_optimizer_under_opacus_own_module():
    """The optimizer is a `DPOptimizer`: it also runs in a loop written for Opacus."""
    model, data = m.mixed(), m.mixed_batch()
    expected = m.reference(model, m.mixed_loss, data, 0.5)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 0.5, "expected_batch_size": 2.0}
    optimizer = PrivateOptimizer(m.recorder(model), noise=m.noise(), **settings)
    m.mixed_loss(wrapped, data).sum().backward()
    optimizer.step()
    assert m.gap([2 * g for g in optimizer.original_optimizer.seen[0]], expected) < 1e-6


def test_the_documentation_lists_these_tests():
    page = (Path(__file__).parents[3] / "docs" / "opacus-traps.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(test_\w+)`", page))
    here = {name for name in globals() if name.startswith("test_")}
    assert listed == here - {
        "test_the_documentation_lists_these_tests",
        "test_our_optimizer_under_opacus_own_module",
    }
