"""The ledger in ordinary use: charging, refusing, reopening, copying; and its answers to
bad input.
"""

import json
import os
import threading

import pytest

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerTampered,
    PoissonGaussian,
    PrivacyBudget,
    calibrate,
    epsilon_of,
)
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import schema

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)
ROUND = PoissonGaussian(noise_multiplier=2.5, sample_rate=0.2, steps=3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clinic-a.ledger"


def opened(path, **changes):
    return Ledger.open(path, **({"dataset": "clinic-a", "budget": BUDGET} | changes))


def test_charges_are_kept_and_epsilon_is_dp_accountings(path):
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, pld

    with opened(path) as ledger:
        assert ledger.spent() == 0.0
        assert ledger.remaining == 8.0
        fingerprint = ledger.charge(Gaussian(20), job="first", purpose="fingerprint")
        for index in range(4):
            entry = ledger.charge(ROUND, job="first", purpose=f"round {index}")
        assert (entry.sequence, entry.kind, entry.job, entry.purpose) == (
            5,
            "charge",
            "first",
            "round 3",
        )
        assert fingerprint.hash == ledger.entries()[2].previous
    with opened(path, budget=None) as ledger:
        assert ledger.budget == BUDGET
        assert ledger.events() == (Gaussian(20), ROUND, ROUND, ROUND, ROUND)
        assert ledger.events(job="second") == ()
        oracle = pld.PLDAccountant()
        for event in ledger.events("first"):
            inner = GaussianDpEvent(event.noise_multiplier)
            step = (
                PoissonSampledDpEvent(event.sample_rate, inner)
                if isinstance(event, PoissonGaussian)
                else inner
            )
            oracle.compose(step, getattr(event, "steps", 1))
        assert ledger.spent() == pytest.approx(oracle.get_epsilon(1e-5), abs=1e-3)
        assert ledger.remaining == BUDGET.epsilon - ledger.spent()


def test_refuses_before_writing(path):
    with opened(path, budget=PrivacyBudget(epsilon=1, delta=1e-5)) as ledger:
        ledger.charge(Gaussian(5), job="j", purpose="one")
        before = path.read_bytes()
        assert ledger.affords(Gaussian(50))
        assert not ledger.affords(Gaussian(5))
        assert not ledger.affords(*[Gaussian(15)] * 25)
        with pytest.raises(
            BudgetExceeded, match=r"'clinic-a'.*of 1 allowed at delta 1e-05.*Nothing was charged"
        ) as caught:
            ledger.charge(Gaussian(5), job="j", purpose="two")
        assert caught.value.spent == ledger.spent() == epsilon_of([Gaussian(5)], 1e-5)
        assert caught.value.requested_total == epsilon_of([Gaussian(5)] * 2, 1e-5)
        assert caught.value.allowed == 1
        with pytest.raises(BudgetExceeded, match="to inf of 1"):
            ledger.charge(Gaussian(0), job="j", purpose="no noise")
        assert path.read_bytes() == before
        ledger.charge(Gaussian(50), job="j", purpose="still fits")


def test_a_calibrated_plan_fits_to_the_last_round(path):
    """Charged in parts, a plan costs what it was calibrated for; one step more does not fit."""
    (plan,) = calibrate([PoissonGaussian(1, 0.05, 200)], BUDGET)
    with opened(path) as ledger:
        for index in range(10):
            ledger.charge(
                PoissonGaussian(plan.noise_multiplier, 0.05, 20), job="j", purpose=f"round {index}"
            )
        assert 7.98 < ledger.spent() <= 8
        assert not ledger.affords(PoissonGaussian(plan.noise_multiplier, 0.05, 1))


def test_budget_changes_are_lines_of_the_chain(path):
    with opened(path) as ledger:
        ledger.charge(Gaussian(1), job="j", purpose="p")
        entry = ledger.set_budget(PrivacyBudget(epsilon=2, delta=1e-6), reason="review of 2026")
        assert (entry.kind, entry.reason) == ("budget", "review of 2026")
        assert ledger.spent() == epsilon_of([Gaussian(1)], 1e-6) > 2
        assert ledger.remaining == 0.0
        with pytest.raises(BudgetExceeded):
            ledger.charge(Gaussian(100), job="j", purpose="p")
    with pytest.raises(LedgerError, match="its budget is epsilon 2 at delta 1e-06, not 8 at 1e-05"):
        opened(path)
    with opened(path, budget=PrivacyBudget(2, 1e-6)) as ledger:
        assert len(ledger.entries()) == 3


def test_two_handles_see_each_other(path):
    with opened(path) as one, opened(path) as two:
        one.charge(Gaussian(3), job="one", purpose="p")
        assert two.events() == (Gaussian(3),)
        two.charge(Gaussian(4), job="two", purpose="p")
        assert one.events() == (Gaussian(3), Gaussian(4))
        assert one.events("two") == (Gaussian(4),)
        assert one.spent() == two.spent()


def test_the_budget_is_checked_again_under_the_lock(path, monkeypatch):
    """Another process spends everything between this one's first look and its lock."""
    with (
        opened(path, budget=PrivacyBudget(epsilon=1, delta=1e-5)) as slow,
        opened(path, budget=None) as quick,
    ):
        locked = store.immediate

        def late(connection, path):
            if connection is slow._connection:
                while quick.affords(Gaussian(10)):
                    quick.charge(Gaussian(10), job="quick", purpose="p")
            return locked(connection, path)

        monkeypatch.setattr(store, "immediate", late)
        with pytest.raises(BudgetExceeded):
            slow.charge(Gaussian(10), job="slow", purpose="p")
        assert slow.events("slow") == ()
        assert slow.spent() <= 1


def test_threads_share_a_ledger(path):
    with opened(path) as ledger:

        def work(name):
            for index in range(5):
                ledger.charge(Gaussian(100), job=name, purpose=f"{index}")

        threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ledger.events()) == 20
        ledger.verify()


