"""Jobs with shared noise that the tests of this folder share."""

import dataclasses

from small_jobs import federation, make_clients

from fedtree_secure import Masking, PrivacyBudget, Topology, Training

BUDGET = PrivacyBudget(epsilon=8, delta=1e-3, own_epsilon=14)
LABELS = ("class-0", "class-1")
SHARED = {
    "noise": "shared",
    "privacy": BUDGET,
    "topology": Topology(source="one_group"),
    "training": Training(records=60, head_steps=0, head="local", max_length=16),
    "masking": Masking(min_group=3, colluders=1),
}


def shared_federation(model, **changes):
    return federation(model, **{**SHARED, **changes})


def clients_of(each=4, *, declared=False):
    """Clients of one task with 60 rows each; with their label sets where they share a head."""
    found = make_clients(tasks=1, each=each)
    return [dataclasses.replace(c, labels=LABELS) for c in found] if declared else found
