"""A finished run of the real thing on a tiny transformer with random weights, for audits to look
at.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from fedtree_secure import Client, Federation, Lora, Masking, PrivacyBudget, Topology, Training

sys.path.insert(0, str(Path(__file__).parent.parent))  # importlib mode adds no folder to the path
torch.set_num_threads(1)

from tiny_models import WORDS, write_bert  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def stores(tmp_path_factory):
    """Stores and heads of data sets; never in the user's own folder."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        yield place


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("tiny-bert"), layers=2)


def rows(task, count, seed):
    rng = np.random.default_rng([task, seed])
    labels = rng.integers(2, size=count)
    texts = [
        " ".join(rng.choice(WORDS[task * 100 + 40 * y : task * 100 + 40 * y + 40], size=6))
        for y in labels
    ]
    return Dataset.from_dict({"text": texts, "label": [f"class-{y}" for y in labels]})


@pytest.fixture(scope="session")
def finished(tiny_bert, stores, tmp_path_factory):
    """Folder of an auditable run: two rounds, six clients of two tasks, fingerprint tree; treat it
    as read-only.
    """
    job = Federation(
        backbone=str(tiny_bert),
        privacy=PrivacyBudget(epsilon=8, delta=1e-3),
        rounds=2,
        lora=Lora(r=2, alpha=4.0),
        training=Training(
            records=60, sample_rate=0.5, head_steps=8, head_sample_rate=0.5, max_length=16
        ),
        topology=Topology(sketch_size=64, gradient_sketch_size=64),
        masking=Masking(min_group=3, colluders=1),
    )
    clients = [
        Client(f"t{t}-c{i}", train=rows(t, 60, i), test=rows(t, 10, 100 + i), records=60)
        for t in range(2)
        for i in range(3)
    ]
    return job.run(clients, tmp_path_factory.mktemp("runs") / "first", auditable=True).folder
