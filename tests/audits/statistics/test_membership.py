"""Membership figures: right by definition, honest about ties and small numbers, intervals that
cover.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score, roc_curve

from fedtree_audits.errors import ScoresError
from fedtree_audits.statistics import estimators as est


def draw(seed, shift=1.0, members=100, others=100, digits=None):
    rng = np.random.default_rng([seed, members])
    values = rng.normal(size=members + others) + shift * (np.arange(members + others) < members)
    values = values if digits is None else values.round(digits)
    return est.scores(values, np.arange(members + others) < members)


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_curve_and_area_agree_with_scikit_learn(digits):
    given = draw(1, digits=digits)
    curve = est.roc(given)
    fpr, tpr, _ = roc_curve(given.included, given.values, drop_intermediate=False)
    assert np.allclose(curve.false_positive, fpr)
    assert np.allclose(curve.true_positive, tpr)
    assert est.area(given) == pytest.approx(roc_auc_score(given.included, given.values))


def test_a_thinned_curve_keeps_its_ends_and_lies_on_the_whole():
    whole = est.roc(draw(1, members=2000, others=2000))
    thin = whole.thinned(100)
    assert len(thin.false_positive) <= 100
    assert (thin.false_positive[0], thin.true_positive[0]) == (0, 0)
    assert (thin.false_positive[-1], thin.true_positive[-1]) == (1, 1)
    points = set(zip(whole.false_positive, whole.true_positive, strict=True))
    assert set(zip(thin.false_positive, thin.true_positive, strict=True)) <= points


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_areas_interval_covers(shift):
    """400 trials; a 95% interval misses more often than this with probability 1e-6 only."""
    from scipy.stats import norm

    truth = norm.cdf(shift / math.sqrt(2))
    found = [est.area_interval(draw(seed, shift, 60, 60)) for seed in range(400)]
    assert sum(not f.low <= truth <= f.high for f in found) <= binom.isf(1e-6, 400, 0.05)
    assert np.mean([f.high - f.low for f in found]) < 0.25


def test_an_area_of_one_has_a_lower_limit_below_one():
    found = est.area_interval(est.scores(np.arange(40), np.arange(40) >= 20))
    assert found.value == found.high == 1.0
    assert 0.8 < found.low < 1.0


def test_true_positives_are_counted_above_the_allowed_false_ones():
    given = est.scores(np.arange(300.0), np.isin(np.arange(300), [250, 295, 296, 297, 298, 299]))
    # non-members 294, 293 and 292 may not be accused at 1% of 294: two may be, so the cut is 292
    found = est.tpr_at_fpr(given, 0.01)
    assert found.value == pytest.approx(5 / 6)
    assert found.low < 5 / 6 < found.high


def test_ties_at_the_cut_accuse_nobody():
    given = est.scores(
        np.r_[np.ones(200), np.zeros(199), 2.0], np.r_[np.arange(399) % 2 == 0, True]
    )
    assert est.tpr_at_fpr(given, 0.01).value == pytest.approx(1 / given.included.sum())


def test_too_few_non_members_for_a_rate_is_an_error_that_says_how_many():
    with pytest.raises(ScoresError, match="at least 1000"):
        est.tpr_at_fpr(draw(0), 0.001)
    assert est.tpr_at_fpr(draw(0), 0.01).value > 0


def test_exposure_is_that_of_the_definition():
    given = est.scores(np.r_[100.0, 49.5, -1.0, np.arange(97)], np.arange(100) < 3)
    assert est.exposure(given) == pytest.approx([math.log2(98), math.log2(98 / 48), 0.0])


def test_nothing_leaked_is_an_exposure_of_about_one_and_a_half_bits():
    found = [est.exposure(draw(seed, 0.0)).mean() for seed in range(200)]
    assert np.mean(found) == pytest.approx(1 / math.log(2), abs=0.1)


def test_equal_scores_expose_nobody():
    given = est.scores(np.r_[np.ones(99), 0.0], np.arange(100) < 50)
    assert (est.exposure(given) <= math.log2(51 / 50) + 1e-9).all()


def test_relative_losses():
    assert est.relative([2.0, 1.0], [1.5, 1.5]) == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: est.relative([1.0, math.nan], [1.0, 1.0]), "not finite"),
        (lambda: est.relative([1.0], [1.0, 1.0]), "one length"),
        (lambda: est.tpr_at_fpr(draw(0), 1.0), "false positive rate is 1.0"),
        (lambda: est.tpr_at_fpr(draw(0), math.nan), "false positive rate is nan"),
        (lambda: est.tpr_at_fpr(draw(0), 0.1, confidence=1.0), "confidence"),
        (lambda: est.area_interval(draw(0), confidence=0.0), "confidence"),
        (
            lambda: est.exposure(est.scores(np.arange(30), np.ones(30, bool))),
            "all 30 canaries are members",
        ),
        (lambda: est.roc(est.scores(np.arange(5), np.arange(5) > 2)), "too few"),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, words):
    with pytest.raises(ScoresError, match=words):
        call()