def test_a_snapshot_can_be_read_but_never_charged(path, tmp_path):
    copy = tmp_path / "copy"
    with opened(path) as ledger:
        ledger.charge(Gaussian(3), job="j", purpose="p")
        ledger.snapshot(copy)
        ledger.charge(Gaussian(4), job="j", purpose="p")
        ledger.snapshot(copy)
        with Ledger.inspect(copy) as read:
            assert read.entries() == ledger.entries()
            read.verify(ledger.checkpoint())
            with pytest.raises(LedgerError, match="for reading only"):
                read.charge(Gaussian(9), job="j", purpose="p")
        with pytest.raises(LedgerError, match="a snapshot of a ledger"):
            opened(copy)
        for other in (path, tmp_path / "notes.txt"):
            other.exists() or other.write_text("notes")
            with pytest.raises(LedgerError, match="not an earlier snapshot"):
                ledger.snapshot(other)
        with pytest.raises(LedgerError, match="cannot write the snapshot"):
            ledger.snapshot(tmp_path / "missing" / "copy")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clinic-a.ledger",
        "copy",
        "notes.txt",
    ]


def test_inspect_reads_any_dataset(path):
    opened(path).close()
    with Ledger.inspect(path) as ledger:
        assert ledger.dataset == "clinic-a"
        assert repr(ledger) == f"Ledger('{path}', dataset='clinic-a')"
        with pytest.raises(LedgerError, match="for reading only"):
            ledger.set_budget(BUDGET, reason="r")


def test_the_file_is_its_owners(path):
    opened(path).close()
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataset": "clinic-b"}, "the ledger of data set 'clinic-a', not of 'clinic-b'"),
        ({"budget": PrivacyBudget(9, 1e-5)}, "its budget is epsilon 8 at delta 1e-05, not 9"),
    ],
)
def test_foreign_ledger(path, changes, text):
    opened(path).close()
    with pytest.raises(LedgerError, match=text):
        opened(path, **changes)


@pytest.mark.parametrize("dataset", ["", " a", "a\n", "x" * 201, None, 3])
def test_names(path, dataset):
    with pytest.raises(ConfigurationError, match="dataset must be"):
        opened(path, dataset=dataset)
    assert not path.exists()


def test_missing(path, tmp_path):
    for changes in ({"create": False}, {"budget": None}):
        with pytest.raises(
            LedgerError, match="no ledger of 'clinic-a' here; was it moved or deleted"
        ):
            opened(path, **changes)
    with pytest.raises(LedgerError, match="there is no ledger here"):
        Ledger.inspect(path)
    with pytest.raises(LedgerError, match=r"cannot create the ledger .*existing, writable folder"):
        opened(tmp_path / "missing" / "ledger")
    with pytest.raises(LedgerError, match="not a file"):
        opened(tmp_path)
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LedgerError, match="there is no ledger here"):
        opened(path)


def test_charge_refuses_what_is_no_event_or_name(path):
    with opened(path) as ledger:
        with pytest.raises(ConfigurationError, match="only events can be charged"):
            ledger.charge({"mechanism": "gaussian"}, job="j", purpose="p")
        with pytest.raises(ConfigurationError, match="job must be"):
            ledger.charge(Gaussian(3), job="", purpose="p")
        with pytest.raises(ConfigurationError, match="reason must be"):
            ledger.set_budget(BUDGET, reason="")
        assert len(ledger.entries()) == 1


def test_lost_race_of_creation_opens_the_winners_ledger(path, monkeypatch):
    with opened(path) as ledger:
        ledger.charge(Gaussian(9), job="winner", purpose="p")
    monkeypatch.setattr(os.path, "lexists", lambda name: False)
    with opened(path) as ledger:
        assert ledger.events("winner") == (Gaussian(9),)
    assert list(path.parent.iterdir()) == [path]


