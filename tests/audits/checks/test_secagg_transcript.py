"""The run's own uploads: found in what was kept, uniform when they were masked, noticed when they
were not.
"""

import shutil
from collections import Counter

import numpy as np
import pytest

from fedtree_audits.checks import lattice, replay, secagg_transcript
from fedtree_audits.checks.secagg_transcript import _kept, uploads
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.run_folder import open_run
from fedtree_audits.statistics.verdict import Verdict

OWN = {"bytes of the run's uploads", "blocks of the run's uploads", "rounds of the run"}


def names(checks, *, holds=True):
    return {check.name for check in checks if check.holds is holds}


def test_every_clients_uploads_of_every_round_are_found(finished):
    """Of every client in a group: noise decides the tree, and in one run of thirty it leaves some
    without one.
    """
    run = open_run(finished)
    rounds = [
        {name for opened in record["opened"].values() for name in opened}
        for record in run.summary["rounds"]
    ]
    assert len(rounds) == 2
    assert len(rounds[0]) >= 3
    listed, words = uploads(run)
    assert {name: len(bodies) for name, bodies in words.items()} == Counter(
        name for members in rounds for name in members
    )
    assert len(listed) == len(set(listed)) == sum(map(len, rounds))
    lengths = {len(body) for bodies in words.values() for body in bodies}
    assert min(lengths) >= 256  # 2 layers, query and value, 32 rows of rank 2
    assert names(_kept(words)) == OWN


def test_a_run_that_kept_its_messages_is_tested_on_them(finished):
    result = secagg_transcript.AUDIT.audit(finished)
    assert result.verdict is Verdict.PASS
    assert names(result.checks) >= OWN
    assert result.hashes["messages.bin"]


def test_without_messages_the_report_says_what_was_not_looked_at(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "messages.bin").unlink()
    result = secagg_transcript.AUDIT.audit(copy)
    assert result.verdict is Verdict.PASS
    assert not names(result.checks) & OWN
    assert "only hashes were kept" in result.assumptions[-1]


@pytest.mark.parametrize("broken", ["line", "message"])
def test_what_cannot_be_read_is_named(finished, tmp_path, broken):
    copy = shutil.copytree(finished, tmp_path / "copy")
    if broken == "line":
        path = copy / "transcript.txt"
        path.write_text(path.read_text().replace("/mask ", "/mask extra ", 1))
    else:
        (copy / "messages.bin").write_bytes(b"\0" * (copy / "messages.bin").stat().st_size)
    with pytest.raises(MissingEvidence, match="cannot be read"):
        uploads(open_run(copy))
    assert secagg_transcript.AUDIT.audit(copy).verdict is Verdict.INCONCLUSIVE


def masked(change, clients=4, rounds=3, width=4000):
    rng = np.random.default_rng(0)
    made = rng.integers(0, 2**32, (clients, rounds, width), dtype=np.uint32)
    change(made, rng)
    return {f"c{i}": list(made[i]) for i in range(clients)}


def unmasked(made, rng):
    made[1] = rng.normal(0, 2**20, made[1].shape).astype(np.int64).astype(np.uint32)


def reused(made, rng):
    made[2, 1] = made[2, 0] + rng.integers(0, 2**20, made[2, 1].shape, dtype=np.uint32)


def repeated(made, rng):
    made[0, 0, :200] = made[3, 2, :200]


@pytest.mark.parametrize(
    ("change", "notices"),
    [
        (unmasked, "bytes of the run's uploads"),
        (reused, "rounds of the run"),
        (repeated, "blocks of the run's uploads"),
    ],
)
def test_unmasked_reused_and_repeated_masks_are_noticed(change, notices):
    assert notices in names(_kept(masked(change)), holds=False)


def test_uniform_uploads_are_not_accused():
    assert not names(_kept(masked(lambda *_: None)), holds=False)


@pytest.mark.parametrize("module", [lattice, replay, secagg_transcript])
def test_power_is_stated_and_enough(module):
    power = module._power()
    assert power.claim < power.detected
    assert power.enough
    assert power.quantity != "epsilon"  # of what, is said


def test_the_stated_power_of_the_lattice_is_what_draws_show():
    """A scale as stated is noticed in about nine of ten runs; 400 of them, whose share lies 1.5%
    around that.
    """
    scale = float(lattice._power().how.split("scale ")[1].split(" ")[0])
    rng = np.random.default_rng(0)
    cells = lattice._cells(scale)
    caught = 0
    for _ in range(400):
        drawn = rng.choice(
            np.arange(-lattice.REACH, lattice.REACH + 1), size=lattice.DRAWS, p=cells
        )
        caught += not lattice._discrete_law(drawn).holds
    assert 0.8 < caught / 400 < 0.97


def test_the_stated_power_of_the_tree_is_what_draws_show():
    scale = float(replay._power().how.split("multiplier ")[1].split(" ")[0])
    caught = sum(
        not replay._tree(
            lambda means, noise: (
                means.mean(axis=0) * 0
                + noise.normal((replay.DEPTH, replay.WIDTH), scale / replay.SIZE).double().numpy()
            ),
            bytes([i % 256, i // 256]) * 16,
        )[1].holds
        for i in range(300)
    )
    assert 0.8 < caught / 300 < 0.97
