"""The same seeded job, embedded and on Flower: bit for bit the same."""

import contextlib

import pytest
from network import Network
from processes import seeded
from safetensors.numpy import load_file
from small_jobs import federation, make_clients

from fedtree_dp import Ledger
from fedtree_secure.config import Topology, Training
from fedtree_secure.storage import read_json

SEED = "a seed for tests"
TREE = {"fingerprint_share": 0.5, "significance": 0.5, "sketch_size": 64}
TRAINING = Training(
    records=60,
    sample_rate=0.5,
    head="local",
    head_steps=8,
    head_sample_rate=0.5,
    max_length=16,
)


@pytest.fixture(params=["silhouette", "noise_aware"])
def settings(request):
    """The first splits these clients; the second asks for gradients before there is a tree."""
    topology = Topology(cut=request.param, gradient_sketch_size=64, **TREE)
    return {"topology": topology, "training": TRAINING}


def values_of(path, run):
    """What a client keeps of a run, and what its data set was charged."""
    with Ledger.inspect(path) as ledger:
        events = [(e.purpose, e.event.to_dict()) for e in ledger.entries() if e.event is not None]
        return ledger.get(run, "values"), ledger.get(run, "record"), events


@pytest.fixture
def embedded(tmp_path, tiny, settings):
    """The run in one process, with stores of its own."""
    out = tmp_path / "embedded"
    with contextlib.ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("FEDTREE_STATE", str(tmp_path / "stores"))
        patched.setenv("FEDTREE_HEADS", str(tmp_path / "heads"))
        for patch in seeded(SEED):
            stack.enter_context(patch)
        clients = [type(c)(**{**vars(c), "labels": ("class-0", "class-1")}) for c in make_clients()]
        federation(tiny, **settings).run(clients, out)
    return out


def test_a_job_is_the_same_embedded_and_on_flower(embedded, six, settings):
    places = six(**settings)
    run = read_json(embedded / "job.json")["run"]
    for name in places.names:
        secret = (embedded / "clients" / name / "identity.key").read_bytes()[1:]
        places.replace_key(places.site(name) / "identity.key", secret)
    secret = (embedded / "server" / "identity.key").read_bytes()[1:]
    places.replace_key(places.folder / "server.key", secret)
    places.publish()
    places.policies(places.digest)
    for name in places.names:
        places.approve(name)  # with its new key
    (places.folder / "run.id").write_text(run)

    with Network(places, seed=SEED) as network:
        network.start()
        network.serve()
        assert network.ended() == 0, network.said()
        network.until(
            lambda: all(
                (places.site(n) / "runs" / run / "report.json").exists() for n in places.names
            ),
            "all sites have their adapters",
        )

    here, there = embedded / "server", places.folder / "server"
    ours, theirs = read_json(here / "state.json"), read_json(there / "state.json")
    if settings["topology"].cut == "silhouette":
        assert all(max(row) > 0 for row in ours["labels"]), "this tree does not split"
    for name in ("labels", "records", "clips", "proposal", "finished_round"):
        assert ours[name] == theirs[name], name
    sums = sorted(path.name for path in here.glob("*.safetensors"))
    assert sums == sorted(path.name for path in there.glob("*.safetensors"))
    for name in sums:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    for name in places.names:
        store = places.site(name) / "state" / name / "store.sqlite"
        values, record, events = values_of(store, run)
        same, noted, charged = values_of(embedded.parent / "stores" / name / "store.sqlite", run)
        assert (values, events) == (same, charged), name
        assert record == noted, name
        delivered = places.site(name) / "runs" / run / "adapter" / "adapter_model.safetensors"
        adapter = load_file(embedded / "adapters" / name / "adapter_model.safetensors")
        found = load_file(delivered)
        assert all((adapter[key] == found[key]).all() for key in adapter), name
        report = read_json(places.site(name) / "runs" / run / "report.json")
        told = read_json(embedded / "summary.json")["clients"][name]
        assert report["epsilon_spent"] == told["epsilon_spent"]
        assert report["metric"] == told["metric"]