def test_a_failing_disk_charges_nothing_and_says_so(path, monkeypatch):
    import sqlite3

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with opened(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(store, "append", full)
            with pytest.raises(LedgerError, match="disk is full"):
                ledger.charge(Gaussian(3), job="j", purpose="p")
        assert ledger.events() == ()
        ledger.charge(Gaussian(3), job="j", purpose="p")


def test_a_ledger_that_another_process_holds(path, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE_S", 0.05)
    with (
        opened(path) as holder,
        opened(path) as waiting,
        store.immediate(holder._connection, path),
        pytest.raises(LedgerError, match="database is locked"),
    ):
        waiting.charge(Gaussian(3), job="j", purpose="p")


def test_not_after_a_fork(path, monkeypatch):
    with opened(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            for use in (ledger.entries, ledger.verify, lambda: ledger.snapshot(path)):
                with pytest.raises(LedgerError, match="after a fork each process opens its own"):
                    use()
            ledger.close()  # leaves the parent's connection alone
        assert ledger.spent() == 0.0


def test_empty_file(path):
    path.touch()
    with pytest.raises(LedgerTampered, match="empty; a ledger never is"):
        opened(path)


def test_require_refuses_a_job_before_it_starts(path):
    with opened(path, budget=PrivacyBudget(epsilon=1, delta=1e-5)) as ledger:
        ledger.require(Gaussian(9), Gaussian(9))
        with pytest.raises(BudgetExceeded, match="Nothing was charged"):
            ledger.require(*[Gaussian(9)] * 20)
        assert ledger.events() == ()


def test_odometer_reads_each_job(path):
    with opened(path) as ledger:
        for job, noise in (("first", 5), ("second", 8), ("first", 5)):
            ledger.charge(Gaussian(noise), job=job, purpose="p")
        first, second = ledger.odometer()
        assert (first.job, first.events, second.job, second.events) == ("first", 2, "second", 1)
        assert first.epsilon == epsilon_of([Gaussian(5)] * 2, 1e-5)
        assert (
            second.total
            == epsilon_of([Gaussian(5), Gaussian(8)], 1e-5)
            < first.total
            == ledger.spent()
        )


def test_export_can_be_checked_without_this_package_s_files(path, tmp_path):
    from fedtree_dp.ledger.entries import read_lines

    out = tmp_path / "ledger.jsonl"
    with opened(path) as ledger:
        ledger.charge(ROUND, job="j", purpose="p")
        ledger.export(out)
        ledger.set_budget(BUDGET, reason="review")
        ledger.export(out)
        lines = out.read_text().splitlines()
        assert read_lines(lines) == ledger.entries()
        assert json.loads(lines[1])["event"] == ROUND.to_dict()
        for broken in (
            [lines[0], lines[2]],
            [lines[0], lines[1].replace("2.5", "9.5")],
            ["{}"],
            ["[]"],
            ["x"],
            [],
        ):
            with pytest.raises(LedgerTampered):
                read_lines(broken)
        for ours in (path, tmp_path / "copy"):
            ours.exists() or ledger.snapshot(ours)
            with pytest.raises(LedgerError, match="a ledger or snapshot, so it is not overwritten"):
                ledger.export(ours)
        with pytest.raises(LedgerError, match="cannot write"):
            ledger.export(tmp_path / "missing" / "ledger.jsonl")


def test_an_older_schema_is_migrated_when_opened_for_writing(path, monkeypatch):
    with opened(path) as ledger:
        ledger.charge(Gaussian(9), job="j", purpose="p")
        before = ledger.checkpoint()
    index = "CREATE INDEX by_hash ON entries (hash)"
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 3)
    monkeypatch.setitem(schema.SCHEMAS, 3, schema.SCHEMAS[2] | {"by_hash": index})
    monkeypatch.setitem(schema.MIGRATIONS, 2, (index,))
    old = path.read_bytes()
    with Ledger.inspect(path) as ledger:
        ledger.verify(before)
    with pytest.raises(LedgerError, match="of data set 'clinic-a'"):
        opened(path, dataset="other")
    assert path.read_bytes() == old, "neither reading nor a refused opening migrates"
    with opened(path) as ledger, opened(path) as second:
        for handle in (ledger, second):
            handle.verify(before)
            assert handle._connection.execute("PRAGMA user_version").fetchone() == (3,)
        ledger.charge(Gaussian(9), job="j", purpose="p")


def test_a_migration_that_fails_changes_nothing(path, monkeypatch):
    opened(path).close()
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCHEMA_VERSION", 3)
        patch.setitem(schema.MIGRATIONS, 2, ("CREATE TABLE extra (x)", "CREATE TABLE head (x)"))
        with pytest.raises(LedgerError, match="already exists"):
            opened(path)
    assert path.read_bytes() == old
    opened(path).close()
