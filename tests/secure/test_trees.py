"""The harness of the tree's table: its short cuts change no gradient, methods share what they say,
test rows of seeds are apart, cells keep the budget and are run once.
"""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import loaded_with_neighbours
from small_jobs import make_clients, make_job, rows

from fedtree_dp import NoiseSource
from fedtree_secure import Lora, Topology, Training
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.client.data import prepare
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.model.backbone import Backbone

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS, DEPTH = 40, 2


@pytest.fixture(scope="module")
def trees():
    """The command as a module; its neighbours are on the path."""
    with loaded_with_neighbours(BENCHMARKS / "trees.py") as module:
        yield module


def job_of(model, **changes):
    training = Training(records=RECORDS, max_length=16, head_steps=4, pooling="native")
    lora = Lora(r=2, alpha=4.0, last_layers=DEPTH, freeze_a=changes.pop("freeze_a", True))
    changes.pop("mixing_weight", None)
    topology = Topology(source=changes.pop("source", "one_group"), sketch_size=64)
    if "head" in changes:
        training = replace(training, head=changes.pop("head"))
    settings = {"rounds": 3, "training": training, "lora": lora, "topology": topology}
    return make_job(model, **{**settings, **changes})


@pytest.fixture(scope="module")
def stage(trees, deep_bert):
    """Two tasks of three clients under the upper half of a model."""
    people = [replace(c, labels=(f"{c.id[:2]}-0", f"{c.id[:2]}-1")) for c in make_clients(count=40)]
    for client in people:  # the label sets of two tasks differ
        for part in ("train", "test"):
            column = [f"{client.id[:2]}-{label[-1]}" for label in getattr(client, part)["label"]]
            table = getattr(client, part).remove_columns("label").add_column("label", column)
            object.__setattr__(client, part, table)
    return trees.Stage(job_of(deep_bert), people), people


def gradient(backbone, person, head, own):
    """One exact step of the product's trainer on a whole model."""
    state = initial_state(backbone, 2)
    state.head = head
    model = LocalModel(2, own, np.zeros(DEPTH, dtype=bool), backbone.layout([2, 2]))
    data = prepare(person, backbone.job, backbone.tokenizer)
    args = (data, state, model, Mechanism(0.0, RECORDS, 1), NoiseSource.from_os())
    return RoundTrainer(backbone, backbone.job).train(*args, upload_gradient=True)


def test_the_upper_part_has_the_gradients_of_the_whole_model(trees, stage, deep_bert, monkeypatch):
    for name in ("peers.game", "peers.stage"):
        monkeypatch.setattr(sys.modules[name], "autocast", contextlib.nullcontext)
    monkeypatch.setattr(sys.modules["peers.stage"], "KEPT", torch.float32)
    people = stage[1]
    cut = trees.Stage(job_of(deep_bert), people)
    backbone = Backbone(job_of(deep_bert))
    heads = trees.averaged(cut, trees.trained_heads(cut, backbone.job, 0.0))
    found = trees.Game(cut, backbone.job, NoisePlan(), heads).directions()
    for at in (0, 5):
        exact = gradient(backbone, people[at], heads[at], (True, True, at < 3, at >= 3))
        assert np.linalg.norm(found[at] - exact) < 1e-3 * np.linalg.norm(exact)


def test_a_step_inside_a_callers_autocast_is_on_the_clients_own_head(stage, deep_bert):
    """A rehearsal puts a public head in its place for a moment; torch's cache of cast weights would
    go on with that one.
    """
    backbone, people = Backbone(job_of(deep_bert)), stage[1]
    head = initial_state(backbone, 2).head
    for name, value in head.items():
        if name.endswith("projection.weight"):
            head[name] = 50 * value
    exact = gradient(backbone, people[0], head, (True, True, True, False))
    with torch.autocast("cpu", torch.float16):
        found = gradient(backbone, people[0], head, (True, True, True, False))
    assert np.linalg.norm(found - exact) < 0.3 * np.linalg.norm(exact)


SHARED = {  # of factors A and B: with all, in the task, or with nobody
    "local": ("frozen", "nobody"),
    "FedIT": ("all", "all"),
    "FFA-LoRA": ("frozen", "all"),
    "FedSA-LoRA": ("all", "nobody"),
    "RoLoRA": ("all", "all"),
    "FedDPA": ("frozen", "nobody"),
    "FedALT": ("frozen", "nobody"),
}


