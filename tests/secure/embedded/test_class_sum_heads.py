"""Heads of groups from one release of class sums: whole runs on a tiny model."""

import dataclasses

import numpy as np
import pytest
from small_jobs import federation, make_clients, scripted

from fedtree_dp import Gaussian, Ledger
from fedtree_secure import Topology, Training
from fedtree_secure.agreed.class_sums import head_of
from fedtree_secure.client import party as party_module
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.state import head_values_of

LABELS = ("class-0", "class-1")
SETTINGS = {"records": 60, "sample_rate": 0.5, "head_steps": 8, "max_length": 16}
NONE = Topology(source="none")


def declared(clients):
    return [dataclasses.replace(client, labels=LABELS) for client in clients]


def job(backbone, **changes):
    training = Training(**SETTINGS, head_release="class_sums")
    return federation(backbone, **{"rounds": 0, "topology": NONE, "training": training, **changes})


@pytest.fixture
def watched(monkeypatch):
    """What each client released, the features that it was of, and the head that it ends with."""
    found, release, at = {}, party_module.release_sums, Participant.at_backbone

    def released(features, table, head, **more):
        sums = release(features, table, head, **more)
        found.setdefault("released", []).append((features.clone(), sums))
        return sums

    def held(self):
        found.setdefault("held", {})[self.party.id] = head_values_of(self.party.store.state.head)
        return at(self)

    monkeypatch.setattr(party_module, "release_sums", released)
    monkeypatch.setattr(Participant, "at_backbone", held)
    return found


def test_the_head_of_a_group_comes_from_the_sum_of_all(tiny_bert, tmp_path, watched):
    clients = declared(make_clients(tasks=1))
    result = job(tiny_bert).run(clients, tmp_path / "run")
    mean = np.mean([sums for _, sums in watched["released"]], axis=0)
    heads = list(watched["held"].values())
    assert all(np.array_equal(head, heads[0]) for head in heads)
    np.testing.assert_allclose(heads[0], head_of(mean, 2), rtol=1e-4, atol=1e-4)
    assert result.data["rounds"][0]["round"] == 0
    report = result.data["clients"]["t0-c0"]
    assert [event["mechanism"] for event in report["events"]] == ["gaussian"]
    assert 0.9 < report["epsilon_spent"] / 8 <= 1
