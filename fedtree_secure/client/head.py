"""The head alone: DP-SGD on cached features of the frozen backbone, at home."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedtree_dp import DPSGD, NoiseSource, PoissonSampler
from fedtree_dp.sgd.shapes import Buckets, PhysicalBatch, plan_slots
from fedtree_dp.sgd.units import plan_units, units_at_once
from fedtree_secure.client.mechanism import Mechanism, Tick
from fedtree_secure.client.seats import check_units, marks_of
from fedtree_secure.config import Job

Members = Sequence[Sequence[int]] | None
HEAD_ROWS = 257  # of a physical batch of features, the last a dummy


def train_head(
    features: torch.Tensor,
    labels: "np.ndarray[Any, Any]",
    head: nn.Module,
    job: Job,
    mechanism: Mechanism,
    noise: NoiseSource,
    tick: Tick,
    members: Members = None,
) -> None:
    """Train the trainable end of a head alone on cached features of the frozen backbone, in place.

    The result is the mean of the iterates of the second half of the steps (Polyak and Juditsky
    1992; under DP-SGD De et al. 2204.13650, section 3): it only processes what the steps gave
    already, and averages their noise out.

    Args:
        features: (rows, in_features) what the head's end sees.
        labels: (rows,) positions in the label set.
        members: For each unit its rows, where the job protects units (`Table.members`).
    """
    settings = job.training
    check_units(job, members)
    head.requires_grad_(True)
    drawn_from = len(features) if members is None else len(members)
    sampler = PoissonSampler(drawn_from, settings.head_sample_rate, noise)
    targets = torch.from_numpy(labels).to(features.device)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch["features"]), batch["labels"], reduction="none")

    with DPSGD(
        head,
        torch.optim.Adam(head.parameters(), lr=settings.head_learning_rate),
        loss,
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=settings.max_grad_norm,
        expected_batch_size=settings.head_sample_rate * mechanism.records,
        physical_batch_size=HEAD_ROWS,
        noise=noise,
    ) as engine:
        engine.rehearse(_public_features(features.shape[1], job.seed))
        half, tail = mechanism.steps // 2, [torch.zeros_like(p) for p in head.parameters()]
        for step in range(mechanism.steps):
            plan = _plan(len(features), members, sampler.draw(), noise, head)
            engine.step(_feature_batches(features, targets, plan))
            if step >= half:
                for total, p in zip(tail, head.parameters(), strict=True):
                    total.add_(p.detach())
            tick()
    head.requires_grad_(False)
    if mechanism.steps:
        for total, p in zip(tail, head.parameters(), strict=True):
            p.copy_(total / (mechanism.steps - half))


def _public_features(width: int, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng([seed, 0xE])
    drawn = torch.from_numpy(rng.normal(size=(1, width))).float().repeat(2, 1)
    return {"features": drawn, "labels": torch.arange(2)}


def _feature_batches(
    features: torch.Tensor,
    targets: torch.Tensor,
    plans: Sequence[PhysicalBatch],
) -> Iterator[dict[str, torch.Tensor]]:
    """Physical batches of `HEAD_ROWS` rows; dummies are zeros."""
    for plan in plans:
        present = torch.from_numpy(plan.present).to(features.device)
        rows = torch.tensor(plan.rows, device=features.device).clamp(min=0)
        yield {
            "features": features[rows].masked_fill(~present[:, None], 0.0),
            "labels": targets[rows],
            "present": present,
        } | marks_of(plan, features.device)


def _plan(
    rows: int,
    members: Members,
    drawn: "np.ndarray[Any, np.dtype[np.int64]]",
    noise: NoiseSource,
    head: nn.Module,
) -> list[PhysicalBatch]:
    lengths, buckets = [1] * rows, Buckets((1,))
    if members is None:
        return plan_slots(lengths, drawn, buckets, HEAD_ROWS, noise)
    at_once = units_at_once(sum(p.numel() for p in head.parameters()))
    return plan_units(lengths, members, drawn, buckets, HEAD_ROWS, noise, at_once=at_once)
