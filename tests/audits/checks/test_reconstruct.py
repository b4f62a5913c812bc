"""The span check: exact where theory says so, silent where it says so, and a bound that is DP's
own.
"""

import json
import shutil

import numpy as np
import pytest

from fedtree_audits.checks import reconstruct
from fedtree_audits.checks.reconstruct import ONE, PRIVATE, SUM, Setup, Shape
from fedtree_audits.errors import ScoresError
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.token_presence import mean_interval, presence, token_auc
from fedtree_audits.statistics.verdict import Verdict


def gradient(inputs, present, width, seed=0):
    """A linear layer's gradient of the given inputs, shape (width, values)."""
    return np.random.default_rng(seed).normal(size=(width, len(present))) @ inputs[present]


@pytest.mark.parametrize(("tokens", "found"), [(3, True), (7, True), (8, False)])
def test_words_are_found_while_they_do_not_fill_the_space(tokens, found):
    inputs = np.random.default_rng(1).normal(size=(100, 8))
    present = list(range(tokens))
    scores = presence([gradient(inputs, present, 30)], [inputs])
    auc = token_auc(scores, range(100), set(present))
    assert (auc == 1.0) is found


def test_factors_are_taken_together():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(60, 5)), rng.normal(size=(60, 5))
    second[40:] = second[:20]  # alone, the second factor takes word 40 for word 0
    both = presence([gradient(first, [0, 1], 9), gradient(second, [0, 1], 9)], [first, second])
    alone = presence([gradient(second, [0, 1], 9)], [second])
    assert set(np.argsort(both)[-2:]) == {0, 1}
    assert alone[40] == pytest.approx(alone[0], abs=8)
    assert both[40] < both[0] - 10


def test_a_gradient_of_nothing_says_nothing():
    scores = presence([np.zeros((9, 5))], [np.random.default_rng(0).normal(size=(60, 5))])
    assert token_auc(scores, range(60), {1, 2}) == 0.5


def test_all_words_present_is_an_error():
    with pytest.raises(ScoresError, match="all 60 canaries are members"):
        token_auc(np.arange(60.0), range(60), set(range(60)))


def test_the_interval_over_trials_covers():
    rng = np.random.default_rng(0)
    missed = sum(
        not low <= 0.6 <= high
        for _, low, high in (mean_interval(rng.normal(0.6, 0.1, 12), 0.95) for _ in range(400))
    )
    assert 3 <= missed <= 45  # 20 expected; outside with probability below 1e-5
    assert mean_interval([1.0] * 12, 0.95) == (1.0, 1.0, 1.0)


def test_texts_have_no_word_in_common():
    found = " ".join(reconstruct._texts(12, b"k" * 32)).split()
    assert len(found) == len(set(found)) == 12 * reconstruct.LENGTH
    assert found != " ".join(reconstruct._texts(12, b"l" * 32)).split()


def test_large_noise_hides_every_word_and_none_hides_nothing(monkeypatch):
    monkeypatch.setattr(reconstruct, "TRIALS", 4)
    shape = Shape(16, freeze_a=False)
    loud = reconstruct.attack(Setup(), shape, 50.0, 2, b"k" * 32)
    assert min(loud[ONE]) > 0.99
    assert min(loud[SUM]) > 0.95
    assert abs(np.mean(loud[PRIVATE]) - 0.5) < 0.25
    open_ = reconstruct.attack(Setup(Build(), masked=False), shape, 50.0, 2, b"k" * 32)
    assert open_[PRIVATE] == open_[ONE]


def test_the_bound_is_that_of_the_noise(monkeypatch):
    """Claims follow noise and group; an interval of one trial less says less."""
    monkeypatch.setattr(reconstruct, "TRIALS", 3)
    shapes = (Shape(16, freeze_a=False),)
    result = reconstruct.audit_setup(Setup(), 2.0, 4, shapes, b"k" * 32)
    assert result.figures["allowed"] == pytest.approx(0.5987, abs=1e-4)  # Phi(1 / 4)
    assert result.controls == {"one plain update": True}


def test_a_run_without_rounds_is_inconclusive(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    for path in copy.glob("clients/*/noise.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rounds": 0.0}))
    result = reconstruct.AUDIT.audit(copy)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "no rounds" in result.missing[0]
