"""Charges and values in one transaction: all or nothing; and values that were edited."""

import contextlib
import sqlite3
import threading

import pytest

from fedtree_dp import (
    BudgetExceeded,
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerTampered,
    PrivacyBudget,
    epsilon_of,
)
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.ledger import schema, state

BUDGET = PrivacyBudget(epsilon=1, delta=1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clinic-a.ledger"


def opened(path, **changes):
    return Ledger.open(path, **({"dataset": "clinic-a", "budget": BUDGET} | changes))


def edit(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(*statement)


def transact(ledger, *events):
    with ledger.transaction() as current:
        current.put("run", "counter", b"1")
        for event in events:
            current.charge(event, job="j", purpose="p")


def test_charges_and_values_are_kept_together(path):
    with opened(path) as ledger:
        with ledger.transaction() as current:
            entry = current.charge(Gaussian(50), job="j", purpose="round 0")
            second = current.charge(Gaussian(60), job="j", purpose="round 1")
            current.put("run", "counter", b"1")
            current.put("run", "values", b"\0" * 2**20)
            current.put("other", "counter", b"")
            assert current.get("run", "counter") == b"1"
            assert current.names("run") == ("counter", "values")
        assert ledger.entries()[1:] == (entry, second)
        assert second.previous == entry.hash
        assert ledger.generation == 1
    with opened(path) as ledger:
        assert ledger.runs() == ("other", "run")
        assert ledger.names("run") == ("counter", "values")
        assert ledger.names("nobody") == ()
        assert ledger.get("run", "values") == b"\0" * 2**20
        assert ledger.get("other", "counter") == b""
        assert ledger.get("run", "missing") is None
        with ledger.transaction() as current:
            current.put("run", "counter", b"2")
            current.delete("run", "values")
            current.delete("run", "never there")
            assert current.get("run", "values") is None
        assert ledger.get("run", "counter") == b"2"
        assert ledger.names("run") == ("counter",)
        assert ledger.generation == 2
        ledger.verify()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)])
def test_any_exception_rolls_everything_back(path, error):
    with opened(path) as ledger:
        with ledger.transaction() as current:
            current.put("run", "counter", b"1")
        before, lines = path.read_bytes(), ledger.entries()

        def interrupted():
            with ledger.transaction() as current:
                current.charge(Gaussian(50), job="j", purpose="p")
                assert len(ledger.events()) == 1, "seen inside"
                current.put("run", "counter", b"2")
                raise error

        with pytest.raises(type(error)) as caught:
            interrupted()
        assert caught.value is error
        assert path.read_bytes() == before
        assert ledger.entries() == lines
        assert ledger.get("run", "counter") == b"1"
        ledger.charge(Gaussian(50), job="j", purpose="p")
        ledger.verify()


def test_a_refused_charge_takes_the_values_with_it(path):
    with opened(path) as ledger:
        with pytest.raises(BudgetExceeded):
            transact(ledger, Gaussian(1))
        assert ledger.runs() == ()
        assert ledger.generation == 0


def test_charges_of_one_transaction_count_together(path):
    with opened(path) as ledger:
        assert ledger.affords(Gaussian(5))
        with pytest.raises(BudgetExceeded):
            transact(ledger, Gaussian(5), Gaussian(5))
        assert ledger.events() == ()


def test_hostile_a_swallowed_refusal_keeps_nothing(path):
    """A counter without its charge would let a release leave that nobody paid for."""

    def careless(current):
        current.put("run", "counter", b"1")
        with contextlib.suppress(BudgetExceeded):
            current.charge(Gaussian(1), job="j", purpose="p")

    with opened(path) as ledger:
        with (
            pytest.raises(LedgerError, match="operation of this transaction failed, so nothing"),
            ledger.transaction() as current,
        ):
            careless(current)
        assert ledger.runs() == ()


