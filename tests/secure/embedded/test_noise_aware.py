"""Trees cut by bias and variance, in whole runs on a tiny model."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from small_jobs import federation, make_clients, scripted

from fedtree_dp import Ledger
from fedtree_secure import ConfigurationError, PrivacyBudget, RunStopped, Topology, Training
from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.agreed.round_plan import gradient_noise
from fedtree_secure.client import gradient_requests
from fedtree_secure.client.party import Party

LOUD = {"training": Training(records=60, head_steps=8, max_length=16)}
TOPOLOGY = Topology(sketch_size=64, gradient_sketch_size=256)
ROUNDS = 2


@pytest.fixture
def gradients(monkeypatch):
    """The gradient that each client made, and the tree's distances."""
    found, make = {}, Party.first_gradient

    def watched(self, seed):
        found[self.id] = make(self, seed)
        return found[self.id]

    monkeypatch.setattr(Party, "first_gradient", watched)
    return found


def run(backbone, out, **changes):
    settings = {"rounds": ROUNDS, "topology": TOPOLOGY, **LOUD, **changes}
    options = {"wrap_transport": settings.pop("wrap_transport", None)}
    clients = settings.pop("clients", None) or make_clients()
    return federation(backbone, **settings).run(clients, out, **options)


def purposes(result, name):
    with Ledger.inspect(result.folder / "ledgers" / f"{name}.sqlite") as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.event is not None]


