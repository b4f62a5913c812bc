"""The accuracy table's command: short cuts change no result, cells keep the budget, it resumes."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import close
from scripts import loaded, loaded_with_neighbours
from small_jobs import make_job, rows

from fedtree_dp import DPSGD, NoiseSource, PrivacyBudget
from fedtree_secure import Client, Lora
from fedtree_secure.client.data import prepare
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel, trainables
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER

FOLDER = Path(__file__).parents[2] / "benchmarks" / "utility"


@pytest.fixture(scope="module")
def utility():
    """The command as a module, with its neighbours on the path while it is loaded."""
    with loaded_with_neighbours(FOLDER / "__main__.py", "utility_main") as module:
        yield module


def labelled(count, seed=0):
    table = rows(0, count, seed)
    return list(zip(table["text"], table["label"], strict=True))


def test_the_cut_model_has_the_same_losses_and_gradients(utility, deep_bert):
    backbone = Backbone(make_job(deep_bert, lora=Lora(r=2, alpha=4.0, last_layers=2)))
    client = Client("a", train=rows(0, 30, 1), test=rows(0, 20, 2), records=30)
    data = prepare(client, backbone.job, backbone.tokenizer)
    mine = initial_state(backbone, 2)
    mine.own += np.random.default_rng(0).normal(scale=0.1, size=mine.own.shape).astype(np.float32)
    picked, flat = np.array([3, 17, 4, 29]), np.zeros(2, dtype=bool)

    def outcome(table):
        with loaded_into(backbone, mine, 2, flat):
            parameters = trainables(backbone, backbone.job, LocalModel(2, (True, True), flat)).all()
            losses = backbone.loss(backbone.model, table.batch(picked % len(table), backbone.pad))
            found = torch.autograd.grad(losses.sum(), parameters)
            backbone.model.requires_grad_(False)
        return torch.cat([losses.detach(), *(g.reshape(-1) for g in found)])

    expected = [outcome(data.train), outcome(data.test)]
    with loaded_into(backbone, mine, 2, flat):
        features = backbone.observe(data.train).features
    upper = utility.UpperPart(backbone, torch.float32)
    numbered = upper.numbered(data)
    for table, before in zip((numbered.train, numbered.test), expected, strict=True):
        assert (outcome(table) - before).norm() < 1e-5 * before.norm()
    assert (expected[0] - expected[1]).norm() > 1e-2 * expected[0].norm()
    with loaded_into(backbone, mine, 2, flat):
        assert close(upper.features(numbered.train), features, 1e-5)


def test_in_turns_b_trains_in_even_steps_and_a_in_odd_ones(utility, deep_bert):
    job = make_job(deep_bert, lora=Lora(r=2, alpha=4.0, last_layers=2, freeze_a=False))
    backbone, flat = Backbone(job), np.zeros(2, dtype=bool)
    data = prepare(Client("a", train=rows(0, 30, 1), records=30), job, backbone.tokenizer)
    mine, model = initial_state(backbone, 2), LocalModel(2, (False, False), flat)

    def values():
        with loaded_into(backbone, mine, 2, flat):
            named = [(n, p) for n, p in backbone.model.named_parameters() if "lora_" in n]
            found = {n: p.detach().clone() for n, p in named if CLUSTER in n}
        return found | {n: torch.from_numpy(v) for n, v in mine.head.items()}

    for turn, factor in ((0, "lora_B"), (1, "lora_A"), (2, "lora_B"), (None, "lora_")):
        before = values()
        engine = DPSGD if turn is None else utility.one_factor(turn)
        trainer = RoundTrainer(backbone, job, engine=engine)
        source, mechanism = NoiseSource.from_os(), Mechanism(1.0, 30, 1)
        trainer.train(data, mine, model, mechanism, source, upload_gradient=False)
        moved = {n for n, value in values().items() if not torch.equal(value, before[n])}
        assert moved == {n for n in before if factor in n or "lora_" not in n}
        assert len([n for n in moved if "lora_" in n]) == (4 if turn is not None else 8)


@pytest.fixture
def small(utility, tiny_bert, tmp_path, monkeypatch):
    """The command on a tiny model and rows of its own, with arguments that keep all files in a
    folder.
    """
    monkeypatch.setattr(utility, "minilm_folder", lambda: tiny_bert)
    monkeypatch.setattr(utility, "TASKS", {"words": lambda _: list(dict(labelled(400)).items())})
    monkeypatch.setattr(utility, "PrivacyBudget", lambda epsilon, _: PrivacyBudget(epsilon, 1e-4))
    monkeypatch.setattr(utility, "DELTA", 1e-4)
    table = tmp_path / "utility.md"
    table.write_text(
        "before\n<!-- table: python benchmarks/utility -->\nold\n<!-- end of table -->\nafter\n"
    )

    def call(*arguments):
        argv = [
            "utility",
            "--tasks",
            "words",
            "--train",
            "80",
            "--test",
            "40",
            "--results",
            str(tmp_path / "r.jsonl"),
            "--table",
            str(table),
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", argv)
        utility.main()
        return [
            json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()
        ], table.read_text()

    return call


def test_cells_keep_their_budget_and_are_not_trained_twice(small):
    first, _ = small("--epsilons", "6", "none", "--seeds", "0")
    assert [(cell["epsilon"], cell["seed"]) for cell in first] == [(6, 0), (None, 0)]
    private, plain = first
    for name in ("epsilon_spent", "epsilon_spent_head"):
        assert 5.9 < private[name] <= 6
    assert plain["noise"] == {"head": 0.0, "rounds": 0.0, "head_alone": 0.0}
    assert 0 < private["noise"]["head_alone"] < private["noise"]["head"]
    assert plain["probe"] > plain["majority"] + 0.1  # the words of a label are its own
    second, document = small("--epsilons", "6", "none", "--seeds", "0", "1")
    assert second[:2] == first
    assert [cell["seed"] for cell in second] == [0, 0, 1, 1]
    assert document.startswith("before\n")
    assert document.endswith("after\n")
    assert "old" not in document
    assert "| words | 6 |" in document
    other, _ = small("--epsilons", "6", "--seeds", "0", "--test", "39")
    assert len(other) == 5  # other settings: other cells


def test_variants_have_cells_and_a_table_of_their_own(small, utility, monkeypatch, tmp_path):
    chosen = {name: utility.VARIANTS[name] for name in (utility.DEFAULT, "A and B in turns")}
    monkeypatch.setattr(utility, "VARIANTS", chosen)
    marker = "<!-- table: python benchmarks/utility --variants -->"
    with (tmp_path / "utility.md").open("a") as file:
        file.write(f"{marker}\nold\n<!-- end of table -->\nlast\n")
    cells, document = small("--variants", "--epsilons", "6", "--seeds", "100")
    assert len({cell["settings"] for cell in cells}) == len(cells) == 2
    assert all(5.9 < cell["epsilon_spent"] <= 6 for cell in cells)
    first, _, second = document.partition(marker)
    assert "old" in first
    assert second.splitlines()[1] == "| What trains | words, epsilon 6 |"
    assert [line.split(" | ")[0] for line in second.splitlines()[3:5]] == [
        f"| {name}" for name in chosen
    ]
    assert "old" not in second


def test_federations_have_cells_by_column_and_a_table_of_their_own(
    utility, tiny_bert, monkeypatch, tmp_path
):
    federated = loaded(FOLDER / "federated.py")
    words = {
        f"words{task}": lambda _, task=task: list(
            zip(*rows(task, 600, 9).to_dict().values(), strict=True)
        )
        for task in range(2)
    }
    small = {
        "TASKS": words,
        "CHOSEN": tuple(words),
        "TRAIN": 60,
        "TEST": 20,
        "minilm_folder": lambda: tiny_bert,
    }
    shipped = federated.first_wave
    for name, value in {
        **small,
        "first_wave": lambda count: dataclasses.replace(shipped(count), head_steps=5),
        "Federation": functools.partial(federated.Federation, rounds=2),
        "PrivacyBudget": lambda epsilon, _: PrivacyBudget(epsilon, 1e-4),
    }.items():
        monkeypatch.setattr(federated, name, value)
    table, results = tmp_path / "utility.md", tmp_path / "build" / "r.jsonl"
    table.write_text(
        "<!-- table: python benchmarks/utility/federated.py -->\nold\n<!-- end of table -->\n"
    )

    def call(*columns):
        argv = [
            "federated",
            "--each",
            "3",
            "--seeds",
            "0",
            "--results",
            str(results),
            "--table",
            str(table),
            "--columns",
            *columns,
        ]
        monkeypatch.setattr(sys, "argv", argv)
        federated.main()
        return [json.loads(line) for line in results.read_text().splitlines()]

    first = call("tree")
    cells = call("tree", "alone", "head")
    assert cells[:1] == first
    assert [cell["column"] for cell in cells] == ["tree", "alone", "head"]
    assert all(
        cell["accuracy"].keys() == words.keys() and 5 < cell["epsilon_spent"] <= 8 for cell in cells
    )
    lines = table.read_text().splitlines()
    means = [sum(cell["accuracy"].values()) / 2 for cell in cells]
    gains = [f"{means[0] - other:+.3f}" for other in means[1:]]
    assert "old" not in lines
    assert [line.split(" | ")[2] for line in lines[3:6]] == ["words0", "words1", "mean"]
    assert [part.split()[0] for part in lines[5].split(" | ")[7:9]] == gains


def test_the_table_gives_mean_and_range(utility):
    spread = sys.modules["table"].spread
    assert spread([0.8, 0.81, 0.85]) == ".820 (.800 to .850)"
    assert spread([1.0]) == "1.000"
    cells = [
        {
            "task": "t",
            "epsilon": e,
            "seed": s,
            "ours": 0.8 + s / 100,
            "head": 0.7,
            "probe": 0.9,
            "test": 1000,
            "seconds": 10.0,
        }
        for e in (8.0, None)
        for s in range(3)
    ]
    lines = sys.modules["table"].markdown(cells).splitlines()
    assert lines[2].startswith(
        "| t | 8 | .810 (.800 to .820) | .700 (.700 to .700) | +0.110 (+0.100 to +0.120) |"
    )
    assert lines[3].startswith("| t | no DP |")


def test_a_split_repeats_no_text(utility):
    tasks = sys.modules["tasks"]
    texts = [(f"text {i % 90}", "a") for i in range(120)]
    train, test = tasks.split(texts, 60, 30, 0)
    assert len({text for text, _ in train + test}) == 90
    assert tasks.split(texts, 60, 30, 0) == (train, test)
    assert tasks.split(texts, 60, 30, 1) != (train, test)
    with pytest.raises(ValueError, match="the task has 90"):
        tasks.split(texts, 60, 31, 0)
