"""DPSGD: exact clipped sums, noise once a step, a public divisor, and a model that is left as it was found."""

from __future__ import annotations

import math
import warnings

import dp_models as m
import pytest
import torch
from peft import PeftModel
from scipy import stats
from torch import nn

from fedtree_dp import DPSGD, ConfigurationError, NoiseSource, TrainingError, per_sequence_loss


@pytest.fixture(params=["fused", "hooks"], autouse=True)
def engine(request, monkeypatch):
    """Every test runs on both engines."""
    monkeypatch.setitem(SETTINGS, "engine", request.param)


SETTINGS = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": 1.0}


def trainer(model, loss=m.loss, *, optimizer=None, **settings):
    return DPSGD(model, optimizer or m.recorder(model), loss, **{**SETTINGS, "noise": m.noise(), **settings})


def clipped_sum(model, loss, data, bound, **settings):
    optimizer = m.recorder(model, lr=1e-5)
    with trainer(model, loss, optimizer=optimizer, max_grad_norm=bound, **settings) as t:
        report = t.step(data)
    return optimizer.seen[0], report


@pytest.mark.parametrize("kind", m.KINDS)
@pytest.mark.parametrize("bound", [0.05, 1.0, 1e3])
def test_clipped_sums_equal_a_per_example_loop(kind, bound):
    model, data = m.lora(kind), m.batch(kind)
    expected = m.reference(model, m.loss, data, bound)
    got, report = clipped_sum(model, m.loss, data, bound, physical_batch_size=3)
    assert m.gap(got, expected) < 1e-6
    assert report.records == 7
    assert report.dropped_nonfinite == 0
    assert report.clipped_fraction == (0.0 if bound == 1e3 else 1.0 if bound == 0.05 else report.clipped_fraction)
    assert report.mean_loss == pytest.approx(float(m.loss(model.eval(), data).detach().mean()), rel=1e-3)


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
    got, report = clipped_sum(m.mixed(), m.mixed_loss, poisoned, 0.5, physical_batch_size=limit)
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, rest, 0.5, physical_batch_size=1)
    assert report.dropped_nonfinite == 1
    assert report.records == 9
    assert math.isfinite(report.mean_loss)
    assert m.gap(got, expected) < 1e-12


def test_a_finite_gradient_under_an_infinite_loss_is_dropped_too():
    def loss(model, part):
        return m.mixed_loss(model, part) + torch.where(part["y"] == part["y"], math.inf, 0.0)

    got, report = clipped_sum(m.mixed(), loss, m.mixed_batch(), 0.5)
    assert report.dropped_nonfinite == 9
    assert report.mean_loss is None
    assert all(not g.any() for g in got)


def test_one_record_moves_the_sum_by_at_most_the_bound():
    data = m.mixed_batch()
    full, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    for i in range(9):
        rest = {k: torch.cat([v[:i], v[i + 1 :]]) for k, v in data.items()}
        less, _ = clipped_sum(m.mixed(), m.mixed_loss, rest, 0.5)
        assert torch.stack([(a - b).norm() for a, b in zip(full, less, strict=True)]).norm() <= 0.5 * (1 + 1e-12)


def test_rounding_cannot_lift_a_record_above_the_bound():
    model = m.mixed().float()
    data = {k: v.float() if v.is_floating_point() else v for k, v in m.mixed_batch(60).items()}
    for i in range(60):
        got, _ = clipped_sum(model, m.mixed_loss, {k: v[i : i + 1] for k, v in data.items()}, 0.7)
        assert math.fsum(float(g.double().square().sum()) for g in got) <= 0.7**2


def test_a_logical_batch_may_come_in_parts():
    data = m.batch("bert")
    short = {k: (v[:3, :8] if v.ndim > 1 else v[:3]) for k, v in data.items()}
    short["attention_mask"][:, -1] = 1
    rest = {k: v[3:] for k, v in data.items()}
    one, _ = clipped_sum(m.lora("bert"), m.loss, short, 1.0)
    two, _ = clipped_sum(m.lora("bert"), m.loss, rest, 1.0)
    both, report = clipped_sum(m.lora("bert"), m.loss, (part for part in (short, rest)), 1.0, physical_batch_size=2)
    assert m.gap(both, [a + b for a, b in zip(one, two, strict=True)]) < 1e-9
    assert report.records == 7


