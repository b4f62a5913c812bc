"""What the onlooker takes out of Adam's moves, and what the audit does with a run's settings."""

import json
import shutil

import numpy as np
import pytest
import torch

from fedtree_audits.checks import canary_client
from fedtree_audits.rigs import tiny
from fedtree_audits.rigs.broken import AnyGroup, any_group_opens
from fedtree_audits.rigs.federated import two_clusters
from fedtree_audits.run_folder import open_run
from fedtree_audits.statistics.verdict import Verdict
from fedtree_secure.testing import inside


def moved_by_adam(gradients, learning_rate):
    value = torch.nn.Parameter(torch.zeros(gradients.shape[1]))
    adam = torch.optim.Adam([value], lr=learning_rate)
    values = [value.detach().numpy().copy()]
    for gradient in gradients:
        value.grad = torch.from_numpy(gradient).float()
        adam.step()
        values.append(value.detach().numpy().copy())
    return np.array(values, dtype=np.float64)


def test_adams_momentum_is_taken_away():
    given = np.random.default_rng(0).normal(size=(10, 4000)) * np.geomspace(1e-3, 10, 4000)
    found = canary_client.sums_behind(moved_by_adam(given, 4e-3), 4e-3)
    for late in range(2, 10):
        assert np.corrcoef(found[late] / 1, given[late] / np.geomspace(1e-3, 10, 4000))[0, 1] > 0.9
        assert abs(np.corrcoef(found[late], found[late - 1])[0, 1]) < 0.1


def test_the_plain_moves_would_mix_rounds():
    """Why momentum is taken away at all: without it a round's move is mostly that of the round
    before.
    """
    given = np.random.default_rng(0).normal(size=(10, 4000))
    moves = np.diff(moved_by_adam(given, 4e-3), axis=0)
    assert np.corrcoef(moves[8], moves[7])[0, 1] > 0.6


def test_values_that_never_move_are_no_division_by_zero():
    assert np.array_equal(canary_client.sums_behind(np.ones((5, 3)), 1e-3), np.zeros((4, 3)))


def test_the_guard_is_back_after_a_broken_build():
    shipped = inside.graph.Plan, inside.party.tree_of

    def broken():
        with any_group_opens():
            assert inside.graph.Plan is AnyGroup
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert (inside.graph.Plan, inside.party.tree_of) == shipped


def test_two_clusters_share_a_trunk():
    tree = two_clusters(("a", "b", "c", "d", "e", "f"), 1, 3, 3, 3)
    assert tree.cuts == (1, 2, 2)
    assert tree.group_of("a", 2) == ("a", "b", "c")
    assert tree.externals_of("a", 2) == (("d", "e", "f"),)


def test_models_are_the_same_every_time_and_leave_torch_alone(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first, second = (tiny.write_model(tmp_path / name, "bert", layers=1, hidden=8) for name in "ab")
    assert torch.rand(1) == wanted
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_run_that_opened_nothing_is_inconclusive(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    summary = json.loads((copy / "summary.json").read_text())
    for record in summary["rounds"]:
        record["opened"] = {}
    (copy / "summary.json").write_text(json.dumps(summary))
    result = canary_client.AUDIT.audit(copy)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no sum that was opened" in result.missing[0]


def test_a_run_that_opened_two_clients_is_noticed(finished, tmp_path):
    assert canary_client.opened_groups(open_run(finished)).holds
    copy = shutil.copytree(finished, tmp_path / "copy")
    summary = json.loads((copy / "summary.json").read_text())
    record = next(r for r in summary["rounds"] if r["opened"])
    node = next(iter(record["opened"]))
    record["opened"][node] = record["opened"][node][:2]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert not canary_client.opened_groups(open_run(copy)).holds
