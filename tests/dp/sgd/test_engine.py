"""DPSGD: exact clipped sums, noise once a step, a public divisor, and errors that leave nothing
behind.
"""

from __future__ import annotations

import math

import dp_models as m
import pytest
import torch
from engine_case import SETTINGS, clipped_sum, engine, trainer  # noqa: F401
from scipy import stats
from torch import nn

from fedtree_dp import ConfigurationError, NoiseSource, TrainingError


@pytest.mark.parametrize("kind", m.KINDS)
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e3])
def test_clipped_sums_equal_a_per_example_loop(kind, bound):
    model, data = m.lora(kind), m.batch(kind)
    expected = m.reference(model, m.loss, data, bound)
    got, report = clipped_sum(model, m.loss, data, bound, physical_batch_size=3)
    assert m.gap(got, expected) < 1e-6
    assert report.records == 7
    assert report.dropped_nonfinite == 0
    assert report.clipped_fraction == (
        0.0 if bound == 1e3 else 1.0 if bound == 0.05 else report.clipped_fraction
    )
    assert report.mean_loss == pytest.approx(
        float(m.loss(model.eval(), data).detach().mean()), rel=1e-3
    )


def test_mixing_scalar_and_head_are_clipped_with_everything_else():
    model, data = m.mixed(), m.mixed_batch()
    expected = m.reference(model, m.mixed_loss, data, 0.5)
    got, report = clipped_sum(model, m.mixed_loss, data, 0.5, physical_batch_size=4)
    assert m.gap(got, expected) < 1e-6
    assert all(m.gap([a], [b]) < 1e-6 for a, b in zip(got, expected, strict=True))
    assert 0 < report.clipped_fraction <= 1


@pytest.mark.slow
def test_real_minilm_with_lora_and_head():
    model, data = m.minilm(torch.float64), m.minilm_batch()
    expected = m.reference(model, m.minilm_loss, data, 0.3)
    got, _ = clipped_sum(model, m.minilm_loss, data, 0.3)
    assert m.gap(got, expected) < 1e-6
    short = m.minilm()
    got, _ = clipped_sum(short, m.minilm_loss, data, 0.3)
    assert m.gap(got, expected) < 1e-4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("limit", [1, 4, 64])
def test_a_nonfinite_record_contributes_exactly_zero(bad, limit):
    data = m.mixed_batch()
    poisoned = {**data, "x": data["x"].clone()}
    poisoned["x"][3, 0, 0] = bad
    rest = {k: torch.cat([v[:3], v[4:]]) for k, v in data.items()}
    got, report = clipped_sum(
        m.mixed(), m.mixed_loss, poisoned, 0.5, dummies=data, physical_batch_size=limit
    )
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, rest, 0.5, physical_batch_size=1)
    assert report.dropped_nonfinite == 1
    assert report.records == 9
    assert math.isfinite(report.mean_loss)
    assert m.gap(got, expected) < 1e-12


def test_a_finite_gradient_under_an_infinite_loss_is_dropped_too():
    def loss(model, part):
        return m.mixed_loss(model, part) + part["added"]

    data = m.mixed_batch()
    infinite, none = ({**data, "added": torch.full((9,), v)} for v in (math.inf, 0.0))
    got, report = clipped_sum(m.mixed(), loss, infinite, 0.5, dummies=none)
    assert report.dropped_nonfinite == 9
    assert report.mean_loss is None
    assert all(not g.any() for g in got)


def test_one_record_moves_the_sum_by_at_most_the_bound():
    data = m.mixed_batch()
    full, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    for i in range(9):
        rest = {k: torch.cat([v[:i], v[i + 1 :]]) for k, v in data.items()}
        less, _ = clipped_sum(m.mixed(), m.mixed_loss, rest, 0.5)
        assert torch.stack(
            [(a - b).norm() for a, b in zip(full, less, strict=True)]
        ).norm() <= 0.5 * (1 + 1e-12)