@pytest.mark.parametrize(
    "nothing", [None, {}, [], [{}], {"x": torch.zeros(0, 4, 6), "y": torch.zeros(0, dtype=torch.long)}]
)
def test_an_empty_batch_is_a_step_of_noise(nothing):
    model = m.mixed()
    optimizer, before = m.recorder(model), [p.detach().clone() for p in model.parameters()]

    def never(model, part):
        raise AssertionError("no forward pass without records")

    with trainer(model, never, optimizer=optimizer, noise_multiplier=1.0) as t:
        report = t.step(nothing)
    assert (report.records, report.clipped_fraction, report.mean_loss) == (0, 0.0, None)
    assert all(g.any() for g in optimizer.seen[0])
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_noise_is_added_once_a_step_whatever_the_micro_batches(limit):
    data = m.mixed_batch()
    plain, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    noisy, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5, noise_multiplier=2.0, physical_batch_size=limit)
    draw = m.noise().normal(sum(g.numel() for g in noisy), 1.0, torch.float64)
    assert m.gap([torch.cat([(a - b).flatten() for a, b in zip(noisy, plain, strict=True)])], [draw]) < 1e-6


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(500, 200, bias=False)

    def forward(self, x):
        return self.head(x)


def test_noise_has_the_stated_scale_and_the_test_has_power():
    model = Wide()
    got, _ = clipped_sum(model, m.mixed_loss, None, 2.0, noise_multiplier=0.75, expected_batch_size=8.0)
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
            m.mixed(), m.mixed_loss, m.mixed_batch(), 0.5, noise_multiplier=1.0, noise=NoiseSource.from_os()
        )

    assert m.gap(run()[0], run()[0]) > 0.1


def test_the_divisor_is_public():
    data = m.mixed_batch()
    few = {k: v[:5] for k, v in data.items()}
    for part in (data, few):
        one, _ = clipped_sum(m.mixed(), m.mixed_loss, part, 0.5)
        many, _ = clipped_sum(m.mixed(), m.mixed_loss, part, 0.5, expected_batch_size=16.0, physical_batch_size=2)
        assert m.gap([16 * g for g in many], one) < 1e-12


@pytest.mark.parametrize("name", ["expected_batch_size", "max_grad_norm", "noise_multiplier", "physical_batch_size"])
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

    with trainer(model, token_mean) as t, pytest.raises(ConfigurationError, match="one record changes every other"):
        t.step(m.batch("llama"))


def test_a_token_mean_in_disguise_is_found():
    def disguised(model, part):
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.transpose(1, 2), part["labels"][:, 1:], reduction="none")
        return each.sum(1) / (part["labels"][:, 1:] != -100).sum()

    with trainer(m.lora("llama"), disguised) as t, pytest.raises(TrainingError, match="couples records"):
        t.step(m.batch("llama"))


def test_bad_losses():
    model, data = m.mixed(), m.mixed_batch()
    for loss, error in (
        (lambda model, part: m.mixed_loss(model, part)[:-1], "one value a record"),
        (lambda model, part: m.mixed_loss(model, part)[:, None], "one value a record"),
        (lambda model, part: 1.0, "floating-point tensor"),
        (lambda model, part: part["y"], "floating-point tensor"),
    ):
        with trainer(model, loss) as t, pytest.raises(ConfigurationError, match=error):
            t.step(data)
    with (
        trainer(model, lambda model, part: part["x"].sum((1, 2))) as t,
        pytest.raises(TrainingError, match="any train"),
    ):
        t.step(data)


@pytest.mark.parametrize(
    "data",
    [[torch.zeros(2)], {"x": [1, 2]}, {"x": torch.tensor(1.0)}, {"x": torch.zeros(2, 4, 6), "y": torch.zeros(3)}],
)
def test_bad_batches(data):
    with trainer(m.mixed(), m.mixed_loss) as t, pytest.raises(ConfigurationError, match="row"):
        t.step(data)


