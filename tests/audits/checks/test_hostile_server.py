"""The attacks are as sharp as they say: weights break what they should and nothing else, lies fit
together, and an honest server is not refused.
"""

import dataclasses

import numpy as np
import pytest

from fedtree_audits.checks import hostile_server
from fedtree_audits.rigs import needle
from fedtree_audits.rigs.attacks_on_rows import pattern, sums
from fedtree_audits.rigs.hostile import (
    ABSURD,
    GROUP,
    NAMES,
    VICTIM,
    Setup,
    Stage,
    base_job,
    halves,
)
from fedtree_secure.testing import Backbone, inside, nodes_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return needle.write_needle_model(tmp_path_factory.mktemp("needle"))


@pytest.fixture
def stage(model, tmp_path):
    backbone = Backbone(base_job(model, "one_group", 2), device="cpu")
    return Stage(backbone, tmp_path, Setup(), b"k" * 32)


def finite(gradient):
    return bool(np.isfinite(np.frombuffer(gradient, dtype=np.float32)).all())


def test_the_public_records_hold_no_needle(stage):
    """Or the guards would refuse the weights, and nothing would be tried on rows."""
    word = stage.backbone.tokenizer.convert_tokens_to_ids(needle.NEEDLE)
    dummies = inside.training.public_records(stage.backbone, 32)
    assert not (dummies["input_ids"] == word).any()


def test_weights_break_what_they_say_and_nothing_else(stage, model):
    job = base_job(model, "one_group", 2, sample_rate=1.0)
    seen = {name: rows for name, (_, rows) in sums(stage, job, target=True).items()}
    assert {len(rows) for rows in seen.values()} == {9}

    def broken(name):
        return sorted(len(tokens) // 8 for tokens, g in seen[name].items() if not finite(g))

    assert broken("initial values") == broken("values within reach") == []
    assert broken("values that break one record") == [22]  # tokens of the target
    assert broken("values that break all others") == [16] * 8
    assert broken("values that break padding") == [22]  # the others fill their width


def test_a_broken_record_is_answered_and_charged_like_none(stage, model):
    job = base_job(model, "fingerprint", 3, learning_rate=ABSURD)
    ((answers, charged), _) = pattern(stage, job, needle.ONLY_NEEDLE, None, target=True)
    assert answers == ("protocol",) * 5
    assert charged == (None, "round 2")


def test_weights_that_break_the_public_records_are_refused_before_any_charge(stage, model):
    job = base_job(model, "fingerprint", 3, learning_rate=ABSURD)
    found = pattern(stage, job, needle.ONLY_WORDS, None, target=True)
    assert [answers for answers, _ in found] == [("refused: experts",)] * 2
    assert found[-1][1] == (None,)


def test_a_lie_fits_together_for_a_whole_group_and_an_honest_round_opens(stage, model):
    job = base_job(model, "fingerprint", 2)
    with stage.liar(job, names=NAMES, tree=halves(stage)) as liar:
        named = {node.members: node.name for node in liar.book.nodes}
        assert set(liar.round(1)) == set(named.values())
        party = liar.parties.participants[VICTIM].party
        liar.lie(GROUP, party.facts.initial + np.float32(1e-3))
        assert set(liar.round(2)) == set(named.values())
        assert np.array_equal(party.store.state.external, party.facts.initial + np.float32(1e-3))


def test_an_invented_sum_moves_only_what_it_should(stage, model):
    job = base_job(model, "one_group", 3)
    with stage.liar(job) as liar:
        change = np.zeros(liar.facts.layout.length, dtype=np.float32)
        change[3], change[7] = 1.0, -1.0
        liar.invent(change, 1)
        (node,) = nodes_of(liar.tree, liar.facts.layout)
        moved = liar.book.values[node.name].values - liar.facts.initial
        assert np.flatnonzero(moved).tolist() == [3, 7]
        assert moved[3] == pytest.approx(job.training.learning_rate, rel=1e-2)
        assert moved[7] == pytest.approx(-job.training.learning_rate, rel=1e-2)


def test_a_build_with_two_faults_fails_in_both_families():
    from fedtree_audits.rigs import broken_client

    setup = dataclasses.replace(
        Setup(participant=broken_client.Recounting), opening=broken_client.one_is_a_quorum
    )
    result = hostile_server.audit_setup(setup, b"k" * 32, rounds=2)
    failed = {check.name.partition(":")[0] for check in result.checks if not check.holds}
    assert failed == {"replies", "tree"}
    assert result.verdict == "FAIL"