def test_nested_use_is_refused(path, tmp_path):
    with opened(path) as ledger:
        with ledger.transaction() as current:
            current.charge(Gaussian(50), job="j", purpose="p")
            for use in (
                lambda: ledger.charge(Gaussian(50), job="j", purpose="p"),
                lambda: ledger.set_budget(BUDGET, reason="r"),
                ledger.transaction().__enter__,
            ):
                with pytest.raises(LedgerError, match="a transaction is open already"):
                    use()
            for use in (
                ledger.verify,
                ledger.checkpoint,
                lambda: ledger.snapshot(tmp_path / "copy"),
                lambda: ledger.export(tmp_path / "export"),
            ):
                with pytest.raises(LedgerError, match="a transaction is open; copy, check"):
                    use()
        assert len(ledger.events()) == 1
        with pytest.raises(LedgerError, match="this transaction has ended"):
            current.put("run", "late", b"")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_threads_take_turns(path):
    with opened(path) as ledger:

        def work():
            for _ in range(5):
                with ledger.transaction() as current:
                    count = int(current.get("run", "count") or b"0")
                    current.put("run", "count", b"%d" % (count + 1))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.get("run", "count") == b"20"
        assert ledger.generation == 20


@pytest.mark.parametrize(
    ("run", "name", "value"),
    [
        ("", "n", b""),
        ("r", "a\nb", b""),
        (None, "n", b""),
        ("r", 3, b""),
        ("r", "n", "text"),
        ("r", "n", bytearray(b"x")),
        ("r", "n", None),
    ],
)
def test_unusable_names_and_values(path, run, name, value):
    with opened(path) as ledger:
        with pytest.raises(ConfigurationError), ledger.transaction() as current:
            current.put(run, name, value)
        assert ledger.runs() == ()


def test_a_value_that_is_too_large(path, monkeypatch):
    monkeypatch.setattr(state, "LARGEST_VALUE", 10)
    with opened(path) as ledger:
        with ledger.transaction() as current:
            current.put("run", "fits", b"x" * 10)
        with pytest.raises(ConfigurationError, match="at most 10"), ledger.transaction() as current:
            current.put("run", "large", b"x" * 11)


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (("UPDATE state SET value = x'32'",), "counter of run 'run' was changed"),
        (("UPDATE state SET hash = ?", (b"h" * 32,)), "its digest does not fit"),
        (
            ("UPDATE state SET value = x'32', hash = ?", (state.seal("run", "counter", b"2"),)),
            "its digest does not fit",
        ),
        (("UPDATE state SET name = 'other'",), "other of run 'run' was changed"),
        (("DELETE FROM state",), "its digest does not fit"),
        (
            ("INSERT INTO state VALUES ('run', 'more', ?, x'')", (state.seal("run", "more", b""),)),
            "its digest does not fit",
        ),
        (("DELETE FROM generation",), "count of transactions is gone"),
        (("UPDATE generation SET state = ?", (b"d" * 32,)), "its digest does not fit"),
    ],
)
def test_hostile_an_edited_state_row_is_noticed(path, statement, text):
    with opened(path) as ledger, ledger.transaction() as current:
        current.put("run", "counter", b"1")
    edit(path, statement)
    before = path.read_bytes()
    for opener in (lambda: opened(path), lambda: Ledger.inspect(path)):
        with pytest.raises(LedgerTampered, match=text):
            opener()
    assert path.read_bytes() == before


def test_hostile_a_value_edited_while_the_ledger_is_open(path):
    with opened(path) as ledger:
        with ledger.transaction() as current:
            current.put("run", "counter", b"5")
        edit(path, ("UPDATE state SET value = x'31'",))
        with pytest.raises(LedgerTampered, match="was changed"):
            ledger.get("run", "counter")
        with pytest.raises(LedgerTampered, match="was changed"), ledger.transaction() as current:
            current.get("run", "counter")


def test_names_and_values_cannot_be_exchanged():
    """Rows that differ only in where one part ends have other hashes."""
    rows = [("a", "b", b"c"), ("ab", "", b"c"), ("a", "bc", b""), ("a", 'b"]\n', b"c")]
    assert len({state.seal(*row) for row in rows}) == len(rows)


def test_snapshots_and_exports_hold_no_values(path, tmp_path):
    secret = b"a value that stays at home " * 100
    copy, lines = tmp_path / "copy", tmp_path / "lines"
    with opened(path) as ledger:
        with ledger.transaction() as current:
            current.charge(Gaussian(50), job="j", purpose="p")
            current.put("run", "values", secret)
        assert secret[:27] in path.read_bytes()
        ledger.snapshot(copy)
        ledger.export(lines)
        checkpoint = ledger.checkpoint()
        with Ledger.inspect(copy) as read:
            assert read.entries() == ledger.entries()
            read.verify(checkpoint)
            assert read.runs() == ()
            assert read.get("run", "values") is None
    for file in (copy, lines):
        assert secret[:27] not in file.read_bytes()
        assert b"run" not in file.read_bytes().replace(b"run TEXT", b"").replace(b"(run, name", b"")


