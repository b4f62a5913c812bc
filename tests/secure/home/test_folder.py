"""`fedtree-secure init`: what is seen in a folder, what is refused, and the job file it makes."""

import json

import pandas as pd
import pytest

from fedtree_secure import ConfigurationError, DataError
from fedtree_secure.config import Job
from fedtree_secure.errors import FedTreeError
from fedtree_secure.home.folder import Found, Wanted, look, plain_name
from fedtree_secure.home.job_text import Choices, declared, delta_for, job_text
from fedtree_secure.job_file import load_job

FEW = {"note": ["a longer text of a note", "another one"] * 4, "code": ["01", "1"] * 4}


def write(folder, name, columns=FEW):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in frame.to_dict("records")))


def job_of(folder, **choices):
    place = folder / "job.toml"
    given = {"epsilon": 8, "backbone": "m", **choices}
    place.write_text(job_text(look(folder, Wanted()), folder, place, Choices(**given)))
    return load_job(place)


@pytest.mark.parametrize(
    "names",
    [
        ("heart-train.csv", "heart-test.csv"),
        ("heart_training.csv", "heart_eval.csv"),
        ("train-heart.csv", "test-heart.csv"),
        ("heart/train.csv", "heart/test.csv"),
        ("heart/train.parquet", "heart/validation.jsonl"),
        ("heart.csv", "heart-test.csv"),
    ],
)
def test_a_client_is_what_its_files_share_without_the_split(tmp_path, names):
    for name in names:
        write(tmp_path, name)
    (found,) = look(tmp_path, Wanted())
    assert (found.id, found.train.name, found.test.name) == (
        "heart",
        *(name.rpartition("/")[2] for name in names),
    )
    assert (found.rows, found.test_rows) == (8, 8)


def test_a_file_alone_is_all_of_a_client(tmp_path):
    write(tmp_path, "Heart & Lung.csv")
    (found,) = look(tmp_path, Wanted())
    assert (found.id, found.test, found.test_rows) == ("Heart-Lung", None, 0)


def test_hidden_files_and_other_kinds_are_left_alone(tmp_path):
    write(tmp_path, "heart.csv")
    write(tmp_path, ".cache/old.csv")
    (tmp_path / "readme.txt").write_text("text")
    assert [c.id for c in look(tmp_path, Wanted())] == ["heart"]


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (FEW, "note", "code"),
        ({"Text": ["a"] * 4, "Label": ["x", "y"] * 2}, "Text", "Label"),
        ({"what": ["a long text"] * 4, "kind": ["x", "y"] * 2}, "what", "kind"),
        ({"text": ["a"] * 4, "id": ["1", "2", "3", "4"]}, "text", ""),
    ],
)
def test_columns_are_found_by_name_or_by_what_they_hold(tmp_path, columns, text, label):
    write(tmp_path, "a.csv", columns)
    (found,) = look(tmp_path, Wanted())
    assert (found.text, found.label) == (text, label)


