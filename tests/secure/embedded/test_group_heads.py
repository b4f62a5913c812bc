"""Heads trained at home, averaged once in a masked sum: whole runs on a tiny model."""

import dataclasses
import logging

import msgspec
import numpy as np
import pytest
from small_jobs import LyingServer, federation, make_clients, rows, scripted

from fedtree_secure import Client, ConfigurationError, Topology, Training
from fedtree_secure.agreed.head_groups import HeadGroup
from fedtree_secure.agreed.messages import Begin, OpenedSum
from fedtree_secure.client.party import Party
from fedtree_secure.client.state import head_values_of

LABELS = ("class-0", "class-1")
SETTINGS = {"records": 60, "sample_rate": 0.5, "head_steps": 8, "max_length": 16}
GROUP = ("t0-c0", "t0-c1", "t0-c2")


def declared(clients):
    """Two tasks, each with label names of its own."""
    return [
        dataclasses.replace(
            client,
            labels=tuple(f"{client.id[:2]}/{label}" for label in LABELS),
            train=renamed(client.train, client.id[:2]),
            test=renamed(client.test, client.id[:2]),
        )
        for client in clients
    ]


def renamed(table, task):
    return table.map(lambda row: {"label": f"{task}/{row['label']}"})


def job(backbone, **changes):
    training = Training(**{**SETTINGS, **changes.pop("training", {})})
    return federation(backbone, **{"rounds": 1, "training": training, **changes})


@pytest.fixture
def trained(monkeypatch):
    """What each client's head was when its own steps were over, by client."""
    found, keep = {}, Party._keep_for_the_group

    def watched(self):
        keep(self)
        found[self.id] = head_values_of(self.store.state.head)

    monkeypatch.setattr(Party, "_keep_for_the_group", watched)
    return found


@pytest.fixture
def held(monkeypatch):
    """The head that each client holds at the end, as it stands in the layout."""
    from fedtree_secure.client.participant import Participant

    found, at = {}, Participant.at_backbone

    def watched(self):
        found[self.party.id] = head_values_of(self.party.store.state.head)
        return at(self)

    monkeypatch.setattr(Participant, "at_backbone", watched)
    return found


def test_heads_of_a_group_are_averaged_once(tiny_bert, tmp_path, trained, held):
    result = job(tiny_bert, rounds=0, topology=Topology(source="none")).run(
        declared(make_clients()), tmp_path / "run"
    )
    for task in ("t0", "t1"):
        names = [name for name in held if name.startswith(task)]
        mean = np.mean([trained[name] for name in names], axis=0)
        step = 2 * 3.2 * 5e-2 * 8 / 2**16  # of the merge's grid
        for name in names:
            assert np.abs(held[name] - mean).max() <= 2 * step
            assert np.array_equal(held[name], held[names[0]])
            assert np.abs(trained[name] - mean).max() > 100 * step
    assert not np.array_equal(held["t0-c0"], held["t1-c0"])
    assert [record["round"] for record in result.data["rounds"]] == [0]
    spent = {tuple(e.values()) for e in result.data["clients"]["t0-c0"]["events"]}
    assert len(spent) == 1  # the average costs nothing: it is of what was charged


def test_the_average_is_trained_on_by_the_group(tiny_bert, tmp_path, trained, held):
    job(tiny_bert, rounds=2).run(declared(make_clients()), tmp_path / "run")
    for task in ("t0", "t1"):
        names = [name for name in held if name.startswith(task)]
        mean = np.mean([trained[name] for name in names], axis=0)
        assert all(np.array_equal(held[name], held[names[0]]) for name in names)
        assert 1e-3 < np.abs(held[names[0]] - mean).max() <= 2 * 3.2 * 4e-3 * 1.01


def test_undeclared_labels_and_small_groups_keep_their_heads_at_home(
    tiny_bert, tmp_path, trained, held
):
    clients = declared(make_clients())
    clients[:3] = [dataclasses.replace(c, labels=()) for c in clients[:3]]  # read from the rows
    clients[5] = Client("lonely", train=rows(0, 60, 9), test=None, labels=LABELS, records=60)
    result = job(tiny_bert, rounds=0, topology=Topology(source="none")).run(
        clients, tmp_path / "run"
    )
    assert result.data["rounds"] == []  # two are left with one label set: no group, nothing to sum
    assert all(np.array_equal(held[name], trained[name]) for name in trained)


