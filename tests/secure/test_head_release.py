"""The table of class sums against trained heads: its short cut takes the product's steps, and the
command runs on features that were kept.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import loaded_with_neighbours
from small_jobs import make_job

from fedtree_dp import NoiseSource
from fedtree_secure import Training
from fedtree_secure.client.head import train_head
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.model.heads import Centred

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROWS, WIDTH, CLASSES = 40, 6, 3


@pytest.fixture(scope="module")
def command():
    """The command as a module; its neighbours are on the path."""
    with loaded_with_neighbours(BENCHMARKS / "head_release.py") as module:
        yield module


def made_up(seed, task="diagnoses"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=2 * ROWS)
    features = rng.normal(size=(2 * ROWS, WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[labels]
    parts = torch.from_numpy(features).float(), torch.from_numpy(labels)
    return {
        "task": task,
        "classes": CLASSES,
        "train": parts[0][:ROWS],
        "labels": parts[1][:ROWS],
        "test": parts[0][ROWS:],
        "truth": parts[1][ROWS:],
    }


@pytest.fixture
def kept(tmp_path):
    """Two federations of made-up features, as a first call leaves them."""
    federations = [
        [made_up(10 * f + n, task) for task in ("a", "b") for n in range(3)] for f in range(2)
    ]
    place = tmp_path / "features.pt"
    torch.save({"federations": federations, "mean": torch.ones(WIDTH), "scale": 0.8}, place)
    return place


def test_closed_form_takes_the_products_steps(command, kept):
    public = command.seen(1, kept)
    rows = public.federations[0][0]
    job = make_job("m", training=Training(records=ROWS, head_steps=9, max_grad_norm=0.3))
    linear = torch.nn.Linear(WIDTH, CLASSES)
    first = command.initial(job, CLASSES, WIDTH)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(first[:, :-1]))
        linear.bias.zero_()
    head = Centred(linear, (torch.ones(WIDTH), 0.8))
    args = (torch.from_numpy(rows.train).float(), rows.labels, head, job)
    train_head(*args, Mechanism(0.0, ROWS, 9), NoiseSource.from_os(), lambda: None)
    expected = np.c_[linear.weight.detach().numpy(), linear.bias.detach().numpy()]
    found = command.trained(rows, public, job, 0.0, np.random.default_rng(0))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - first).max() > 0.1


def test_the_command_pairs_by_federation(command, kept, capsys, monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [*("x", "--features", str(kept), "--federations", "2"), *("--epsilons", "0.5", "8")],
    )
    monkeypatch.setattr(command, "DRAWS", 1)
    monkeypatch.setattr(command, "job_of", lambda epsilon, _: job_of(epsilon))
    command.main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["federations"] == 2
    rows = [line for line in lines if line.startswith("| 8 |")]
    assert [line.split("|")[2].strip() for line in rows] == ["a", "b", "all"]
    assert all("±" in line for line in rows)


def job_of(epsilon):
    from fedtree_dp import PrivacyBudget

    training = Training(records=ROWS, head_steps=5)
    return make_job(
        "m", privacy=PrivacyBudget(epsilon=epsilon, delta=1e-3), rounds=0, training=training
    )
