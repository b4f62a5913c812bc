"""`fedtree-secure ledger`: what it shows, what it verifies, and ledgers of an earlier version."""

import pytest
from command_line import call

from fedtree_dp import Gaussian, Ledger, PrivacyBudget


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger.open(path, dataset="a", budget=PrivacyBudget(epsilon=8, delta=1e-5)) as opened:
        opened.charge(Gaussian(5.0), job="j", purpose="p")
    return path


def test_a_ledger_lists_its_budget_and_its_charges(ledger, capsys):
    assert call("ledger", "show", ledger) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "data set a" in shown
    assert "budget ε 8" in shown
    assert "noise_multiplier" in shown


def test_a_tampered_ledger_is_reported(ledger, capsys):
    data = bytearray(ledger.read_bytes())
    at = data.index(b'"noise_multiplier":5')
    data[at + len(b'"noise_multiplier":')] = ord("9")
    ledger.write_bytes(data)
    assert call("ledger", "verify", ledger) == 2
    assert "refused" in capsys.readouterr().err


def test_a_ledger_of_an_earlier_version_is_adopted_with_what_was_spent(ledger, stores, capsys):
    assert call("ledger", "adopt", ledger, "--dataset", "a") == 0
    store = stores / "a" / "store.sqlite"
    assert str(store) in capsys.readouterr().out.replace("\n", "")
    assert not ledger.exists()
    with Ledger.inspect(store) as adopted:
        assert adopted.events() == (Gaussian(5.0),)


def test_a_ledger_is_adopted_under_its_own_name_alone(ledger, stores, capsys):
    assert call("ledger", "adopt", ledger, "--dataset", "b") == 2
    assert "refused" in capsys.readouterr().err
    assert ledger.exists()
    assert not stores.exists()
