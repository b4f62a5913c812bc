"""Metrics against other implementations and by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score

from fedtree_secure.model import metrics


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_macro_f1_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    given, answered = rng.integers(4, size=80), rng.integers(3, size=80)  # one is never answered
    found = metrics.of_classifier(given, answered, 5)  # and one occurs nowhere
    every = [*range(5)]
    assert found["confusion"] == confusion_matrix(given, answered, labels=every).tolist()
    assert found["macro_f1"] == pytest.approx(f1_score(given, answered, average="macro"))
    assert found["value"] == pytest.approx((given == answered).mean())


@pytest.mark.parametrize(("right", "rows"), [(0, 7), (7, 7), (3, 40), (999, 1000)])
def test_the_interval_is_that_of_wilson(right, rows):
    found = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(right, rows) == pytest.approx((found.low, found.high), abs=1e-6)


def test_many_labels_are_not_counted_one_by_one():
    assert "confusion" not in metrics.of_classifier([0], [1], metrics.MOST_COUNTED + 1)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    found = metrics.of_language_model(10 * np.log(7), 10)
    assert found["value"] == pytest.approx(7)
    assert np.isfinite(metrics.of_language_model(1e9, 1)["value"])