def test_an_error_in_a_step_leaves_nothing_for_the_next():
    model, data = m.mixed(), m.mixed_batch()
    expected, _ = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    optimizer, calls = m.recorder(model), []

    def breaks(model, part):
        calls.append(1)
        out = m.mixed_loss(model, part)
        if len(calls) == 3:
            raise MemoryError
        return out

    with trainer(model, breaks, optimizer=optimizer, max_grad_norm=0.5, physical_batch_size=4) as t:
        with pytest.raises(MemoryError):
            t.step(data)
        t.step(data)
    assert m.gap(optimizer.seen[0], expected) < 1e-12


# -- what is trained -----------------------------------------------------------------------------------------------


def test_lora_with_zero_b_trains():
    model, data = m.lora("bert", b_zero=True), m.batch("bert")
    expected = m.reference(model, m.loss, data, 1.0)
    got, _ = clipped_sum(model, m.loss, data, 1.0)
    assert m.gap(got, expected) < 1e-6


def test_lora_that_cannot_train_is_found():
    model = m.lora("bert", modules_to_save=None)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.zeros_(p)
    with trainer(model) as t, pytest.raises(TrainingError, match="820"):
        t.step(m.batch("bert"))


def test_an_adapter_that_is_not_used_is_found():
    model = m.lora("bert")
    with trainer(model) as t, model.disable_adapter(), pytest.raises(TrainingError, match="any trainable"):
        t.step(m.batch("bert"))


def test_a_parameter_that_is_not_used_is_found():
    loss = lambda model, part: model[0](part["x"]).flatten(1).sum(1)  # noqa: E731
    unused = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2)).double()
    with trainer(unused, loss) as t, pytest.raises(TrainingError, match=r"1\.weight.*Freeze"):
        t.step({"x": m.mixed_batch()["x"]})


def test_weights_that_do_not_move_are_found():
    class Lazy(torch.optim.SGD):
        def step(self, closure=None):
            return None

    model = m.lora("bert")
    lazy = Lazy([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with trainer(model, optimizer=lazy) as t, pytest.raises(TrainingError, match="moved no weight"):
        t.step(m.batch("bert"))
    still = Lazy([p for p in model.parameters() if p.requires_grad], lr=0.0)  # a warm-up schedule may begin at 0
    with trainer(model, optimizer=still) as t:
        t.step(m.batch("bert"))


def test_an_optimizer_over_other_parameters_is_refused():
    model = m.lora("bert")
    stale = m.recorder(m.lora("bert"))
    with pytest.raises(ConfigurationError, match="820"):
        trainer(model, optimizer=stale)
    some = torch.optim.SGD(list(model.parameters())[-2:], lr=0.1)
    with pytest.raises(ConfigurationError, match="missing"):
        trainer(model, optimizer=some)


def test_nothing_to_train_is_refused():
    model = m.mixed().requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        trainer(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.w


def test_modules_without_grad_sampler_are_refused():
    with pytest.raises(ConfigurationError, match="register_grad_sampler"):
        trainer(nn.Sequential(Odd(), nn.Linear(6, 2)))
    with pytest.raises(ConfigurationError, match="BatchNorm1d"):
        trainer(nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ConfigurationError, match="buffers"):
        trainer(nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True)))


def test_float16_is_refused():
    with pytest.raises(ConfigurationError, match="float16"):
        trainer(nn.Linear(2, 2).half())
    with pytest.raises(ConfigurationError, match="loss scaling"):
        trainer(nn.Sequential(nn.Linear(2, 2).half().requires_grad_(False), nn.Linear(2, 2)))


class Outside(nn.Module):
    """Uses a layer's weight without calling the layer as well: no hook sees that half of the gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x) + nn.functional.linear(x, self.layer.weight)


def test_a_weight_used_outside_its_module_is_found():
    model = Outside().double()
    loss = lambda model, part: model(part["x"]).flatten(1).square().sum(1)  # noqa: E731
    with trainer(model, loss) as t, pytest.raises(TrainingError, match=r"layer\.weight"):
        t.step({"x": m.mixed_batch()["x"]})


class Positions(nn.Module):
    """Implicit position ids: one row for the whole batch."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 6)
        self.flat = nn.Linear(6, 2)

    def forward(self, x):
        return self.flat(x + self.table(torch.arange(4)[None]))


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat = nn.Linear(6, 2)

    def forward(self, x):
        return self.flat(x.view(-1, 6)).view(len(x), -1)


@pytest.mark.parametrize("kind", [Positions, Flattened])
def test_a_shared_or_flattened_batch_dimension_is_found(kind):
    loss = lambda model, part: model(part["x"]).flatten(1).square().sum(1)  # noqa: E731
    with trainer(kind().double(), loss) as t, pytest.raises(TrainingError, match="another number of rows"):
        t.step({"x": m.mixed_batch()["x"]})


# -- the model stays the caller's ----------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_found(tmp_path):
    model = m.lora("bert", torch.float32)
    model.train()
    modes = [module.training for module in model.modules()]
    assert m.traces(model) == []
    with trainer(model, optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)) as t:
        assert not model.training
        for _ in range(2):
            t.step(m.batch("bert"))
        model.train()  # a caller's habit; the next step is deterministic all the same
        t.step(m.batch("bert"))
    t.close()
    assert modes == [module.training for module in model.modules()]
    assert m.traces(model) == []
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    logits = model(**m.batch("bert")).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = m.quietly(PeftModel.from_pretrained, m.backbone("bert", torch.float32), tmp_path).eval()
    torch.testing.assert_close(again(**m.batch("bert")).logits, logits)
    with pytest.raises(ConfigurationError, match="closed"):
        t.step(None)


