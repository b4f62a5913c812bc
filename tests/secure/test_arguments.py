"""What Python callers give by mistake: one sentence, nothing charged, no folder."""

import datetime
from pathlib import Path

import pytest
from small_jobs import make_clients, make_job

from fedtree_secure import Client, Federation, Lora, PrivacyBudget, Topology, Training
from fedtree_secure.config import Job
from fedtree_secure.errors import FedTreeError

BUDGET = PrivacyBudget(epsilon=8, delta=1e-3)
ROWS = {"text": ["badu bebu"] * 60, "label": ["a", "b"] * 30}

SETTINGS = {
    "a budget as a dict": lambda: Federation("m", {"epsilon": 8, "delta": 1e-3}),
    "settings as a dict": lambda: Federation("m", BUDGET, lora={"r": 2}),
    "an unknown setting": lambda: Federation("m", BUDGET, ronds=2),
    "no task": lambda: Federation("m", BUDGET, task=None),
    "targets as text": lambda: Lora(targets="query"),
    "a number as text": lambda: Lora(alpha="4"),
    "a rate as text": lambda: Training(sample_rate="0.5"),
    "a share as text": lambda: Topology(mixing_weight="0.5"),
    "a list for a choice": lambda: Training(pooling=["mean"]),
    "an id that is a number": lambda: Client(5, train=ROWS),
    "declared records as text": lambda: Client("a", train=ROWS, records="60"),
    "labels as one text": lambda: Client("a", train=ROWS, labels="ab"),
    "a client's budget as a dict": lambda: Client("a", train=ROWS, privacy={"epsilon": 8}),
    "no path of a job": lambda: Federation.from_toml(None),
}
CLIENTS = {
    "clients by name": lambda clients: {c.id: c for c in clients},
    "one client": lambda clients: clients[0],
    "names of clients": lambda clients: [c.id for c in clients],
}
TRAIN = {
    "a path": Path("rows.csv"),
    "a name of a file": "rows.csv",
    "a list of rows": [{"text": "badu", "label": "a"}] * 60,
    "nothing": None,
    "fewer labels than texts": {"text": ["badu"] * 60, "label": ["a", "b"]},
    "a label that is a date": {**ROWS, "label": ["a", datetime.date(2020, 1, 1)] * 30},
    "a label that is a list": {**ROWS, "label": ["a", ["b"]] * 30},
    "a label that is a fraction": {**ROWS, "label": [0.5, 1] * 30},
    "a label that is nothing": {**ROWS, "label": ["a", None] * 30},
    "a text that is no text": {**ROWS, "text": [float("nan")] * 60},
}


@pytest.fixture(scope="module")
def job(tiny_bert):
    return Federation.of(make_job(tiny_bert, rounds=1, topology=Topology(source="one_group")))


@pytest.mark.parametrize("what", SETTINGS)
def test_wrong_settings_are_refused(what):
    with pytest.raises(FedTreeError, match=r"allowed|must be|give|did you mean"):
        SETTINGS[what]()


def refused(job, stores, clients, out, **options):
    with pytest.raises(FedTreeError, match=r".") as caught:
        job.run(clients, out, **options)
    assert not stores.exists() or not list(stores.glob("*/store.sqlite"))
    assert not isinstance(out, Path) or not out.exists()
    return str(caught.value)


@pytest.mark.parametrize("what", CLIENTS)
def test_clients_that_are_none_are_refused(job, stores, tmp_path, what):
    said = refused(job, stores, CLIENTS[what](make_clients()[:3]), tmp_path / "out")
    assert "a list of Client" in said


@pytest.mark.parametrize("what", TRAIN)
def test_rows_that_are_none_are_refused(job, stores, tmp_path, what):
    clients = [Client("x", train=TRAIN[what]), *make_clients()[1:3]]
    assert refused(job, stores, clients, tmp_path / "out").startswith("client x: ")


@pytest.mark.parametrize("out", [None, 3])
def test_a_folder_that_is_none_is_refused(job, stores, out):
    assert "the path of a folder" in refused(job, stores, make_clients()[:3], out)


def test_an_unknown_option_is_refused_with_a_suggestion(job, stores, tmp_path):
    said = refused(job, stores, make_clients()[:3], tmp_path / "out", resum=True)
    assert "did you mean 'resume'" in said


def test_paths_and_lists_are_taken_for_what_they_are(tmp_path):
    job = Job(backbone=tmp_path, privacy=BUDGET, lora=Lora(targets=["query"]))
    assert job == Job(backbone=str(tmp_path), privacy=BUDGET, lora=Lora(targets=("query",)))
    assert Client("a", train=ROWS, labels=["a", "b"]).labels == ("a", "b")