def test_rounding_cannot_lift_a_record_above_the_bound():
    model = m.mixed().float()
    data = {k: v.float() if v.is_floating_point() else v for k, v in m.mixed_batch(60).items()}
    for i in range(60):
        one = {k: v[i : i + 1] for k, v in data.items()}
        got, _ = clipped_sum(model, m.mixed_loss, one, 0.7, dummies=data)
        assert math.fsum(float(g.double().square().sum()) for g in got) <= 0.7**2


def test_a_logical_batch_may_come_in_parts():
    data = m.batch("bert")
    short = {k: (v[:3, :8] if v.ndim > 1 else v[:3]) for k, v in data.items()}
    short["attention_mask"][:, -1] = 1
    rest = {k: v[3:] for k, v in data.items()}
    one, _ = clipped_sum(m.lora("bert"), m.loss, short, 1.0)
    two, _ = clipped_sum(m.lora("bert"), m.loss, rest, 1.0)
    parts = (part for part in (short, rest))
    both, report = clipped_sum(
        m.lora("bert"), m.loss, parts, 1.0, dummies=data, physical_batch_size=2
    )
    assert m.gap(both, [a + b for a, b in zip(one, two, strict=True)]) < 1e-9
    assert report.records == 7


@pytest.mark.parametrize(
    "nothing",
    [None, {}, [], [{}], {"x": torch.zeros(0, 4, 6), "y": torch.zeros(0, dtype=torch.long)}],
)
def test_an_empty_batch_is_a_step_of_noise(nothing):
    model = m.mixed()
    optimizer, before = m.recorder(model), [p.detach().clone() for p in model.parameters()]

    calls = []

    def counted(model, part):
        calls.append(len(part["y"]))
        return m.mixed_loss(model, part)

    dummies = m.mixed_batch()
    with trainer(model, counted, optimizer=optimizer, noise_multiplier=1.0, dummies=dummies) as t:
        report = t.step(nothing)
    assert calls == [9, 1]  # the rehearsal's; no forward pass without records
    assert (report.records, report.clipped_fraction, report.mean_loss) == (0, 0.0, None)
    assert not report.failed
    assert all(g.any() for g in optimizer.seen[0])
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_noise_is_added_once_a_step_whatever_the_micro_batches(limit):
    data = m.mixed_batch()
    plain, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    noisy, _ = clipped_sum(
        m.mixed(), m.mixed_loss, data, 0.5, noise_multiplier=2.0, physical_batch_size=limit
    )
    draw = m.noise().normal(sum(g.numel() for g in noisy), 1.0, torch.float64)
    assert (
        m.gap([torch.cat([(a - b).flatten() for a, b in zip(noisy, plain, strict=True)])], [draw])
        < 1e-6
    )


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(500, 200, bias=False)

    def forward(self, x):
        return self.head(x)


def test_noise_has_the_stated_scale_and_the_test_has_power():
    model = Wide()
    got, _ = clipped_sum(
        model,
        m.mixed_loss,
        None,
        2.0,
        dummies={"x": torch.eye(500)[:2], "y": torch.tensor([0, 1])},
        noise_multiplier=0.75,
        expected_batch_size=8.0,
    )
    x = got[0].flatten().double().numpy() * 8.0

    def p(std):
        q = float((x**2).sum() / std**2)
        return 2 * min(stats.chi2.cdf(q, len(x)), stats.chi2.sf(q, len(x)))

    assert p(1.5) > 1e-9  # the false-alarm rate
    assert p(0.7 * 1.5) < 1e-20
    assert p(1.3 * 1.5) < 1e-20


def test_seeds_do_not_repeat_the_noise():
    def run():
        from transformers import set_seed

        set_seed(42)
        return clipped_sum(
            m.mixed(),
            m.mixed_loss,
            m.mixed_batch(),
            0.5,
            noise_multiplier=1.0,
            noise=NoiseSource.from_os(),
        )

    assert m.gap(run()[0], run()[0]) > 0.1


def test_the_divisor_is_public():
    data = m.mixed_batch()
    few = {k: v[:5] for k, v in data.items()}
    for part in (data, few):
        one, _ = clipped_sum(m.mixed(), m.mixed_loss, part, 0.5)
        many, _ = clipped_sum(
            m.mixed(), m.mixed_loss, part, 0.5, expected_batch_size=16.0, physical_batch_size=2
        )
        assert m.gap([16 * g for g in many], one) < 1e-12