def test_inspected_ledgers_are_read_only(path):
    opened(path).close()
    with Ledger.inspect(path) as ledger:
        with pytest.raises(LedgerError, match="for reading only"), ledger.transaction():
            pass
        assert ledger.generation == 0


def test_a_refusal_names_data_set_and_file_and_gives_the_statement_s_epsilon(path):
    """The planning grid overstates: what fits by the statement's grid is never refused by it, and
    what is refused is told by the finer one.
    """
    fits = [Gaussian(12)] * 12
    budget = PrivacyBudget(epsilon_of(fits, 1e-5) + 1e-9, 1e-5)
    assert epsilon_of(fits, 1e-5, discretization=PLANNING_DISCRETIZATION) > budget.epsilon
    with opened(path, budget=budget) as ledger:
        for event in fits:
            ledger.charge(event, job="j", purpose="p")
        with pytest.raises(BudgetExceeded) as caught:
            ledger.charge(Gaussian(12), job="j", purpose="p")
        text = str(caught.value)
        assert str(path) in text
        assert "'clinic-a'" in text
        assert f"{epsilon_of([*fits, Gaussian(12)], 1e-5):.4f} of" in text
        assert f"{ledger.spent():.4f} is spent" in text


# --- schema 1, as version 0.1 wrote it ------------------------------------------------------------

V1 = (
    """CREATE TABLE entries (sequence INTEGER PRIMARY KEY CHECK (sequence >= 0), \
body BLOB NOT NULL CHECK (typeof(body) = 'blob'), \
hash BLOB NOT NULL CHECK (length(hash) = 32))""",
    """CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), \
size INTEGER NOT NULL, hash BLOB NOT NULL)""",
    """CREATE TRIGGER entries_stay BEFORE DELETE ON entries \
BEGIN SELECT RAISE(ABORT, 'ledger lines are never removed'); END""",
    """CREATE TRIGGER entries_hold BEFORE UPDATE ON entries \
BEGIN SELECT RAISE(ABORT, 'ledger lines are never changed'); END""",
    "PRAGMA application_id = 1179927632",
    "PRAGMA user_version = 1",
)


@pytest.fixture
def first_schema(tmp_path):
    """A file of schema 1 with three charges, and its lines."""
    path, made = tmp_path / "old", tmp_path / "made"
    with opened(made) as ledger:
        for index in range(3):
            ledger.charge(Gaussian(50 + index), job="j", purpose=f"{index}")
        lines = ledger.entries()
    with contextlib.closing(sqlite3.connect(made)) as connection:
        rows = connection.execute("SELECT sequence, body, hash FROM entries").fetchall()
    edit(
        path,
        *((statement,) for statement in V1),
        *(("INSERT INTO entries VALUES (?, ?, ?)", row) for row in rows),
        ("INSERT INTO head VALUES (1, 4, ?)", (rows[-1][2],)),
    )
    made.unlink()
    return path, lines


def test_a_ledger_of_schema_1_is_read_as_it_is(first_schema, tmp_path):
    path, lines = first_schema
    before = path.read_bytes()
    with Ledger.inspect(path) as ledger:
        assert ledger.entries() == lines
        assert (ledger.generation, ledger.runs(), ledger.names("r")) == (0, (), ())
        assert ledger.get("r", "n") is None
        ledger.snapshot(tmp_path / "copy")
    assert path.read_bytes() == before
    with Ledger.inspect(tmp_path / "copy") as copy:
        assert copy.entries() == lines


@pytest.mark.parametrize("head", [None, "head"])
def test_a_ledger_of_schema_1_opens_and_keeps_all_lines(first_schema, tmp_path, head):
    path, lines = first_schema
    head = head and tmp_path / head
    with opened(path, head=head) as ledger:
        assert ledger.entries() == lines
        assert ledger.generation == (1 if head else 0)
        with ledger.transaction() as current:
            current.charge(Gaussian(60), job="j", purpose="p")
            current.put("run", "counter", b"1")
    with opened(path, head=head) as ledger:
        assert ledger.entries()[:4] == lines
        assert ledger.get("run", "counter") == b"1"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        found = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        )
        assert found == schema.SCHEMAS[2], "a migrated file is like a new one"