def test_labels_are_names_as_they_stand_in_the_file(tmp_path):
    write(tmp_path, "a.csv")
    assert look(tmp_path, Wanted())[0].labels == ("01", "1")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no .csv"),
        ({"a-test.csv": FEW}, "which has no training file"),
        ({"a-train.csv": FEW, "a/train.csv": FEW}, "are both the train file"),
        ({"a.csv": FEW, "a-train.csv": FEW}, "are both the training rows"),
        ({"a.csv": {"x": ["aaaa"] * 4, "y": ["bbbb"] * 4}}, "--text"),
        ({"a.csv": {"text": ["t"] * 4, "x": ["a", "b"] * 2, "y": ["c", "d"] * 2}}, "--label"),
        ({"a.jsonl": {"x": [1, 2]}}, "no column of text"),
        ({"a.jsonl": {"note": [{"t": "a"}] * 4}}, "'note' holds dict, no texts"),
        ({"a-train.csv": FEW, "a-test.csv": {"note": ["a"]}}, "no column 'code'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_what_to_do(tmp_path, files, told):
    for name, columns in files.items():
        write(tmp_path, name, columns)
    with pytest.raises(FedTreeError) as refused:
        look(tmp_path, Wanted())
    assert told in str(refused.value)


def test_columns_that_are_named_must_be_there(tmp_path):
    write(tmp_path, "a.csv")
    assert look(tmp_path, Wanted(text="code", label="note"))[0].text == "code"
    with pytest.raises(DataError, match="no label column 'x'"):
        look(tmp_path, Wanted(label="x"))


def test_the_job_file_can_be_loaded_and_says_what_was_seen(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}-train.csv", {k: v * 11 for k, v in FEW.items()})
        write(tmp_path, f"{name}-test.csv")
    job, clients = job_of(tmp_path)
    assert isinstance(job, Job)
    assert (job.privacy.epsilon, job.privacy.delta) == (8, 1e-3)
    assert job.topology.source == "one_group"
    assert [c.id for c in clients] == ["a", "b", "c"]
    for c in clients:
        assert (c.text, c.label, c.labels, c.records) == ("note", "code", ("01", "1"), 88)
        assert (tmp_path / c.train).is_file()
        assert (tmp_path / c.test).is_file()
        assert c.dataset == plain_name(f"{tmp_path.name}-{c.id}")


def test_six_clients_can_make_two_groups(tmp_path):
    for name in "abcdef":
        write(tmp_path, f"{name}.csv")
    assert job_of(tmp_path)[0].topology.source == "fingerprint"


def test_a_client_that_lacks_a_rare_label_has_the_label_set_of_the_others(tmp_path):
    for name, labels in {"a": "xyz", "b": "xy", "c": "wxy", "d": "uvt"}.items():
        write(tmp_path, f"{name}.csv", {"text": ["t"] * 12, "label": (list(labels) * 12)[:12]})
    sets = {c.id: c.labels for c in job_of(tmp_path)[1]}
    assert sets["a"] == sets["b"] == sets["c"] == ("w", "x", "y", "z")
    assert sets["d"] == ("t", "u", "v")


def test_without_labels_a_language_model_is_trained(tmp_path):
    for name in "abc":
        write(tmp_path, f"{name}.csv", {"text": ["one", "two"]})
    assert job_of(tmp_path)[0].task == "causal-lm"
    with pytest.raises(ConfigurationError, match="--backbone"):
        job_of(tmp_path, backbone="")


def test_two_clients_are_refused(tmp_path):
    for name in "ab":
        write(tmp_path, f"{name}.csv")
    with pytest.raises(ConfigurationError, match="2 clients"):
        job_of(tmp_path)


def test_a_delta_of_ones_own_is_kept_and_checked(tmp_path):
    for name in "abc":
        write(tmp_path, f"{name}.csv")
    assert job_of(tmp_path, delta=1e-7)[0].privacy.delta == 1e-7
    with pytest.raises(ConfigurationError, match="not below"):
        job_of(tmp_path, delta=0.5)


@pytest.mark.parametrize(
    ("rows", "said"), [(1, 1), (9, 9), (83, 83), (999, 990), (1234, 1200), (98765, 98000)]
)
def test_a_declared_size_is_rounded_down_to_two_digits(rows, said):
    assert declared(rows) == said


@pytest.mark.parametrize(("records", "delta"), [(1, 0.1), (80, 1e-3), (1000, 1e-4), (1001, 1e-5)])
def test_delta_is_a_power_of_ten_at_most_a_tenth_of_one_over_the_records(records, delta):
    assert delta_for(records) == delta
    assert delta * records <= 0.1


def test_names_with_every_character_make_a_toml_that_reads_back(tmp_path):
    odd = tmp_path / 'quo"te\\d'
    odd.mkdir()
    for name in "abc":
        write(odd, f"{name}.csv", {"text": ["t"] * 4, "label": ['"', "é\t\\"] * 2})
    _, clients = job_of(odd)
    assert set(clients[0].labels) == {'"', "é\t\\"}
    assert isinstance(look(odd, Wanted())[0], Found)
