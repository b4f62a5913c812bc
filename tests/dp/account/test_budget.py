"""Budgets: the stated ranges, and nothing else, are accepted."""

import math

import pytest

from fedtree_dp import ConfigurationError, DPError, PrivacyBudget


@pytest.mark.parametrize("epsilon", [0, -1.0, math.nan, math.inf, "8", None, True])
def test_refuses_epsilon(epsilon):
    with pytest.raises(ConfigurationError, match="epsilon must be a"):
        PrivacyBudget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0, 1, 1.5, -1e-5, math.nan, math.inf])
def test_refuses_delta(delta):
    with pytest.raises(
        ConfigurationError, match="delta must be a finite number above 0 and below 1"
    ):
        PrivacyBudget(epsilon=8, delta=delta)


def test_errors_are_value_errors_and_our_own():
    with pytest.raises(ValueError, match="epsilon"):
        PrivacyBudget(epsilon=0, delta=1e-5)
    assert issubclass(ConfigurationError, DPError)


def test_is_frozen_and_hashable():
    budget = PrivacyBudget(epsilon=8, delta=1e-5)
    with pytest.raises(AttributeError):
        budget.epsilon = 9
    assert {budget: 1}[PrivacyBudget(epsilon=8.0, delta=1e-5)] == 1
    assert budget.to_dict() == {"epsilon": 8.0, "delta": 1e-5}


def test_check_records():
    budget = PrivacyBudget(epsilon=8, delta=1e-3)
    budget.check_records(999)
    for records in (1000, 5000):
        with pytest.raises(ConfigurationError, match=f"not below 1/{records}"):
            budget.check_records(records)
    for records in (0, -3, 2.5, True, "9"):
        with pytest.raises(ConfigurationError, match="records must be a whole number"):
            budget.check_records(records)
