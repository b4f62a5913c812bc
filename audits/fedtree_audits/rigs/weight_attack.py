"""Membership from final weights: an adapter's move, taken apart into the canaries' gradients.

Under DP-SGD with small noise-driven steps the move is about linear: the sum over steps of clipped
gradients of the records drawn, and Gaussian noise. The attacker knows every canary's gradient at
the public initial weights and solves for each one's share by ridge regression, so that what
canaries have in common is not counted for all of them. How far members' scores then lie from
non-members' follows from the gradients and the public settings alone (`expected_shift`); nothing
about power is read from scores that chance has touched.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedtree_audits.statistics.scores import Floats
from fedtree_dp import PoissonGaussian
from fedtree_dp.sgd.fused import FusedCapture
from fedtree_secure.testing import (
    Backbone,
    ClientState,
    LocalModel,
    Table,
    loaded_into,
    trainables,
)

BATCH = 256
BETA = 0.9  # of Adam: torch's default


def clipped_gradients(backbone: Backbone, mine: ClientState, table: Table) -> dict[str, Floats]:
    """Return each text's gradient at the client's weights over its joint norm, or over the clipping
    norm if larger.

    Args:
        backbone, mine: the model and what is loaded into it; a language model, all layers at home.
        table: texts.

    Returns:
        By the name that the factor has in the adapter's file, shape (texts, values).
    """
    depth = backbone.experts.depth
    alone = LocalModel(0, (False,) * depth, np.zeros(depth, dtype=bool))
    with loaded_into(backbone, mine, 0, alone.mixing):
        trainables(backbone, backbone.job, alone)
        named = [(name, p) for name, p in backbone.model.named_parameters() if p.requires_grad]
        capture, found = FusedCapture(backbone.model, named), []
        for start in range(0, len(table), BATCH):
            rows = range(start, min(len(table), start + BATCH))
            losses = backbone.loss(backbone.model, table.batch(rows, backbone.pad))
            found.append([g.flatten(1).double().numpy() for g in capture.backward(losses)])
        capture.close()
        backbone.model.requires_grad_(False)
    parts = [np.concatenate(column) for column in zip(*found, strict=True)]
    norms = np.linalg.norm(np.stack([np.linalg.norm(part, axis=1) for part in parts]), axis=0)
    scale = np.maximum(norms, backbone.job.training.max_grad_norm)[:, None]
    names = [f"base_model.model.{name.replace('.cluster.', '.')}" for name, _ in named]
    return {name: part / scale for name, part in zip(names, parts, strict=True)}


def weight_scores(
    shipped: Mapping[str, torch.Tensor],
    directions: Mapping[str, Floats],
    event: PoissonGaussian,
    *,
    rank: int,
    learning_rate: float,
) -> Floats:
    """Return each canary's share of an adapter's move, shape (canaries,).

    Args:
        shipped: tensors of the adapter's file. B starts at zero and A is frozen, so that B is the
            move; its first `rank` columns are the client's own expert where two are folded into
            one.
        directions: from `clipped_gradients`.
        event: what was accounted for.
        rank, learning_rate: of the job.
    """
    move = [
        shipped[name].double().numpy()[:, :rank].ravel() / -learning_rate for name in directions
    ]
    rows = np.concatenate(list(directions.values()), axis=1)
    return np.asarray(
        np.linalg.solve(
            rows @ rows.T + _penalty(event) * np.eye(len(rows)), rows @ np.concatenate(move)
        )
    )


def expected_shift(
    directions: Mapping[str, Floats], event: PoissonGaussian, canaries: int
) -> float:
    """Return the expected distance of members' and non-members' scores in standard deviations.

    Adam weighs steps unequally: those at the beginning count up to twice, the last ones a tenth.
    Scores vary by the noise, by the other canaries' coins and by how often a member was drawn.

    Args:
        directions: of all canaries that the regression is told about.
        event: what was accounted for.
        canaries: how many of them, the first ones, are in the data with probability 1/2.
    """
    rows = np.concatenate(list(directions.values()), axis=1)
    inverse = np.linalg.inv(rows @ rows.T + _penalty(event) * np.eye(len(rows)))
    hat = (
        np.eye(len(rows)) - _penalty(event) * inverse
    )  # answer of score i to the gradient of canary j
    weights, rate = adam_weights(event.steps), event.sample_rate
    signal, squared = rate * weights.sum(), float(weights @ weights)
    answer = np.diag(hat)[:canaries]
    noise = event.noise_multiplier**2 * squared * np.einsum("ij,ji->i", hat, inverse)[:canaries]
    others = signal**2 / 4 * ((hat[:canaries, :canaries] ** 2).sum(axis=1) - answer**2)
    drawn = rate * (1 - rate) * squared * answer**2
    variance = (noise + others).mean() + (
        drawn.mean() + (signal * answer).var()
    ) / 2  # half the canaries are members
    return float(signal * answer.mean() / np.sqrt(variance))


def adam_weights(steps: int) -> Floats:
    """Return how much each step's gradient counts in the sum of Adam's moves, shape (steps,).

    Kingma and Ba (2015), algorithm 1, with a second moment that noise of one size keeps constant.
    """
    counts = np.zeros(steps)
    for step in range(1, steps + 1):
        counts[:step] += (1 - BETA) * BETA ** np.arange(step - 1, -1, -1) / (1 - BETA**step)
    return counts


def _penalty(event: PoissonGaussian) -> float:
    """Variance of the summed noise over the square of a member's expected share."""
    return event.noise_multiplier**2 / (event.steps * event.sample_rate**2)
