"""Small jobs, clients and texts that the tests of this folder share."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from tiny_models import WORDS

from fedtree_secagg import Identity
from fedtree_secure import Client, Federation, Lora, Masking, PrivacyBudget, Topology, Training
from fedtree_secure.agreed.envelope import open_request, seal
from fedtree_secure.agreed.messages import encode
from fedtree_secure.config import Job
from fedtree_secure.storage import read_json


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


def make_job(backbone, **changes) -> Job:
    settings = {
        "backbone": str(backbone),
        "privacy": PrivacyBudget(epsilon=8, delta=1e-3),
        "rounds": 2,
        "lora": Lora(r=2, alpha=4.0),
        "training": Training(
            records=60, sample_rate=0.5, head_steps=8, head_sample_rate=0.5, max_length=16
        ),
        "topology": Topology(sketch_size=64, cut="silhouette"),
        "masking": Masking(min_group=3, colluders=1),
    }
    return Job(**{**settings, **changes})


def federation(backbone, **changes) -> Federation:
    return Federation.of(make_job(backbone, **changes))


JOB_FILE = """\
backbone = "{model}"
rounds = 1
privacy = {{epsilon = 8, delta = 1e-3}}
[training]
records = 60
sample_rate = 0.5
head_steps = {head_steps}
max_length = 16
[topology]
source = "one_group"
[lora]
r = 2
"""
ENTRY = """
[[clients]]
id = "{id}"
train = "{id}.csv"
"""


def write_job_file(folder: Path, model, head_steps: int) -> Path:
    """Write a job file of three clients that would run, and their rows; return its path."""
    text = JOB_FILE.format(model=model, head_steps=head_steps)
    for client in make_clients()[:3]:
        client.train.to_pandas().to_csv(folder / f"{client.id}.csv", index=False)
        text += ENTRY.format(id=client.id)
    path = folder / "job.toml"
    path.write_text(text)
    return path


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


class LyingServer(Adversary):
    """The server itself, scripted: it holds the key and may change what it asks before it signs.

    ``lie(stage, name, message)`` returns the message to send in place of an honest one; the same
    object to leave it alone, None to send nothing.
    """

    def __init__(self, inner, out, lie=lambda _stage, _name, message: message, **script):
        super().__init__(inner, **script)
        self.out, self.lie = out, lie

    @property
    def key(self):
        return Identity((self.out / "server" / "identity.key").read_bytes()[1:])

    @property
    def run(self):
        return read_json(self.out / "job.json")["run"]

    def read(self, name, request):
        """Return counter, answered and message of a request."""
        return open_request(request, self.key.public_bytes, self.run, name)

    def ask(self, name, message, *, counter, answered=0, stage="join"):
        """Send a request of its own; return the reply's bytes, None without one."""
        sealed = seal(self.key, self.run, name, counter, answered, encode(message))
        return super().exchange(stage, {name: sealed}).get(name)

    def exchange(self, stage, requests):
        sent = {}
        for name, request in requests.items():
            honest = self.read(name, request)
            told = self.lie(stage, name, honest.message)
            if told is honest.message:
                sent[name] = request
            elif told is not None:
                sent[name] = seal(
                    self.key, self.run, name, honest.counter, honest.answered, encode(told)
                )
        return super().exchange(stage, sent)


def lying(out, lie):
    """Return a `wrap_transport` of a lying server, and the list that it will be in."""
    made = []

    def wrap(inner):
        made.append(LyingServer(inner, out, lie))
        return made[-1]

    return wrap, made
