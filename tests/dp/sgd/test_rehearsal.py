"""Guards run on public records, before a step, and leave no trace."""

from __future__ import annotations

import math
import threading

import dp_models as m
import pytest
import torch
from engine_case import SETTINGS, clipped_sum, engine, trainer  # noqa: F401

from fedtree_dp import ConfigurationError, TrainingError


def adam(model):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)


def everything(model, optimizer):
    """Copies of weights and optimizer state, and the identities of the state's tensors."""
    weights = [p.detach().clone() for p in model.parameters()]
    held = [t for state in optimizer.state.values() for t in state.values()]
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return weights, [t.clone() for t in held], [id(t) for t in held], groups


def same(one, two) -> bool:
    tensors = all(torch.equal(a, b) for i in (0, 1) for a, b in zip(one[i], two[i], strict=True))
    return tensors and one[2:] == two[2:]


def test_hostile_a_step_before_a_rehearsal_is_refused_unread():
    def parts():
        raise AssertionError("the batch was read")
        yield

    with trainer(m.mixed(), m.mixed_loss) as t:
        with pytest.raises(ConfigurationError, match="rehearse"):
            t.step(parts())
        t.rehearse(m.mixed_batch())
        assert t.step(m.mixed_batch()).records == 9


def test_a_failed_rehearsal_does_not_count():
    with trainer(m.mixed(), m.mixed_loss) as t:
        with pytest.raises(ConfigurationError, match="two public records"):
            t.rehearse(m.mixed_batch(1))
        with pytest.raises(ConfigurationError, match="rehearse"):
            t.step(None)


@pytest.mark.parametrize("few", [{}, {**m.mixed_batch(3), "present": torch.arange(3) == 1}])
def test_a_rehearsal_needs_two_records(few):
    with (
        trainer(m.mixed(), m.mixed_loss) as t,
        pytest.raises(ConfigurationError, match="two public records"),
    ):
        t.rehearse(few)


def test_a_rehearsal_passes_over_dummies_of_its_own():
    data = {**m.mixed_batch(), "present": torch.arange(9) > 2}
    data["x"][:3] = math.nan
    with trainer(m.mixed(), m.mixed_loss, dummies=data) as t:
        assert t.step(None).records == 0


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_and_optimizer_are_left_bit_for_bit(kind):
    model = m.lora(kind)
    optimizer = adam(model)
    with trainer(model, optimizer=optimizer, dummies=m.batch(kind)) as t:
        assert not optimizer.state
        t.step(m.batch(kind))
        before = everything(model, optimizer)
        assert before[1]
        t.rehearse(m.batch(kind, seed=4))
        assert same(everything(model, optimizer), before)
        assert all(p.grad is None and p.summed_grad is None for _, p in t._named)


class Fails(torch.optim.Adam):
    """Spoils its weights and state, then raises, once it is told to."""

    fails = False

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        if self.fails:
            for p, state in self.state.items():
                p.fill_(7.0)
                state["exp_avg"].fill_(7.0)
            raise RuntimeError("mine")


@pytest.mark.parametrize("scheduled", [False, True])
def test_hostile_a_rehearsal_that_raises_leaves_them_too(scheduled):
    model = m.mixed()
    optimizer = Fails([p for p in model.parameters() if p.requires_grad], lr=0.01)
    if scheduled:  # wraps `step` of the instance, for the original
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with trainer(model, m.mixed_loss, optimizer=optimizer, dummies=m.mixed_batch()) as t:
        t.step(m.mixed_batch())
        before = everything(model, optimizer)
        optimizer.fails = True
        with pytest.raises(RuntimeError, match="mine"):
            t.rehearse(m.mixed_batch())
        assert same(everything(model, optimizer), before)


def test_a_rehearsal_leaves_steps_and_noise_as_they_were():
    settings = {"noise_multiplier": 1.0}
    once, _ = clipped_sum(m.mixed(), m.mixed_loss, m.mixed_batch(), 0.5, **settings)
    model = m.mixed()
    optimizer = m.recorder(model, lr=1e-5)
    with trainer(model, m.mixed_loss, optimizer=optimizer, max_grad_norm=0.5, **settings) as t:
        for _ in range(3):
            t.rehearse(m.mixed_batch(4))
        t.step(m.mixed_batch())
    assert len(optimizer.seen) == 1
    assert m.gap(optimizer.seen[0], once) == 0.0


@pytest.mark.parametrize("value", [1e30, math.inf, math.nan])
@pytest.mark.parametrize("kind", m.KINDS)
def test_hostile_weights_without_finite_gradients_are_unusable(kind, value):
    model = m.lora(kind, torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.mul_(value)
    with trainer(model) as t, pytest.raises(TrainingError, match="received are unusable"):
        t.rehearse(m.batch(kind))


def test_every_rehearsal_looks_at_the_weights_of_its_time():
    model = m.lora("bert", torch.float32)
    with trainer(model, dummies=m.batch("bert")) as t:
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "lora_A" in n).fill_(math.nan)
        with pytest.raises(TrainingError, match="received are unusable"):
            t.rehearse(m.batch("bert"))


def test_an_optimizer_that_cannot_be_copied_is_refused():
    model = m.mixed()
    optimizer = m.recorder(model)
    optimizer.lock = threading.Lock()
    with (
        trainer(model, m.mixed_loss, optimizer=optimizer) as t,
        pytest.raises(ConfigurationError, match="Recorder cannot be copied"),
    ):
        t.rehearse(m.mixed_batch())


def test_a_rehearsal_passes_where_the_model_is_sure_of_its_dummies():
    """Gradients of 1e-12 are a signal; noise will move the weights whatever their size."""
    model, data = m.lora("bert", torch.float32), m.batch("bert")

    def sure(model, part):
        return m.loss(model, part) * 1e-12

    with trainer(model, sure, dummies=data) as t:
        assert not t.step(data).failed
