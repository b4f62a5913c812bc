"""Mod and strategy of `examples/flower_blocks.py`, with Flower's own ClientApp and FedAvg."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from scripts import loaded

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_secagg import Identity

TRUTH = np.array([1.0, -2.0, 0.5])


@pytest.fixture
def blocks():
    return loaded(Path(__file__).parents[2] / "examples" / "flower_blocks.py")


@pytest.fixture
def made(blocks, tmp_path):
    """Makes the nodes of five sites, and the strategy."""

    def make(lose=lambda _: False):
        identities = {n: Identity.generate(bytes([i, *range(31)])) for i, n in enumerate("abcde")}
        identities = dict(zip(blocks.NAMES, identities.values(), strict=True))
        pinned = blocks.pinned_by(identities)
        apps = [blocks.site_of(n, identities[n], pinned, tmp_path) for n in blocks.NAMES]
        return blocks.Nodes(apps, lose), blocks.MaskedMean(pinned, blocks.STEP)

    return make


def charges(blocks, folder, name):
    with Ledger.inspect(folder / name / "ledger.sqlite") as ledger:
        return [entry.purpose for entry in ledger.entries() if entry.event is not None]


def asked(message):
    record = message.content.config_records["masking"]
    return record["stage"], record["round"]


def run(blocks, nodes, strategy, rounds):
    start = ArrayRecord([np.zeros(blocks.WIDTH)])
    return strategy.start(nodes, start, num_rounds=rounds).arrays.to_numpy_ndarrays()[0]


def test_the_example_learns_and_charges_each_round_once(blocks, tmp_path):
    assert np.abs(blocks.main(tmp_path) - TRUTH).max() < 0.5
    expected = [f"round {number}" for number in range(1, blocks.ROUNDS + 1)]
    assert all(charges(blocks, tmp_path, name) == expected for name in blocks.NAMES)


def test_a_site_that_drops_out_is_charged_and_the_others_are_summed(blocks, made, tmp_path):
    lost = ("mask", 1)
    nodes, strategy = made(lambda m: asked(m) == lost and m.metadata.dst_node_id == 5)
    moved = run(blocks, nodes, strategy, 2)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() > 0
    assert charges(blocks, tmp_path, "eve") == ["round 1", "round 2"]


def test_nothing_but_masked_bytes_leaves_a_site(blocks, made):
    nodes, strategy = made()
    run(blocks, nodes, strategy, 1)
    assert len(nodes.seen) == 5 * 5
    for reply in nodes.seen:
        assert list(reply.content) == ["masking"]
        assert set(reply.content["masking"]) == {"name", "data"}


def test_a_message_that_comes_again_is_answered_with_nothing(blocks, made, tmp_path):
    kept = []
    nodes, strategy = made(kept.append)  # append returns None: nothing is lost
    run(blocks, nodes, strategy, 2)
    before = charges(blocks, tmp_path, "ann")
    again = [message for message in kept if message.metadata.dst_node_id == 1]
    replies = nodes.send_and_receive(again)
    assert len(replies) == 10
    assert all(reply.content["masking"]["data"] == b"" for reply in replies)
    assert charges(blocks, tmp_path, "ann") == before


def test_a_site_whose_budget_is_spent_computes_nothing_and_says_nothing(
    blocks, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(blocks, "BUDGET", PrivacyBudget(epsilon=0.6, delta=1e-4))
    computed = []
    mean = blocks.gaussian_mean
    monkeypatch.setattr(
        blocks, "gaussian_mean", lambda *a, **k: computed.append(1) or mean(*a, **k)
    )
    nodes, strategy = made()
    with pytest.raises(Exception, match="masked"):
        run(blocks, nodes, strategy, 3)
    assert 0 < len(charges(blocks, tmp_path, "ann")) < 3
    assert len(computed) == sum(len(charges(blocks, tmp_path, name)) for name in blocks.NAMES)
    silent = [r for r in nodes.seen if not r.content["masking"]["data"]]
    assert len(silent) == 5
