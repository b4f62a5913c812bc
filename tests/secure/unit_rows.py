"""Rows of patients: clients whose units hold one to several rows each."""

import dataclasses

import numpy as np
from datasets import Dataset
from small_jobs import make_job, rows

from fedtree_secure import Client, Topology, Training

UNIT = {"unit": "patient_id", "max_per_unit": 4}
PATIENTS = 20


def patients(task: int, seed: int, *, count: int = 60, first: int = 0) -> Dataset:
    """Rows of `PATIENTS` patients, of one to several rows each, in random order."""
    rng = np.random.default_rng([task, seed, 5])
    known = [f"patient {first + i}" for i in range(PATIENTS)]
    owners = [*known, *rng.choice(known, size=count - PATIENTS)]
    rng.shuffle(owners)
    return rows(task, count, seed).add_column("patient_id", [str(owner) for owner in owners])


def unit_clients(tasks: int = 1, each: int = 3, **more) -> list[Client]:
    return [
        Client(
            f"t{task}-c{i}",
            train=patients(task, i),
            test=patients(task, 100 + i, count=30, first=500),
            labels=("class-0", "class-1"),
            records=PATIENTS,
            **more,
        )
        for task in range(tasks)
        for i in range(each)
    ]


def unit_job(backbone, **changes):
    given = {
        "rounds": 1,
        "training": Training(records=PATIENTS, head_steps=4, max_length=16),
        "topology": Topology(sketch_size=16, gradient_sketch_size=16),
        **UNIT,
    }
    return make_job(backbone, **{**given, **changes})


def without(client: Client, name: str) -> Client:
    """The client without one patient."""
    kept = [i for i, owner in enumerate(client.train["patient_id"]) if owner != name]
    return dataclasses.replace(client, train=client.train.select(kept))
