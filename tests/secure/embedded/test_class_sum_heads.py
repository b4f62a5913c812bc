"""Heads of groups from one release of class sums: whole runs on a tiny model."""

import dataclasses

import numpy as np
import pytest
import torch
from small_jobs import federation, lying, make_clients, scripted
from unit_rows import UNIT, unit_clients

from fedtree_dp import Ledger
from fedtree_secure import ConfigurationError, Topology, Training
from fedtree_secure.agreed.class_sums import COUNT_SHARE, head_of
from fedtree_secure.agreed.messages import Prepare
from fedtree_secure.client import party as party_module
from fedtree_secure.client.data import prepare
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.state import head_values_of
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.report.summary import remarks

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
    noise = result.data["clients"]["t0-c0"]["events"][0]["noise_multiplier"]
    expected = head_of(mean, 2, noise / (60 * 3**0.5))
    np.testing.assert_allclose(heads[0], expected, rtol=1e-3, atol=1e-3)
    assert result.data["rounds"][0]["round"] == 0
    report = result.data["clients"]["t0-c0"]
    assert [event["mechanism"] for event in report["events"]] == ["gaussian"]
    assert 0.9 < report["epsilon_spent"] / 8 <= 1


def test_a_merge_that_fails_leaves_everybody_the_head_of_its_own_sums(tiny_bert, tmp_path, watched):
    wrap, _ = scripted(lose=[("round-0/mask", f"t0-c{i}", "after") for i in (0, 1)])
    clients = declared(make_clients(tasks=1))
    result = job(tiny_bert).run(clients, tmp_path / "run", wrap_transport=wrap)
    assert result.data["rounds"][0]["error"]
    noise = result.data["clients"]["t0-c0"]["events"][0]["noise_multiplier"]
    for (_, sums), head in zip(watched["released"], watched["held"].values(), strict=True):
        assert np.array_equal(head, head_of(sums, 2, noise / 60))


def test_hostile_class_sums_are_of_the_frozen_model_and_released_once(tiny_bert, tmp_path, watched):
    """A server that asks after the experts have moved gets sums of the same features, and one that
    asks twice gets nothing more.
    """
    clients = declared(make_clients(tasks=1, each=4))

    def lie(stage, name, message):
        if stage == "prepare" and name == "t0-c0":
            return None
        return Prepare() if stage in ("round-2/share", "finish") and name == "t0-c0" else message

    wrap, _ = lying(tmp_path / "run", lie)
    asked = job(tiny_bert, rounds=2, topology=Topology(source="one_group"))
    result = asked.run(clients, tmp_path / "run", wrap_transport=wrap)
    released = watched["released"]
    assert len(released) == 4  # the victim's last, in the second round, and not again at the end
    events = result.data["clients"]["t0-c0"]["events"]
    assert [event["mechanism"] for event in events].count("gaussian") == 1
    backbone = Backbone(asked.job, device="cpu")
    honest = backbone.observe(prepare(clients[0], asked.job, backbone.tokenizer).train).features
    torch.testing.assert_close(released[-1][0], honest, rtol=0, atol=1e-6)


def test_bad_input_a_head_without_a_place_for_numbers_is_refused(tiny_llama, tmp_path, stores):
    clients = declared(make_clients(tasks=1))
    with pytest.raises(ConfigurationError, match="class sums need"):
        job(tiny_llama).run(clients, tmp_path / "run")
    for store in stores.glob("**/store.sqlite"):
        with Ledger.inspect(store) as ledger:
            assert not ledger.events()


def test_hostile_terms_with_another_number_of_classes_are_refused(tiny_bert, tmp_path, monkeypatch):
    from fedtree_secure.embedded import setting

    def other(given, data):
        return tuple(dataclasses.replace(g, outputs=3) for g in shipped(given, data))

    shipped = setting.groups_of_heads
    monkeypatch.setattr(setting, "groups_of_heads", other)
    with pytest.raises(ConfigurationError, match="t0-c0: the terms put its head"):
        job(tiny_bert).run(declared(make_clients(tasks=1)), tmp_path / "run")


def test_units_bound_what_a_patient_moves_and_the_result_says_how_heads_are_made(
    tiny_bert, tmp_path, watched
):
    clients = [dataclasses.replace(c, labels=LABELS) for c in unit_clients()[:3]]
    training = Training(records=20, head_steps=4, max_length=16, head_release="class_sums")
    result = federation(tiny_bert, rounds=0, topology=NONE, training=training, **UNIT).run(
        clients, tmp_path / "run"
    )
    assert "They come from one release of sums by class" in "\n".join(remarks(result.data))
    assert result.data["head_release"] == {
        "way": "class_sums",
        "why": "the job says so (training.head_release)",
    }
    counts = [sums.reshape(-1)[-2:].sum() * 20 for _, sums in watched["released"]]
    noise = result.data["clients"][clients[0].id]["events"][0]["noise_multiplier"]
    for client, count in zip(clients, counts, strict=True):
        patients = len(set(client.train["patient_id"]))
        assert count / COUNT_SHARE <= patients + 8 * noise * 2**0.5 / COUNT_SHARE
