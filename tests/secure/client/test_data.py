"""Rows: read from files, checked, tokenised; bad rows are refused by name and place."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from small_jobs import make_job, rows

from fedtree_secure import Client, DataError, PrivacyBudget
from fedtree_secure.client.data import load_clients, prepare
from fedtree_secure.config import ClientFiles


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def client(train, test=None, **more):
    return Client("a", train=train, test=test, **more)


def table(texts, labels):
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, suffix, tiny_bert, tokenizer):
    frame = pd.DataFrame({"words": ["bab fod", "fef", "bab"], "topic": [3, 5, 3]})
    path = tmp_path / f"rows{suffix}"
    {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records"),
        ".parquet": lambda: frame.to_parquet(path),
    }[suffix]()
    entry = ClientFiles(id="a", train=path.name, test=path.name, text="words", label="topic")
    data = prepare(load_clients([entry], tmp_path)[0], make_job(tiny_bert), tokenizer)
    assert data.label_set == (3, 5)
    assert data.train.labels.tolist() == [0, 1, 0]
    assert not data.labels_declared
    assert data.majority == pytest.approx(2 / 3)


def test_class_labels_are_declared_by_the_schema(tiny_bert, tokenizer):
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=["no", "yes", "never seen"])}
    )
    train = Dataset.from_dict({"text": ["bab", "fod"], "label": [1, 0]}, features=features)
    data = prepare(client(train, train), make_job(tiny_bert), tokenizer)
    assert data.label_set == ("no", "yes", "never seen")
    assert data.labels_declared
    assert data.train.labels.tolist() == [1, 0]


def test_batches_are_padded_and_masked(tiny_bert, tokenizer):
    data = prepare(
        client(table(["bab fod fef", "bab"], ["x", "y"])), make_job(tiny_bert), tokenizer
    )
    batch = data.train.batch(np.array([1, 0]), pad=0)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": table(["bab"], ["x"]), "text": "txet"}, "no column 'txet'; it has text, label"),
        ({"train": table(["bab"], ["x"]), "label": "y"}, "no column 'y'"),
        ({"train": table([], [])}, "has no rows"),
        ({"train": table(["bab", "  "], ["x", "y"])}, "row 1 of train has no text"),
        ({"train": table(["bab", "fod"], ["x", None])}, "row 1 of train has no label"),
        (
            {"train": table(["bab", "fod"], ["x", "y"]), "test": table(["bab"], ["z"])},
            "label 'z', which the head",
        ),
        (
            {"train": table(["bab", "fod"], ["x", "y"]), "labels": ("x", "w")},
            "label 'y', which the head",
        ),
        ({"train": table(["bab", "fod"], ["x", "x"])}, "at least two labels"),
        ({"train": table(["bab", "fod"], ["x", "y"]), "labels": ("x", "y", "x")}, "repeat"),
    ],
)
def test_bad_rows_are_refused(tiny_bert, tokenizer, given, told):
    with pytest.raises(DataError, match=r".") as caught:
        prepare(client(**given), make_job(tiny_bert), tokenizer)
    assert told in str(caught.value)
    assert "client a" in str(caught.value)


def test_delta_of_one_over_n_is_refused(tiny_bert, tokenizer):
    job = make_job(tiny_bert, privacy=PrivacyBudget(epsilon=8, delta=0.02))
    with pytest.raises(DataError, match="smaller delta"):
        prepare(client(rows(0, 60, 0)), job, tokenizer)


@pytest.mark.parametrize("name", ["", "a b", "../x", ".hidden", "x" * 65])
def test_ids_that_could_not_be_folders_are_refused(name):
    with pytest.raises(DataError, match="client id"):
        Client(name, train=None)


def test_declared_records_must_be_a_count():
    with pytest.raises(DataError, match="declared records"):
        Client("a", train=None, records=0)


@pytest.mark.parametrize(
    ("name", "told"),
    [("none.csv", "no file"), ("x.txt", "suffix '.txt'"), ("bad.json", "cannot be read")],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, told):
    if name != "none.csv":
        (tmp_path / name).write_text("{ not json")
    with pytest.raises(DataError, match=told):
        load_clients([ClientFiles(id="a", train=name)], tmp_path)


def test_language_modelling_ends_each_text(tiny_llama, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.eos_token_id = 3
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": t}) for t in ("bab fod", "fef"))
    )
    job = make_job(tiny_llama, task="causal-lm")
    data = prepare(
        load_clients([ClientFiles(id="a", train="rows.jsonl")], tmp_path)[0], job, tokenizer
    )
    assert all(row[-1] == 3 for row in data.train.tokens)
    assert data.train.labels is None
    assert data.majority is None