def equal(values):
    """Which pairs of clients hold the same."""
    return {(i, k) for i in range(6) for k in range(i) if np.array_equal(values[i], values[k])}


EVERY = {(i, k) for i in range(6) for k in range(i)}
TASK = {(i, k) for i, k in EVERY if (i < 3) == (k < 3)}


@pytest.mark.parametrize("name", SHARED)
def test_a_method_shares_what_it_says(trees, stage, deep_bert, name):
    cut, _ = stage
    method = trees.METHODS[name]
    job = job_of(deep_bert, **method.SETTINGS)
    heads = [initial_state(cut.backbone(freeze_a=True), 2).head for _ in range(6)]
    game = trees.Game(cut, job, NoisePlan(rounds=1.0), heads)
    method.play(game)
    with pytest.raises(AssertionError, match="more than its 3 steps"):
        game.directions()
    for kind, shared in zip("AB", SHARED[name], strict=True):
        blocks = [b for b in game.blocks if b.kind == kind]
        if shared == "frozen":
            assert not blocks
            continue
        values = [np.concatenate([game._held(i, b) for b in blocks]) for i in range(6)]
        assert equal(values) == (EVERY if shared == "all" else set())
        assert all(v.any() for v in values)
    assert equal([game._held(i, _head(game, i)) for i in range(6)]) == TASK
    mixed = name in ("FedDPA", "FedALT")
    assert game.mixing.all() == game.mixing.any() == mixed
    if mixed:
        outside = [state.external for state in game.states]
        assert equal(outside) == (EVERY if name == "FedDPA" else set())


def _head(game, client):
    group = game.seen[client].group
    return next(b for b in game.blocks if b.kind == "head" and b.layer == group)


def played(trees, cut, model, name, noise):
    method = trees.METHODS[name]
    job = job_of(model, **method.SETTINGS)
    heads = [initial_state(cut.backbone(freeze_a=True), 2).head for _ in range(6)]
    return trees.Game(cut, job, noise, heads), method


def held(game, layer):
    blocks = [b for b in game.blocks if b.kind == "B" and b.layer == layer]
    return [np.concatenate([game._held(i, b) for b in blocks]) for i in range(6)]


@pytest.mark.parametrize("name", ["FedLEASE", "PINA"])
def test_flat_clusters_are_the_tasks_where_noise_is_small(trees, stage, deep_bert, name):
    game, method = played(trees, stage[0], deep_bert, name, NoisePlan(rounds=1e-3))
    method.play(game)
    assert game.notes["clusters"] == [[0, 1, 2], [3, 4, 5]]
    assert all(equal(held(game, layer)) == TASK for layer in range(DEPTH))


@pytest.mark.parametrize("name", ["tree", "tree, A and B", "tree, no external", "tree, silhouette"])
def test_a_tree_shares_what_its_cuts_say(trees, stage, deep_bert, name):
    noise = NoisePlan(fingerprint=1e-3, rounds=0.5)
    game, method = played(trees, stage[0], deep_bert, name, noise)
    method.play(game)
    for layer, row in enumerate(game.notes["labels"]):
        alike = {(i, k) for i, k in EVERY if row[i] == row[k]}
        assert equal(held(game, layer)) == alike
        split = alike not in (EVERY, set()) and name != "tree, no external"
        assert game.mixing[:, layer].any() == split


def test_other_groups_are_the_external_expert(trees, stage, deep_bert):
    from peers import tree

    game, _ = played(trees, stage[0], deep_bert, "tree", NoisePlan(rounds=1.0))
    tree.follow(game, [[0] * 6, [0, 0, 0, 1, 1, 1]], None, external=True)
    assert equal(held(game, 0)) == EVERY
    assert equal(held(game, 1)) == TASK
    assert game.mixing.tolist() == [[False, True]] * 6
    begin, end = game.backbone.experts.layers[1]
    assert np.allclose(game.states[0].external[begin:end], game.own(5, 1), atol=1e-6)
    few, _ = played(trees, stage[0], deep_bert, "tree", NoisePlan(rounds=1.0))
    tree.follow(few, [[0] * 6, [0, 0, 0, 0, 1, 1]], None, external=True)
    assert few.mixing[:, 1].tolist() == [False] * 4 + [True] * 2  # two are never summed


