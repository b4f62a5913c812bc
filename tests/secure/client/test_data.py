"""Rows: read from files, checked, tokenised; bad rows are refused by name and place."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from small_jobs import make_job, rows

from fedtree_secure import Client, DataError, PrivacyBudget
from fedtree_secure.client.data import load_clients, prepare
from fedtree_secure.client.files import read_rows
from fedtree_secure.job_file import ClientFiles
from fedtree_secure.model.rows import tokenise


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
    assert data.label_set == ("3", "5")
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


def test_a_csv_is_text_and_nothing_else(tmp_path, tiny_bert, tokenizer):
    """Guessing turned 01 into 1 and True into 1; .5 and 1.0 became one label."""
    (tmp_path / "rows.csv").write_text(
        'text,label\nbab,01\nfod,1\nfef,True\nbab,.5\nfod,1.0\n"bab, fod",NA\n'
    )
    loaded = load_clients([ClientFiles(id="a", train="rows.csv")], tmp_path)[0]
    data = prepare(loaded, make_job(tiny_bert), tokenizer)
    assert sorted(data.label_set) == [".5", "01", "1", "1.0", "NA", "True"]
    assert loaded.train["text"][-1] == "bab, fod"


@pytest.mark.parametrize("label", [0.5, 1.0, True, [1], {"a": 1}])
def test_labels_that_are_neither_text_nor_whole_numbers_are_refused(tiny_bert, tokenizer, label):
    rows = {"text": ["bab", "fod"], "label": [label, label]}
    with pytest.raises(DataError, match="labels are text, or whole numbers"):
        prepare(client(rows), make_job(tiny_bert), tokenizer)


def test_whole_numbers_are_their_digits_in_the_order_of_their_size(tiny_bert, tokenizer):
    data = prepare(
        client(table(["bab", "fod", "fef"], [10, 9, -1])), make_job(tiny_bert), tokenizer
    )
    assert data.label_set == ("-1", "9", "10")
    declared = prepare(
        client(table(["bab", "fod"], [1, 0]), labels=(0, 1, 2)), make_job(tiny_bert), tokenizer
    )
    assert declared.label_set == ("0", "1", "2")
    assert declared.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("text,label\nbab, fod,x\nfef,y\n", "line 2 has 3 fields, the header 2"),
        ("text,label\nbab\n", "line 2 has 1 fields"),
        ("text,text\nbab,x\n", "each once"),
        ("", "name the columns"),
        ('text,label\n"bab,x\n', "cannot be read"),
    ],
)
def test_a_csv_whose_rows_do_not_fit_its_header_is_refused(tmp_path, content, told):
    """Unquoted commas shifted the columns in silence."""
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DataError, match=told):
        load_clients([ClientFiles(id="a", train="rows.csv")], tmp_path)


def test_a_text_that_was_cut_does_not_end(tiny_llama):
    """An end token after a cut made a perplexity of 1,933 where 647 was true."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.eos_token_id = 3
    job = make_job(tiny_llama, task="causal-lm")
    limit = job.training.max_length
    longer = " ".join(["bab"] * (limit + 5))
    marks = len(tokenizer("bab")["input_ids"]) - 1  # that the tokenizer adds, its end among them
    assert tokenizer("bab")["input_ids"][-1] == 3
    fits = " ".join(["bab"] * (limit - marks))
    cut, whole, short = tokenise([longer, fits, "bab"], tokenizer, job)
    assert len(cut) == len(whole) == limit
    assert whole[-1] == short[-1] == 3
    assert 3 not in cut[1:]


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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_byte_order_marks_and_line_separators_are_no_trouble(tmp_path, suffix):
    """Spreadsheets write the first; a text of a record may hold U+2028, which ends no line."""
    path, text = tmp_path / f"rows{suffix}", "one\u2028two\u0085three"
    rows = [{"text": text, "label": "a"}, {"text": "four", "label": "b"}]
    written = {
        ".csv": f"text,label\n{text},a\nfour,b\n",
        ".jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        ".json": json.dumps(rows, ensure_ascii=False),
    }
    path.write_text(written[suffix], "utf-8-sig")
    assert read_rows(path, "a").to_list() == rows
