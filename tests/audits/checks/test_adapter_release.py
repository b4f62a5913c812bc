"""The attack on weights does what its prediction says, and reads nothing but the shipped files."""

import json
import shutil

import numpy as np
import pytest
import torch

from fedtree_audits.checks import adapter_release
from fedtree_audits.report.page import write
from fedtree_audits.rigs import weight_attack
from fedtree_audits.rigs.engines import Build
from fedtree_audits.statistics.verdict import Verdict
from fedtree_dp import PoissonGaussian


def test_adams_weights_are_those_of_torchs_adam():
    """Noise of one size in many coordinates: how much of each step's gradient is in the final
    value.
    """
    given = torch.from_numpy(np.random.default_rng(0).normal(size=(25, 60_000)))
    value = torch.nn.Parameter(torch.zeros(60_000, dtype=torch.float64))
    adam = torch.optim.Adam([value], lr=1.0)
    for gradient in given:
        value.grad = gradient
        adam.step()
    found = -(given * value.detach()).mean(dim=1).numpy()
    weights = weight_attack.adam_weights(25)
    assert np.corrcoef(found, weights)[0, 1] > 0.97
    assert found[3:].sum() == pytest.approx(weights[3:].sum(), rel=0.15)
    assert (
        np.corrcoef(found, np.ones(25) + np.arange(25) / 1e9)[0, 1] < 0.0
    )  # steps do not count equally


def test_weights_add_up_to_the_steps():
    for steps in (1, 2, 30, 200):
        assert weight_attack.adam_weights(steps).sum() == pytest.approx(steps)


def simulated(rows, event, canaries, seed):
    """Scores of the linear model that the attack assumes."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    weights, move = weight_attack.adam_weights(event.steps), 0.0
    for weight in weights:
        drawn = np.flatnonzero(included & (rng.random(canaries) < event.sample_rate))
        noise = rng.normal(size=rows.shape[1]) * event.noise_multiplier
        move = move + weight * (rows[drawn].sum(axis=0) + noise)
    shipped = {"B": torch.from_numpy(-move.reshape(-1, 4))}
    scores = weight_attack.weight_scores(shipped, {"B": rows}, event, rank=4, learning_rate=1.0)[
        :canaries
    ]
    spread = np.sqrt((scores[included].var() + scores[~included].var()) / 2)
    return (scores[included].mean() - scores[~included].mean()) / spread


def test_the_expected_shift_is_what_the_linear_model_shows():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(260, 800)) + rng.normal(size=800)  # with something in common
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    event = PoissonGaussian(2.0, 0.4, 20)
    expected = weight_attack.expected_shift({"B": rows}, event, 200)
    found = np.mean([simulated(rows, event, 200, seed) for seed in range(30)])
    assert found == pytest.approx(expected, abs=0.08)
    assert (
        weight_attack.expected_shift({"B": rows}, PoissonGaussian(8.0, 0.4, 20), 200) < expected / 2
    )


def test_what_is_released_can_be_attacked_and_drawn(tmp_path):
    """A short, noisy training: everything runs, nothing is claimed that was not measured."""
    result = adapter_release.audit_build(
        Build(), PoissonGaussian(4.0, 0.5, 3), 1e-5, bytes(32), canaries=60, control=False
    )
    assert not any(check.name.startswith("twin") for check in result.checks)
    found = result.figures["membership"]["with DP"]["losses"]
    assert "at least 1000 are needed" in found["tpr_at_0.001"]
    assert len(found["tpr_at_0.01"]) == 3
    assert result.verdict is Verdict.INCONCLUSIVE  # 60 canaries cannot see twice the claim
    made = write(result, tmp_path)
    assert json.loads(made[0].read_text())["figures"]["curves"][0]["lines"]["with DP"]
    assert made[2].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_rounds_is_inconclusive(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for path in copy.glob("clients/*/noise.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rounds": 0.0}))
    result = adapter_release.AUDIT.audit(copy)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no rounds" in result.missing[0]