def test_clusters_below_the_least_size_are_not_made(trees):
    from peers.clusters import by_silhouette

    place = np.array([0.0, 0.1, 0.2, 9.0, 9.1, 9.2, 9.3])
    squared = (place[:, None] - place[None, :]) ** 2
    assert by_silhouette(squared, 3, "ward") == [[0, 1, 2], [3, 4, 5, 6]]
    assert by_silhouette(squared, 4, "ward") == [[0, 1, 2, 3, 4, 5, 6]]


def words(_):
    return [(f"{text} {n}", label) for n, (text, label) in enumerate(_pairs(3000))]


def _pairs(count):
    table = rows(0, count, 1)
    return zip(table["text"], table["label"], strict=True)


@pytest.mark.parametrize("conflicting", [False, True])
def test_test_rows_of_seeds_are_apart(trees, monkeypatch, conflicting):
    monkeypatch.setattr(sys.modules["peers.stage"], "TASKS", {"words": words})
    tasks = ("words", "renamed") if conflicting else ("words",)
    federation = trees.Federation(tasks, train=50, test=20, conflicting=conflicting)
    seeds = [federation.clients(seed, Path()) for seed in range(3)]
    tested = [text for found in seeds for client in found for text in client.test["text"]]
    assert len(tested) == len(set(tested)) == 3 * 3 * 20 * len(tasks)
    for found in seeds:
        used = [t for c in found for part in (c.train, c.test) for t in part["text"]]
        assert len(used) == len(set(used)) == 3 * 70 * len(tasks)
    if conflicting:
        known = dict(words(None))
        first, second = (c for c in seeds[0] if c.id.endswith("-0"))
        assert all(known[t] == label for t, label in _rows_of(first))
        assert all(known[t] != label for t, label in _rows_of(second))
        assert first.labels == second.labels


def _rows_of(client):
    return list(zip(client.train["text"], client.train["label"], strict=True))


def test_cells_keep_the_budget_and_are_run_once(trees, deep_bert, monkeypatch, tmp_path):
    tasks = {
        f"t{n}": lambda _, n=n: [
            (f"{t} {c} {k}", f"{n}-{c}")
            for k, (t, c) in enumerate(zip(*rows(n, 1500, 1).to_dict().values(), strict=True))
        ]
        for n in range(2)
    }
    monkeypatch.setattr(sys.modules["peers.stage"], "TASKS", tasks)
    monkeypatch.setattr(trees, "minilm_folder", lambda: deep_bert)
    monkeypatch.setattr(trees, "DELTA", 1e-3)
    small = trees.Setting(trees.Federation(("t0", "t1"), train=RECORDS, test=20), 1)
    shipped = trees.Setting.job

    def quick(self, epsilon, seed, changes):
        found = shipped(self, epsilon, seed, changes)
        training = replace(found.training, head_steps=4, max_length=16)
        return replace(found, training=training, rounds=min(found.rounds, 3))

    monkeypatch.setattr(trees.Setting, "job", quick)
    monkeypatch.setattr(trees, "SETTINGS", {"last": small})
    page, results = tmp_path / "trees.md", tmp_path / "build" / "r.jsonl"
    page.write_text(
        "<!-- table: python benchmarks/trees.py, last -->\nold\n<!-- end of table -->\nafter\n"
    )

    def call(*methods):
        argv = ["trees", "--seeds", "0", "1", "--epsilons", "8", "--results", str(results)]
        argv += ["--page", str(page), "--settings", "last", "--methods", *methods]
        monkeypatch.setattr(sys, "argv", argv)
        trees.main()
        return [json.loads(line) for line in results.read_text().splitlines()]

    first = call("head group", "tree")
    cells = call("head group", "tree", "head alone")
    assert cells[:4] == first
    assert [(c["method"], c["seed"]) for c in cells[4:]] == [("head alone", 0), ("head alone", 1)]
    assert all(7 < c["epsilon_spent"] <= 8 and len(c["accuracy"]) == 6 for c in cells)
    text = page.read_text()
    assert "old" not in text
    assert text.endswith("after\n")
    means = {c["method"]: [] for c in cells}
    for c in cells:
        means[c["method"]].append(np.mean(c["accuracy"]))
    gaps = np.subtract(means["tree"], means["head group"])
    row = next(line for line in text.splitlines() if line.startswith("| 8 | tree |"))
    shown = float(row.split(" | ")[4].split(" ± ")[0])
    assert abs(shown - np.mean(gaps)) < 0.0006  # three decimals; a tie may be rounded either way
