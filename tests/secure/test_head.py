"""The head: its own stage returns the mean of its last iterates; in the rounds it moves at the adapters' rate."""

import numpy as np
import pytest
import torch
from small_jobs import make_job, rows

from fedtree_dp import NoiseSource
from fedtree_secure import Client, Training
from fedtree_secure.backbone import Backbone
from fedtree_secure.data import prepare
from fedtree_secure.seat import fresh_belongings
from fedtree_secure.training import train_head, train_round


def fixture(classes=3, rows=40, width=6):
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=rows)
    features = torch.from_numpy(rng.normal(size=(rows, width)).astype(np.float32))
    features[:, :classes] += 2 * torch.nn.functional.one_hot(torch.from_numpy(labels), classes)
    head = torch.nn.Linear(width, classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return features, labels, head


def trained(steps):
    features, labels, head = fixture()
    job = make_job("unused", training=Training(records=40, head_steps=steps, head_sample_rate=1.0))
    train_head(features, labels, head, job, noise_multiplier=0.0, records=40,
               noise=NoiseSource.from_os(), tick=lambda: None)  # fmt: skip
    assert not any(p.requires_grad for p in head.parameters())
    return head


def iterates(steps):
    """The same steps by hand: all rows, clipped to norm 1, Adam."""
    features, labels, head = fixture()
    adam, found = torch.optim.Adam(head.parameters(), lr=Training().head_learning_rate), []
    for _ in range(steps):
        total = [torch.zeros_like(p) for p in head.parameters()]
        for x, y in zip(features, torch.from_numpy(labels), strict=True):
            loss = torch.nn.functional.cross_entropy(head(x[None]), y[None])
            row = torch.autograd.grad(loss, list(head.parameters()))
            norm = torch.stack([g.norm() for g in row]).norm()
            for t, g in zip(total, row, strict=True):
                t.add_(g / norm.clamp(min=1))
        for p, t in zip(head.parameters(), total, strict=True):
            p.grad = t / 40
        adam.step()
        found.append(torch.nn.utils.parameters_to_vector(head.parameters()).detach().clone())
    return found


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_head_is_the_mean_of_the_second_half_of_its_iterates(steps):
    expected = torch.stack(iterates(steps)[steps // 2 :]).mean(0)
    got = torch.nn.utils.parameters_to_vector(trained(steps).parameters())
    assert torch.allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(("head_steps", "rate"), [(5, 1e-3), (0, 0.5)])
def test_in_the_rounds_a_trained_head_moves_at_the_adapters_rate(tiny_bert, head_steps, rate):
    """Adam's first step moves every value by its rate; a head without steps of its own must still learn quickly."""
    training = Training(records=30, sample_rate=1.0, learning_rate=1e-3, head_learning_rate=0.5, head_steps=head_steps)
    backbone = Backbone(make_job(tiny_bert, training=training))
    data = prepare(Client("a", train=rows(0, 30, 1), records=30), backbone.job, backbone.tokenizer)
    mine, depth = fresh_belongings(backbone, 2), backbone.experts.depth
    before = {name: value.copy() for name, value in mine.head.items()}
    train_round(
        backbone, backbone.job, data, mine, shares=[True] * depth, mixing=np.zeros(depth, dtype=bool),
        noise_multiplier=5.0, records=30, steps=1, upload_gradient=True, noise=NoiseSource.from_os(), tick=lambda: None,
    )  # fmt: skip
    moved = np.concatenate([np.abs(mine.head[name] - before[name]).ravel() for name in before])
    assert np.median(moved) == pytest.approx(rate, rel=0.01)
