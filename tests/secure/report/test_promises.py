"""What a job promises a client, against what was charged: from a ledger's lines alone."""

import pytest

from fedtree_dp import Gaussian, Ledger, PrivacyBudget, SharedPoissonGaussian, epsilon_of
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.report.promises import agreed_in, broken, until_last_charge

WIDE = PrivacyBudget(epsilon=50, delta=1e-5, own_epsilon=90)


def test_a_run_answers_for_all_charges_until_its_own_last_charge(tmp_path):
    path = tmp_path / "wards.sqlite"
    with Ledger.open(path, dataset="wards", budget=WIDE) as ledger:
        for noise, job in ((4.0, "before"), (3.0, "run"), (2.0, "between"), (3.0, "run")):
            ledger.charge(Gaussian(noise), job=job, purpose="x")
        ledger.charge(Gaussian(1.0), job="later", purpose="x")
        lines = ledger.entries()
    assert [e.noise_multiplier for e in until_last_charge(lines, "run")] == [4.0, 3.0, 2.0, 3.0]
    assert until_last_charge(lines, "never") == ()


def test_promises_are_each_client_s_own():
    job = {
        "privacy": {"epsilon": 8, "delta": 1e-5},
        "budgets": {"a": {"epsilon": 3, "delta": 1e-6}},
    }
    assert agreed_in(job, "a") == PrivacyBudget(3, 1e-6)
    assert agreed_in(job, "b") == PrivacyBudget(8, 1e-5)
    for damaged in ({}, {"privacy": 3}, {"privacy": {"epsilon": 0, "delta": 1}}):
        with pytest.raises((LookupError, TypeError, ConfigurationError)):
            agreed_in(damaged, "a")


def test_what_own_noise_alone_keeps_is_held_to_what_was_agreed():
    charged = (SharedPoissonGaussian(4.0, 1.0, 4, 4),)
    together, alone = epsilon_of([charged[0].together()], 1e-5), epsilon_of(charged, 1e-5)
    assert together < alone
    kept = PrivacyBudget(together + 0.01, 1e-5, own_epsilon=alone + 0.01)
    assert list(broken(kept, charged)) == []
    (said,) = broken(PrivacyBudget(together + 0.01, 1e-5, own_epsilon=alone - 0.01), charged)
    assert said.startswith(f"epsilon by its own noise alone is {alone:.4f}")
    (said,) = broken(PrivacyBudget(together - 0.01, 1e-5, own_epsilon=alone + 0.01), charged)
    assert said.startswith(f"epsilon is {together:.4f} at delta 1e-05, above")
