"""The same seeded job, embedded and on Flower: bit for bit the same."""

import pytest
from alike import LABELS, assert_alike, run_embedded
from network import Network

from fedtree_secure.config import Topology, Training
from fedtree_secure.storage import read_json

SEED = "a seed for tests"
TREE = {"fingerprint_share": 0.5, "significance": 0.5, "sketch_size": 64}
TRAINING = Training(
    records=60,
    sample_rate=0.5,
    head="group",
    head_steps=8,
    head_sample_rate=0.5,
    max_length=16,
)


@pytest.fixture(params=["silhouette", "noise_aware"])
def settings(request):
    """The first splits these clients; the second asks for gradients before there is a tree. All of
    them share their heads.
    """
    topology = Topology(cut=request.param, gradient_sketch_size=64, **TREE)
    return {"topology": topology, "training": TRAINING}


@pytest.fixture
def embedded(tmp_path, tiny, settings):
    """The run in one process, with stores of its own."""
    return run_embedded(tmp_path, tiny, SEED, tasks=2, **settings)


def test_a_job_is_the_same_embedded_and_on_flower(embedded, six, settings):
    places = six(labels=LABELS, **settings)
    run = places.take_over(embedded)
    (places.folder / "run.id").write_text(run)
    with Network(places, seed=SEED) as network:
        network.start()
        network.serve()
        assert network.ended() == 0, network.said()
        reports = [places.site(n) / "runs" / run / "report.json" for n in places.names]
        network.until(lambda: all(path.exists() for path in reports), "all have adapters")
    state = read_json(embedded / "server" / "state.json")
    depth = len(state["labels"]) - 1  # the last part is the head of them all
    if settings["topology"].cut == "silhouette":
        assert all(max(row) > 0 for row in state["labels"][:depth]), "this tree does not split"
    assert state["records"][0]["round"] == 0, "no heads were merged"
    assert set(state["labels"][depth]) == {0}
    assert_alike(embedded, places, run)
