"""The head's own stage: it returns the mean of its last iterates."""

import numpy as np
import pytest
import torch
from closeness import close
from small_jobs import make_job

from fedtree_dp import NoiseSource
from fedtree_secure import Training
from fedtree_secure.client.head import train_head
from fedtree_secure.client.mechanism import Mechanism


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
    train_head(
        features,
        labels,
        head,
        job,
        Mechanism(0.0, records=40, steps=steps),
        NoiseSource.from_os(),
        lambda: None,
    )
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
    assert close(got, expected, 1e-4)  # Adam divides by small second moments
