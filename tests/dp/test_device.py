"""The engine on every device that is there: the sums, the noise and the weights stay on it."""

from __future__ import annotations

import dp_models as m
import pytest
import torch
from engine_case import SETTINGS

from fedtree_dp import DPSGD

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("engine", ["fused", "hooks"]),
]


def on(device, data):
    return {name: value.to(device) for name, value in data.items()}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_sums_are_those_of_plain_autograd_on_the_cpu(device, engine, kind):
    expected = m.reference(m.lora(kind), m.loss, m.batch(kind), 0.5)
    model = m.lora(kind).to(device)
    optimizer = m.recorder(model, 1e-5)
    settings = {**SETTINGS, "max_grad_norm": 0.5, "engine": engine, "noise": m.noise()}
    with DPSGD(model, optimizer, m.loss, physical_batch_size=3, **settings) as trainer:
        trainer.rehearse(m.batch(kind))
        trainer.step(on(device, m.batch(kind)))
    assert {g.device.type for g in optimizer.seen[0]} == {device}
    assert m.gap([g.cpu() for g in optimizer.seen[0]], expected) < 1e-6


def test_noise_is_the_same_on_every_device_and_added_there(device, engine):
    """A source is drawn on the CPU, so that a key gives one noise whatever the device."""
    moved = {}
    for place in ("cpu", device):
        model = m.lora("bert").to(place)
        optimizer = m.recorder(model, 1e-5)
        settings = {
            **SETTINGS,
            "noise_multiplier": 2.0,
            "engine": engine,
            "noise": m.noise("device"),
        }
        with DPSGD(model, optimizer, m.loss, **settings) as trainer:
            trainer.rehearse(m.batch("bert"))
            trainer.step(on(place, m.batch("bert")))
        moved[place] = [g.cpu() for g in optimizer.seen[0]]
    assert m.gap(moved[device], moved["cpu"]) < 1e-6
    quiet = m.reference(m.lora("bert"), m.loss, m.batch("bert"), SETTINGS["max_grad_norm"])
    assert (
        torch.cat([(a - b).flatten() for a, b in zip(moved[device], quiet, strict=True)]).std()
        > 1.0
    )