def test_the_same_model_serves_the_next_client():
    model, data = m.lora("bert"), m.batch("bert")
    start = {k: v.clone() for k, v in model.state_dict().items()}
    first, _ = clipped_sum(model, m.loss, data, 1.0)
    model.load_state_dict(start)
    second, _ = clipped_sum(model, m.loss, data, 1.0)
    assert m.gap(second, first) < 1e-12
    with trainer(model), pytest.raises(ConfigurationError, match="already being trained"):
        trainer(model)
    with trainer(model) as t:
        t.step(data)


def test_the_comparison_with_plain_autograd_is_made_once_for_a_model_and_loss():
    model, data, calls = m.mixed(), m.mixed_batch(), []

    def counted(model, part):
        calls.append(len(part["y"]))
        return m.mixed_loss(model, part)

    for _ in range(3):
        with trainer(model, counted) as t:
            t.step(data)
            t.step(data)
    assert calls == [9, 1, 9, 9, 9, 9, 9]
    model.head.requires_grad_(False)
    with trainer(model, counted) as t:
        t.step(data)
    assert calls[-2:] == [9, 1]


def test_closing_after_an_error_cleans_up_too():
    model = m.lora("bert")
    with pytest.raises(RuntimeError, match="mine"), trainer(model):
        raise RuntimeError("mine")
    assert m.traces(model) == []


def test_training_learns():
    model, data = m.mixed(), m.mixed_batch(32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with trainer(model, m.mixed_loss, optimizer=optimizer, expected_batch_size=32, noise_multiplier=0.1) as t:
        losses = [t.step(data).mean_loss for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_reports_are_not_released_by_accident():
    from fedtree_dp import StepReport

    assert "never to be released" in (StepReport.__doc__ or "")


def test_per_sequence_loss_depends_on_its_own_tokens_only():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, 2:] = -100
    labels[2] = -100
    all_three = per_sequence_loss(logits, labels)
    for i in range(3):
        torch.testing.assert_close(per_sequence_loss(logits[i : i + 1], labels[i : i + 1])[0], all_three[i])
    assert all_three[2] == 0
    assert per_sequence_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_no_warning_is_hidden():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipped_sum(m.lora("bert"), m.loss, m.batch("bert"), 1.0)
