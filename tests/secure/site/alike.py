"""A seeded run in one process and the same run of organisations, compared bit by bit."""

import contextlib
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from seeded import seeded
from small_jobs import federation, make_clients

from fedtree_dp import Ledger
from fedtree_secure.storage import read_json

LABELS = ("class-0", "class-1")


def run_embedded(root: Path, model: Path, seed: str, *, tasks: int, **settings) -> Path:
    """Run in one process, with stores of its own; return the run's folder."""
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("FEDTREE_STATE", str(root / "stores"))
        patched.setenv("FEDTREE_HEADS", str(root / "heads"))
        for patch in seeded(seed):
            stack.enter_context(patch)
        given = make_clients(tasks=tasks)
        clients = [type(c)(**{**vars(c), "labels": LABELS, "records": None}) for c in given]
        federation(model, **settings).run(clients, root / "embedded")
    return root / "embedded"


def values_of(path, run):
    """What a client keeps of a run, and what its data set was charged."""
    with Ledger.inspect(path) as ledger:
        events = [(e.purpose, e.event.to_dict()) for e in ledger.entries() if e.event is not None]
        return ledger.get(run, "values"), ledger.get(run, "record"), events


def assert_alike(embedded: Path, places, run: str) -> None:
    """Tree, rounds, opened sums and experts at the server; values, charges, adapters at sites."""
    here, there = embedded / "server", places.folder / "server"
    ours, theirs = read_json(here / "state.json"), read_json(there / "state.json")
    for name in ("labels", "records", "clips", "proposal", "finished_round"):
        assert ours[name] == theirs[name], name
    sums = sorted(path.name for path in here.glob("*.safetensors"))
    assert sums == sorted(path.name for path in there.glob("*.safetensors"))
    for name in sums:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    for name in places.names:
        store_of = places.site(name) / "state" / name / "store.sqlite"
        values, record, events = values_of(store_of, run)
        same, noted, charged = values_of(embedded.parent / "stores" / name / "store.sqlite", run)
        assert (values, events) == (same, charged), name
        assert record == noted, name
        delivered = places.site(name) / "runs" / run
        adapter = load_file(embedded / "adapters" / name / "adapter_model.safetensors")
        found = load_file(delivered / "adapter" / "adapter_model.safetensors")
        assert sorted(adapter) == sorted(found), name
        assert all((adapter[key] == found[key]).all() for key in adapter), name
        report = read_json(delivered / "report.json")
        told = read_json(embedded / "summary.json")["clients"][name]
        for key in ("epsilon_spent", "metric", "own_epsilon_spent"):
            assert report.get(key) == told.get(key), key
