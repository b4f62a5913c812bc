"""A client's store: charges, records and values change together or not at all."""

import numpy as np
import pytest

from fedtree_dp import BudgetExceeded, Gaussian, Ledger, PrivacyBudget
from fedtree_secure import StoreError
from fedtree_secure.agreed.messages import WireError
from fedtree_secure.client.state import ClientState
from fedtree_secure.client.store import Store
from fedtree_secure.storage import SecretBox

BUDGET = PrivacyBudget(epsilon=8, delta=1e-3)
EVENT = Gaussian(4.0)
BOX = SecretBox(bytes(range(32)))


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "store.sqlite", dataset="rows", budget=BUDGET) as opened:
        yield opened


def store(ledger, box=BOX):
    zeros = np.zeros(3, dtype=np.float32)
    return Store(ledger, "run", box, ClientState(zeros.copy(), zeros.copy(), zeros.copy()))


def charge(store, purpose, event=EVENT, *, repeatable):
    with store.writing() as noted:
        return noted.charge(purpose, event, repeatable=repeatable)


def purposes(ledger):
    return [entry.purpose for entry in ledger.entries() if entry.purpose]


def test_hostile_second_budget_a_repeatable_charge_gives_its_own_seed_again(ledger):
    """Another seed under the old charge would be a second release that nobody paid for."""
    first = store(ledger)
    seed = charge(first, "head", repeatable=True)
    assert charge(first, "head", repeatable=True) == seed
    assert charge(store(ledger), "head", repeatable=True) == seed  # after a crash
    assert charge(first, "fingerprint", repeatable=True) != seed
    assert purposes(ledger) == ["head", "fingerprint"]
    assert first.record.releases == {"head": 1, "fingerprint": 1}


def test_a_kept_result_needs_no_seed(ledger):
    """Seed and result together would show what was there before the noise."""
    kept = store(ledger)
    charge(kept, "head", repeatable=True)
    with kept.writing() as noted:
        noted.finish("head")
    assert kept.record.seeds == {}
    assert charge(store(ledger), "head", repeatable=True) == b""
    assert purposes(ledger) == ["head"]


def test_hostile_restored_store_an_upload_is_charged_each_time(ledger):
    """What depends on a server is never computed twice under one charge, whatever crashed."""
    first = store(ledger)
    seeds = {charge(first, "round 1", repeatable=False) for _ in range(2)}
    seeds.add(charge(store(ledger), "round 1", repeatable=False))
    assert len(seeds) == 3
    assert purposes(ledger) == ["round 1"] * 3


def test_a_refused_write_leaves_no_trace_and_the_store_goes_on(ledger):
    kept = store(ledger)

    def write(number, second):
        with kept.writing() as noted:
            noted.record.counter = number
            noted.charge("round 1", EVENT, repeatable=False)
            second(noted)

    def refuse(noted):
        raise WireError("refused")

    def overspend(noted):
        noted.charge("round 2", Gaussian(0.1), repeatable=False)

    for second, error in ((refuse, WireError), (overspend, BudgetExceeded)):
        with pytest.raises(error):
            write(7, second)
        assert kept.record.counter == 0
        assert purposes(ledger) == []
    charge(kept, "round 1", repeatable=False)


def test_a_store_that_failed_to_write_answers_nothing_more(ledger):
    """What is in memory and on the disk may differ then."""
    kept = store(ledger)

    def fail():
        with kept.writing() as noted:
            noted.charge("round 1", EVENT, repeatable=False)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        fail()
    with pytest.raises(StoreError, match="start this client again"):
        charge(kept, "round 1", repeatable=False)
    assert purposes(ledger) == []
    charge(store(ledger), "round 1", repeatable=False)


def test_values_and_seeds_are_encrypted_at_rest(ledger):
    kept = store(ledger)
    kept.state.own = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    with kept.writing() as noted:
        seed = noted.charge("head", EVENT, repeatable=True)
        noted.keep(kept.state)
    assert np.array_equal(store(ledger).state.own, kept.state.own)
    files = [path.read_bytes() for path in ledger.path.parent.iterdir()]
    for secret in (kept.state.own.tobytes(), seed, seed.hex().encode()):
        assert not any(secret in data for data in files)
    with pytest.raises(StoreError):
        store(ledger, SecretBox(None))


def test_a_record_of_another_version_or_a_damaged_one_is_refused(ledger):
    for stored in (b'{"format": 2}', b"{", b'{"more": 1}'):
        with ledger.transaction() as transaction:
            transaction.put("run", "record", stored)
        with pytest.raises(StoreError):
            store(ledger)
