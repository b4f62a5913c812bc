"""Small jobs, clients and texts that the tests of this folder share."""

import numpy as np
from datasets import Dataset
from tiny_models import WORDS

from fedtree_secure import Client, Federation, Lora, Masking, PrivacyBudget, Topology, Training


def rows(task: int, count: int, seed: int, labels: int = 2) -> Dataset:
    """Texts of a task's own words; the label decides which half of them."""
    rng = np.random.default_rng([task, seed])
    texts, given = [], []
    for _ in range(count):
        label = int(rng.integers(labels))
        own = WORDS[task * 100 + label * 40 : task * 100 + label * 40 + 40]
        texts.append(" ".join(rng.choice(own, size=int(rng.integers(4, 9)))))
        given.append(f"class-{label}")
    return Dataset.from_dict({"text": texts, "label": given})


def make_clients(tasks: int = 2, each: int = 3, count: int = 60) -> list[Client]:
    return [
        Client(
            f"t{task}-c{i}", train=rows(task, count, i), test=rows(task, 30, 100 + i), records=count
        )
        for task in range(tasks)
        for i in range(each)
    ]


def make_job(backbone, **changes) -> Federation:
    settings = {
        "backbone": str(backbone),
        "privacy": PrivacyBudget(epsilon=8, delta=1e-3),
        "rounds": 2,
        "lora": Lora(rank=2, alpha=4.0),
        "training": Training(
            records=60, sample_rate=0.5, head_steps=8, head_sample_rate=0.5, max_length=16
        ),
        "topology": Topology(sketch_size=64),
        "masking": Masking(min_group=3, colluders=1),
    }
    return Federation(**{**settings, **changes})


class Adversary:
    """A transport that a test scripts: it may lose, change or watch any message."""

    def __init__(self, inner, *, lose=(), change=None):
        self.inner, self.lose, self.change = inner, set(lose), change
        self.seen = []

    def exchange(self, stage, requests):
        before = {n: r for n, r in requests.items() if (stage, n, "before") not in self.lose}
        replies = self.inner.exchange(stage, before)
        replies = {n: r for n, r in replies.items() if (stage, n, "after") not in self.lose}
        if self.change:
            replies = self.change(stage, replies)
        self.seen.append((stage, dict(requests), replies))
        return replies


def scripted(**script):
    """Return a `wrap_transport` that scripts an adversary, and the list it will be in."""
    made = []

    def wrap(inner):
        made.append(Adversary(inner, **script))
        return made[-1]

    return wrap, made