def test_the_first_round_is_charged_once_and_sums_what_was_sketched(tiny_bert, tmp_path, gradients):
    from fedtree_secure.server.state import StateFolder

    result = run(tiny_bert, tmp_path / "run")
    page = (result.folder / "report.html").read_text()
    for layer in result.data["layers"]:  # why it is cut so stands below the tree
        assert layer["why"].removeprefix("l") in page
    assert set(gradients) == {client.id for client in make_clients()}
    for name in gradients:
        assert purposes(result, name) == ["fingerprint", "head", "round 1", "round 2"]
    state = StateFolder(tmp_path / "run" / "server").load()
    first = state.records[0]
    assert (first.round, first.error) == (1, "")
    _, opened = StateFolder(tmp_path / "run" / "server").load_values(ROUNDS)
    tree = StateFolder(tmp_path / "run" / "server").load().labels
    for entry in (entry for entry in opened if entry.round == 1):
        total = np.frombuffer(entry.total, dtype="<i4").astype(np.float64)
        members = first.opened[entry.node]
        column = [sorted(gradients).index(name) for name in members]
        shared = [len({row[i] for i in column}) == 1 for row in tree]
        width = len(gradients["t0-c0"]) // len(tree)
        layers = [slice(i * width, (i + 1) * width) for i, same in enumerate(shared) if same]
        wanted = np.sum([gradients[name] for name in members], axis=0)
        found = [layer for layer in layers if len(total) % width == 0][-len(total) // width :]
        expected = np.concatenate([wanted[layer] for layer in found])
        assert np.corrcoef(expected, total)[0, 1] > 0.999


def test_the_tree_is_what_the_distances_of_gradients_say(tiny_bert, tmp_path, gradients):
    """Against the gradients themselves, not their sketch: little noise, two tasks."""
    from fedtree_secure.server.state import StateFolder

    result = run(tiny_bert, tmp_path / "run", privacy=PrivacyBudget(epsilon=1e4, delta=1e-3))
    proposal = StateFolder(tmp_path / "run" / "server").load().proposal
    names = proposal.members
    depth = len(result.data["layers"])
    width = len(next(iter(gradients.values()))) // depth
    each = np.stack([gradients[name][: depth * width].reshape(depth, width) for name in names])
    true = ((each[:, None] - each[None]) ** 2).sum(-1).transpose(2, 0, 1)
    sketched = np.frombuffer(proposal.gradients.squared).reshape(true.shape)
    off = ~np.eye(len(names), dtype=bool)
    assert np.abs(sketched / np.where(true > 0, true, 1) - 1)[:, off].max() < 0.6
    assert proposal.gradients.noise[0] == pytest.approx(
        gradient_noise(federation(tiny_bert, rounds=ROUNDS, **LOUD).job, noise_of(tmp_path), 60)
    )


def noise_of(tmp_path):
    from fedtree_secure.storage import read_json

    return read_json(tmp_path / "run" / "clients" / "t0-c0" / "noise.json")["rounds"]


def test_much_noise_keeps_one_group_and_little_does_not_force_a_split(tiny_bert, tmp_path):
    quiet = run(tiny_bert, tmp_path / "run", privacy=PrivacyBudget(epsilon=0.5, delta=1e-3))
    assert [len(layer["clusters"]) for layer in quiet.data["layers"]] == [1, 1]
    assert [record["error"] for record in quiet.data["rounds"]] == ["", ""]


def test_who_sends_no_gradient_is_left_out_of_the_tree_and_hinders_nobody(tiny_bert, tmp_path):
    wrap, _ = scripted(lose=[("round-1/sketch", "t1-c2", "before")])
    result = run(tiny_bert, tmp_path / "run", wrap_transport=wrap)
    assert [record["error"] for record in result.data["rounds"]] == ["", ""]
    for layer in result.data["layers"]:
        assert ["t1-c2"] in layer["clusters"]


def test_too_few_gradients_stop_the_run_and_a_later_start_goes_on(tiny_bert, tmp_path, gradients):
    names = ("t0-c0", "t0-c1", "t0-c2", "t1-c0")
    lost = [("round-1/sketch", name, "after") for name in names]
    job = federation(tiny_bert, rounds=ROUNDS, topology=TOPOLOGY, **LOUD)
    with pytest.raises(RunStopped, match="sent a sketch"):
        job.run(make_clients(), tmp_path / "run", wrap_transport=scripted(lose=lost)[0])
    made = {name: gradients[name].copy() for name in gradients}
    result = job.run(make_clients(), tmp_path / "run", resume=True)
    assert all(np.array_equal(gradients[name], made[name]) for name in made)  # none made twice
    for name, report in result.data["clients"].items():
        assert purposes(result, name) == ["fingerprint", "head", "round 1", "round 2"]
        assert report["epsilon_spent"] <= report["epsilon_allowed"]


def test_what_stays_at_home_takes_the_step_of_its_own_gradient():
    moved = NodeValues(np.zeros(3, np.float32))
    moved.follow_gradient(np.array([1.0, -2.0, 0.0]), 0.1)

    own, first = np.zeros(6, np.float32), np.array([1.0, -2.0, 0.0, 5.0, 5.0, 5.0], np.float32)
    home = SimpleNamespace(
        store=SimpleNamespace(state=SimpleNamespace(own=own, first=first)),
        job=SimpleNamespace(training=SimpleNamespace(learning_rate=0.1)),
        facts=SimpleNamespace(layout=SimpleNamespace(layers=((0, 3), (3, 6)))),
        shares=lambda: [False, True],
    )
    given = gradient_requests.use_first_gradient(home)
    assert given.tolist() == [1.0, -2.0, 0.0, 5.0, 5.0, 5.0]
    assert home.store.state.first is None
    assert np.array_equal(home.store.state.own[:3], moved.values)
    assert (home.store.state.own[3:] == 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"topology": Topology(source="lora_b", cut="noise_aware")},
        {"training": Training(records=60, local_steps=2), "topology": Topology(cut="noise_aware")},
    ],
)
def test_a_cut_that_has_no_gradients_is_refused(changes):
    with pytest.raises(ConfigurationError, match=r"topology\.cut"):
        federation("unused", **changes)
    with pytest.raises(ConfigurationError, match=r"topology\.cut is 'greedy'"):
        Topology(cut="greedy")


def test_unequal_noise_is_weighed_by_each_client_s_own(tiny_bert, tmp_path):
    clients = make_clients()
    clients[0] = dataclasses.replace(
        clients[0], privacy=PrivacyBudget(epsilon=2, delta=1e-3), records=50
    )
    from fedtree_secure.server.state import StateFolder

    run(tiny_bert, tmp_path / "run", clients=clients)
    proposal = StateFolder(tmp_path / "run" / "server").load().proposal
    noise = dict(zip(proposal.members, proposal.gradients.noise, strict=True))
    assert noise["t0-c0"] > 4 * noise["t0-c1"]