@pytest.mark.parametrize(
    "name", ["expected_batch_size", "max_grad_norm", "noise_multiplier", "physical_batch_size"]
)
@pytest.mark.parametrize("value", [None, -1, math.nan, True, "4"])
def test_bad_numbers(name, value):
    with pytest.raises(ConfigurationError, match=name):
        trainer(m.mixed(), **{name: value})


@pytest.mark.parametrize("name", ["expected_batch_size", "max_grad_norm", "physical_batch_size"])
def test_zero_is_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        trainer(m.mixed(), **{name: 0})


@pytest.mark.parametrize("source", [None, 42, torch.Generator()])
def test_other_noise_is_refused(source):
    model = m.mixed()
    with pytest.raises(ConfigurationError, match="NoiseSource"):
        trainer(model, noise=source)
    assert m.traces(model) == []


def test_the_hugging_face_loss_is_refused_by_name():
    model = m.lora("llama")

    def token_mean(model, part):
        return model(**part).loss

    with (
        trainer(model, token_mean) as t,
        pytest.raises(ConfigurationError, match="one record changes every other"),
    ):
        t.rehearse(m.batch("llama"))


def test_a_token_mean_in_disguise_is_found():
    def disguised(model, part):
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[
            :, :-1
        ]
        each = nn.functional.cross_entropy(
            logits.transpose(1, 2), part["labels"][:, 1:], reduction="none"
        )
        return each.sum(1) / (part["labels"][:, 1:] != -100).sum()

    with (
        trainer(m.lora("llama"), disguised) as t,
        pytest.raises(TrainingError, match="couples records"),
    ):
        t.rehearse(m.batch("llama"))


def test_bad_losses():
    model, data = m.mixed(), m.mixed_batch()
    for loss, error in (
        (lambda model, part: m.mixed_loss(model, part)[:-1], "one value a record"),
        (lambda model, part: m.mixed_loss(model, part)[:, None], "one value a record"),
        (lambda model, part: 1.0, "floating-point tensor"),
        (lambda model, part: part["y"], "floating-point tensor"),
    ):
        with trainer(model, loss) as t, pytest.raises(ConfigurationError, match=error):
            t.rehearse(data)
    with (
        trainer(model, lambda model, part: part["x"].sum((1, 2))) as t,
        pytest.raises(TrainingError, match="any train"),
    ):
        t.rehearse(data)


@pytest.mark.parametrize(
    "data",
    [
        [torch.zeros(2)],
        {"x": [1, 2]},
        {"x": torch.tensor(1.0)},
        {"x": torch.zeros(2, 4, 6), "y": torch.zeros(3)},
        {**m.mixed_batch(2), "present": torch.tensor([1, 0])},
        {**m.mixed_batch(2), "present": torch.ones(2, 1, dtype=torch.bool)},
        {**m.mixed_batch(2), "present": torch.ones(3, dtype=torch.bool)},
    ],
)
def test_bad_batches(data):
    with trainer(m.mixed(), m.mixed_loss, dummies=m.mixed_batch()) as t:
        with pytest.raises(ConfigurationError, match="row"):
            t.step(data)
        with pytest.raises(ConfigurationError, match="row"):
            t.rehearse(data)


def test_an_error_in_a_step_leaves_nothing_for_the_next():
    model, data = m.mixed(), m.mixed_batch()
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    optimizer, calls = m.recorder(model), []

    def breaks(model, part):
        calls.append(1)
        out = m.mixed_loss(model, part)
        if len(calls) == 2 + 3:
            raise KeyboardInterrupt
        return out

    settings = {"max_grad_norm": 0.5, "physical_batch_size": 4, "dummies": data}
    with trainer(model, breaks, optimizer=optimizer, **settings) as t:
        with pytest.raises(KeyboardInterrupt):
            t.step(data)
        t.step(data)
    assert m.gap(optimizer.seen[0], expected) < 1e-12