def test_a_client_without_a_group_does_not_hinder_the_others(tiny_bert, tmp_path, trained, held):
    clients = declared(make_clients())
    clients[5] = Client("lonely", train=rows(0, 60, 9), test=None, labels=LABELS, records=60)
    clients[4] = dataclasses.replace(clients[4], id="aside", labels=())
    source = Topology(source="one_group")
    result = job(tiny_bert, topology=source).run(clients, tmp_path / "run")
    assert [record["error"] for record in result.data["rounds"]] == ["", ""]
    assert np.array_equal(held["t0-c0"], held["t0-c1"])
    for name in ("lonely", "aside"):
        assert np.abs(held[name] - trained[name]).max() <= 5e-2 * 3.2  # trained on at home


def test_who_is_lost_in_the_merge_gets_the_average_of_the_others(
    tiny_bert, tmp_path, trained, held
):
    wrap, _ = scripted(lose=[("round-0/mask", "t0-c0", "before")])
    clients = declared(make_clients(tasks=1, each=5))
    job(tiny_bert, rounds=0, topology=Topology(source="none")).run(
        clients, tmp_path / "run", wrap_transport=wrap
    )
    mean = np.mean([trained[f"t0-c{i}"] for i in range(1, 5)], axis=0)
    assert np.abs(held["t0-c0"] - mean).max() < 1e-3


def test_a_merge_that_fails_leaves_everybody_the_own_head(tiny_bert, tmp_path, trained, held):
    lost = [("round-0/mask", name, "after") for name in GROUP[:2]]
    wrap, _ = scripted(lose=lost)
    clients = declared(make_clients(tasks=1))
    result = job(tiny_bert, topology=Topology(source="one_group")).run(
        clients, tmp_path / "run", wrap_transport=wrap
    )
    first, second = result.data["rounds"]
    assert first["error"]
    assert second["error"] == ""  # the layers are trained on together
    for name in GROUP:
        assert np.abs(held[name] - trained[name]).max() <= 5e-2 * 3.2
    assert not np.array_equal(held[GROUP[0]], held[GROUP[1]])


def test_hostile_merge_is_made_once(tiny_bert, tmp_path, caplog):
    """A server that opens no sum and asks again learns no difference of two sums of the heads."""
    asked = []

    def lie(stage, name, message):
        if stage == "round-1/advertise" and isinstance(message, Begin):
            asked.append(name)
            return msgspec.structs.replace(message, round=0, merge=True, attempt=3)
        return message

    def wrap(inner):
        return LyingServer(inner, tmp_path / "run", lie)

    caplog.set_level(logging.WARNING)
    result = job(tiny_bert, topology=Topology(source="one_group")).run(
        declared(make_clients(tasks=1)), tmp_path / "run", wrap_transport=wrap
    )
    assert asked
    assert result.data["rounds"][1]["opened"] == {}


def test_hostile_sum_of_heads_beyond_what_members_can_reach(tiny_bert, tmp_path, held, trained):
    """Each member sees that the invented sum does not follow, and nobody trains under it."""

    def lie(stage, name, message):
        if not stage.endswith("/advertise") or not isinstance(message, Begin) or message.merge:
            return message
        opened = []
        for entry in message.experts.opened:
            total = np.frombuffer(entry.total, dtype="<i4").copy()
            total[-3:] += 5
            opened.append(
                OpenedSum(entry.round, entry.node, entry.survivors, entry.clip, total.tobytes())
            )
        experts = msgspec.structs.replace(message.experts, opened=tuple(opened))
        return msgspec.structs.replace(message, experts=experts)

    def wrap(inner):
        return LyingServer(inner, tmp_path / "run", lie)

    result = job(tiny_bert, topology=Topology(source="one_group")).run(
        declared(make_clients(tasks=1)), tmp_path / "run", wrap_transport=wrap
    )
    assert result.data["rounds"][1]["opened"] == {}


def test_terms_that_put_a_client_among_other_labels_are_refused(tiny_bert, tmp_path, monkeypatch):
    from fedtree_secure.embedded import setting

    def other(job, data):
        del job
        return (HeadGroup(tuple(sorted(data)), 2, b"labels of somebody else, 32 bytes"),)

    monkeypatch.setattr(setting, "groups_of_heads", other)
    with pytest.raises(ConfigurationError, match="t0-c0: the terms put its head"):
        job(tiny_bert).run(declared(make_clients(tasks=1)), tmp_path / "run")


def test_labels_in_two_orders_are_refused_before_anything_is_charged(tiny_bert, tmp_path, stores):
    clients = declared(make_clients(tasks=1))
    clients[1] = dataclasses.replace(clients[1], labels=clients[1].labels[::-1])
    with pytest.raises(ConfigurationError, match="another order"):
        job(tiny_bert).run(clients, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("**/*")] == []
    assert not list(stores.glob("**/store.sqlite"))
