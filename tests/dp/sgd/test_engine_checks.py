"""DPSGD: what must train does, what would be wrong is found, and the model is left as it
was found.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import dp_models as m
import pytest
import torch
from closeness import close
from engine_case import SETTINGS, clipped_sum, engine, trainer  # noqa: F401
from peft import PeftModel
from torch import nn

from fedtree_dp import ConfigurationError, TrainingError

# -- what is trained -------------------------------------------------------------------------------


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
        t.rehearse(m.batch("bert"))


def test_an_adapter_that_is_not_used_is_found():
    model = m.lora("bert")
    with (
        trainer(model) as t,
        model.disable_adapter(),
        pytest.raises(TrainingError, match="any trainable"),
    ):
        t.rehearse(m.batch("bert"))


def test_a_parameter_that_is_not_used_is_found():
    loss = lambda model, part: model[0](part["x"]).flatten(1).sum(1)  # noqa: E731
    unused = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2)).double()
    with trainer(unused, loss) as t, pytest.raises(TrainingError, match=r"1\.weight.*Freeze"):
        t.rehearse({"x": m.mixed_batch()["x"]})


def test_weights_that_do_not_move_are_found():
    class Lazy(torch.optim.SGD):
        def step(self, closure=None):
            return None

    model = m.lora("bert")
    lazy = Lazy([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with trainer(model, optimizer=lazy) as t, pytest.raises(TrainingError, match="moved no weight"):
        t.rehearse(m.batch("bert"))
    still = Lazy(
        [p for p in model.parameters() if p.requires_grad], lr=0.0
    )  # a warm-up schedule may begin at 0
    with trainer(model, optimizer=still) as t:
        t.rehearse(m.batch("bert"))


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


def test_a_weight_used_outside_its_module_is_found():
    model = m.Outside().double()
    loss = lambda model, part: model(part["x"]).flatten(1).square().sum(1)  # noqa: E731
    with trainer(model, loss) as t, pytest.raises(TrainingError, match=r"layer\.weight"):
        t.rehearse({"x": m.mixed_batch()["x"]})


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
    with (
        trainer(kind().double(), loss) as t,
        pytest.raises(TrainingError, match="another number of rows"),
    ):
        t.rehearse({"x": m.mixed_batch()["x"]})


# -- the model stays the caller's ------------------------------------------------------------------


def test_the_model_is_left_as_it_was_found(tmp_path):
    model = m.lora("bert", torch.float32)
    model.train()
    modes = [module.training for module in model.modules()]
    assert m.traces(model) == []
    with trainer(
        model,
        optimizer=torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01),
        dummies=m.batch("bert"),
    ) as t:
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
    assert close(again(**m.batch("bert")).logits, logits, 1e-5)
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
    with trainer(model, dummies=data) as t:
        t.step(data)


def test_closing_after_an_error_cleans_up_too():
    model = m.lora("bert")
    with pytest.raises(RuntimeError, match="mine"), trainer(model):
        raise RuntimeError("mine")
    assert m.traces(model) == []


def test_training_learns():
    model, data = m.mixed(), m.mixed_batch(32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with trainer(
        model,
        m.mixed_loss,
        optimizer=optimizer,
        expected_batch_size=32,
        noise_multiplier=0.1,
        dummies=m.mixed_batch(),
    ) as t:
        losses = [t.step(data).mean_loss for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]


def test_reports_are_not_released_by_accident():
    data = {**m.mixed_batch(9)}
    _, report = clipped_sum(m.mixed(), m.mixed_loss, data, 0.5)
    assert report.records == 9
    for text in (repr(report), str(report), f"{report}", f"{[report]}"):
        assert "StepReport(private)" in text
        assert not any(character.isdigit() for character in text)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            copied(report)


def test_no_warning_is_hidden():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipped_sum(m.lora("bert"), m.loss, m.batch("bert"), 1.0)
