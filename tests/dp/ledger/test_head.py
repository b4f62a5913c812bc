"""The signed head: a store, a head or a key that was set back, replaced or edited is refused, with
what to do.
"""

import contextlib
import json
import shutil
import sqlite3

import pytest
import rfc8785

from fedtree_dp import (
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerRolledBack,
    LedgerTampered,
    PrivacyBudget,
)
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import schema
from fedtree_dp.ledger.head import Head, HeadFile

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)

FIELDS = ("dataset", "generation", "hash", "ledger", "size", "state")
DEEP = json.dumps(dict.fromkeys(FIELDS, "x")).encode()[:-1] + b', "x": ' + b"[" * 900 + b"]" * 900
DEEP = DEEP.replace(b'"x": [', b'"signature": [') + b"}"


class Place:
    """A store, its head and its key, and copies of them."""

    def __init__(self, folder, name="a"):
        for part in ("first", "second"):
            (folder / part).mkdir(exist_ok=True)
        self.path = folder / "first" / f"{name}.ledger"
        self.head = folder / "second" / f"{name}.head"
        self.key = folder / "second" / f"{name}.head.key"
        self.files = {"store": self.path, "head": self.head, "key": self.key}

    def open(self, **changes):
        return Ledger.open(
            self.path, **{"dataset": "clinic-a", "budget": BUDGET, "head": self.head} | changes
        )

    def write(self, times=1):
        with self.open() as ledger:
            for _ in range(times):
                with ledger.transaction() as current:
                    current.charge(Gaussian(50), job="j", purpose="p")
                    current.put("run", "counter", b"%d" % len(ledger.events()))

    def backup(self):
        return {name: path.read_bytes() for name, path in self.files.items()}

    def restore(self, backup, *names):
        for name in names:
            self.files[name].write_bytes(backup[name])

    def refused(self, kind, text, **changes):
        """Opening fails, with what to do, and repairs nothing."""
        before = {name: path.read_bytes() for name, path in self.files.items() if path.exists()}
        with pytest.raises(kind, match=text) as caught:
            self.open(**changes)
        assert type(caught.value) is kind
        after = {name: path.read_bytes() for name, path in self.files.items() if path.exists()}
        assert after == before
        return str(caught.value)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    made.write(3)
    return made


def edit(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(*statement)


def test_head_and_store_agree_after_every_transaction(place):
    with place.open() as ledger:
        for number in range(3):
            ledger.charge(Gaussian(60), job="j", purpose=f"{number}")
            head = json.loads(place.head.read_bytes())
            assert head["generation"] == ledger.generation == 5 + number
            assert head["size"] == len(ledger.entries())
            assert head["hash"] == ledger.entries()[-1].hash
            assert (head["ledger"], head["dataset"]) == (ledger.identifier, "clinic-a")
            assert json.loads(place.key.read_bytes())["signed"] == head["generation"]
        assert rfc8785.dumps(head) == place.head.read_bytes()
    for file in place.files.values():
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_transaction_that_changes_nothing_is_not_counted(place):
    before = place.backup()
    with place.open() as ledger:
        with ledger.transaction() as current:
            assert current.get("run", "counter") == b"3"
        assert ledger.generation == 4
    assert place.backup() == before


def test_hostile_a_restored_ledger_is_refused(place):
    old = place.backup()
    place.write()
    place.restore(old, "store")
    text = place.refused(LedgerRolledBack, "is an older copy: 4 transactions where its head .* 5")
    assert "Put the newer ledger back" in text
    assert "must not be used any more" in text


def test_hostile_a_restored_ledger_is_refused_while_it_is_open(place):
    old = place.backup()
    with place.open() as ledger:
        ledger.charge(Gaussian(60), job="j", purpose="p")
        place.restore(old, "store")
        with pytest.raises((LedgerTampered, LedgerRolledBack)):
            ledger.charge(Gaussian(60), job="j", purpose="p")
    place.refused(LedgerRolledBack, "is an older copy")


def test_hostile_restored_state_is_refused_while_it_is_open(place):
    """No line shows it: only values changed since."""
    with place.open() as ledger:
        old = place.backup()
        with ledger.transaction() as current:
            current.put("run", "counter", b"9")
        assert ledger.get("run", "counter") == b"9"
        place.restore(old, "store")
        with pytest.raises(LedgerRolledBack, match="set back to an older copy while it was open"):
            ledger.get("run", "counter")


def test_hostile_a_ledger_replaced_by_rename_while_it_is_open(place):
    with place.open() as ledger:
        copy = place.path.with_name("copy")
        shutil.copy(place.path, copy)
        copy.replace(place.path)
        with pytest.raises(LedgerRolledBack, match="replaced by another file while it was open"):
            ledger.charge(Gaussian(60), job="j", purpose="p")


def test_hostile_a_restored_head_is_refused(place):
    old = place.backup()
    place.write(2)
    place.restore(old, "head")
    text = place.refused(LedgerRolledBack, "an older copy: it saw 4 transactions where .* has 6")
    assert "Put the newer head back" in text


def test_hostile_a_restored_ledger_and_head_without_their_key_are_refused(place):
    old = place.backup()
    place.write()
    place.restore(old, "store", "head")
    place.refused(LedgerRolledBack, "ledger and head of 'clinic-a' are older copies: 4 .* signed 5")


def test_hostile_a_restored_key_is_refused(place):
    old = place.backup()
    place.write(2)
    place.restore(old, "key")
    place.refused(LedgerRolledBack, "it signed 4 transactions where the head has 6")


def test_restoring_all_three_cannot_be_seen(place):
    """The admitted limit, so that nobody reads more into the head than it gives."""
    old = place.backup()
    place.write()
    place.restore(old, "store", "head", "key")
    with place.open() as ledger:
        assert len(ledger.events()) == 3


@pytest.mark.parametrize("published", [(), ("head",), ("key",)])
def test_a_crash_between_commit_and_head_is_completed(place, published):
    """Whatever of the two files was in place already: the charge stays, and the head follows."""
    old = place.backup()
    place.write()
    place.restore(old, *({"head", "key"} - set(published)))
    place.write()
    head, key = (json.loads(place.files[name].read_bytes()) for name in ("head", "key"))
    with place.open() as ledger:
        assert head["generation"] == key["signed"] == ledger.generation == 6
        assert len(ledger.events()) == 5


def test_a_crash_is_completed_by_another_open_writer_before_its_own_transaction(place):
    """Otherwise the store would be two ahead."""
    with place.open() as one, place.open() as two:
        old = place.backup()
        one.charge(Gaussian(60), job="j", purpose="p")
        place.restore(old, "head", "key")
        with pytest.raises(ConfigurationError), two.transaction() as current:
            current.put("", "", b"")
        assert json.loads(place.head.read_bytes())["generation"] == one.generation == 5


@pytest.mark.parametrize("name", ["head", "key"])
def test_hostile_a_missing_head_or_key_is_refused(place, name):
    place.files[name].unlink()
    text = place.refused(LedgerTampered, f"its {name} is missing here")
    assert f"put the {name} back" in text


def test_hostile_a_deleted_ledger_does_not_begin_anew(place):
    place.path.unlink()
    place.refused(LedgerRolledBack, "because a new one would forget what was spent")
    place.head.unlink()
    place.refused(LedgerRolledBack, "there is a head of one")
    assert not place.path.exists()


@pytest.mark.parametrize("names", [("head",), ("head", "key"), ("key",)])
def test_hostile_a_foreign_head_is_refused(place, tmp_path, names):
    other = Place(tmp_path, "b")
    with other.open() as ledger:
        for number in range(3):
            ledger.charge(Gaussian(50), job="j", purpose=f"{number}")
    place.restore(other.backup(), *names)
    place.refused(LedgerTampered, "the key of another ledger|not signed with this ledger's key")


def test_hostile_one_head_serves_one_ledger(place, tmp_path):
    other = Place(tmp_path, "b")
    before = place.backup()
    with pytest.raises(LedgerRolledBack, match="there is a head of one"):
        other.open(head=place.head, dataset="clinic-b")
    other.open(head=None, dataset="clinic-b").close()
    with pytest.raises(LedgerTampered, match="the head of another ledger, of data set 'clinic-a'"):
        other.open(head=place.head, dataset="clinic-b")
    assert place.backup() == before
    place.write()


@pytest.mark.parametrize("change", [{"generation": 5}, {"size": 3}, {"state": "00" * 32}])
def test_hostile_an_edited_head_is_refused(place, change):
    fields = json.loads(place.head.read_bytes()) | change
    place.head.write_bytes(rfc8785.dumps(fields))
    place.refused(LedgerTampered, "not signed with this ledger's key: edited")


@pytest.mark.parametrize("name", ["head", "key"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"signed":-1}',
        b"[" * 100_000,
        DEEP,
        b'{"private_key":1}',
    ],
)
def test_hostile_scribbled_heads_and_keys(place, name, content):
    place.files[name].write_bytes(content)
    place.refused(LedgerTampered, "not the|not signed|edited")


def test_hostile_contents_that_the_head_did_not_see(place):
    """An edit that fits the chain and the digests, made without the key."""
    old = place.backup()
    with place.open() as ledger:
        ledger.charge(Gaussian(60), job="j", purpose="p")
    newer = place.backup()
    place.restore(old, "store", "head", "key")
    with place.open() as ledger:
        ledger.charge(Gaussian(70), job="j", purpose="p")
    place.restore(newer, "head", "key")
    place.refused(LedgerTampered, "saw other contents of the ledger after 5 transactions")
    place.restore(old, "head", "key")
    edit(
        place.path,
        ("DROP TRIGGER entries_hold",),
        ("DROP TRIGGER entries_stay",),
        ("DELETE FROM entries WHERE sequence > 2",),
        ("UPDATE head SET size = 3, hash = (SELECT hash FROM entries WHERE sequence = 2)",),
        (schema.SCHEMAS[1]["entries_hold"],),
        (schema.SCHEMAS[1]["entries_stay"],),
    )
    place.refused(LedgerTampered, "saw another line 3 than the ledger has")


def test_hostile_a_ledger_with_a_head_is_not_charged_without_it(place):
    place.refused(LedgerError, "name its file as head", head=None)
    with Ledger.inspect(place.path) as ledger:
        assert len(ledger.events()) == 3


def test_a_ledger_without_a_head_gets_one_once(tmp_path):
    place = Place(tmp_path)
    plain = Ledger.open(place.path, dataset="clinic-a", budget=BUDGET)
    plain.charge(Gaussian(50), job="j", purpose="p")
    copy = place.path.read_bytes()
    with place.open() as ledger:
        assert ledger.events() == (Gaussian(50),)
    with pytest.raises(LedgerError, match="has a signed head"):  # opened before there was one
        plain.charge(Gaussian(50), job="j", purpose="p")
    plain.close()
    place.path.write_bytes(copy)
    place.refused(LedgerRolledBack, "is an older copy: 1 transactions where its head")
    place.head.unlink()
    place.refused(LedgerRolledBack, "are older copies: 1 transactions where the key .* signed 2")


def test_an_interrupted_making_of_the_head_is_taken_up_again(tmp_path):
    place = Place(tmp_path)
    with Ledger.open(place.path, dataset="clinic-a", budget=BUDGET) as plain:
        plain.charge(Gaussian(50), job="j", purpose="p")
    before = place.path.read_bytes()
    place.open().close()
    for kept in (("head", "key"), ("key",)):  # a crash after the key, or after the first head
        place.path.write_bytes(before)
        fields = json.loads(place.head.read_bytes())
        files = HeadFile(place.head)
        files.prepare(Head(**fields | {"generation": 1, "signature": ""}))
        files.publish()
        if "head" not in kept:
            place.head.unlink()
        with place.open() as ledger:
            assert ledger.events() == (Gaussian(50),)
            assert json.loads(place.head.read_bytes())["generation"] == ledger.generation == 2


def test_one_writer_at_a_time_from_the_transaction_to_its_head(place, monkeypatch):
    """Otherwise a slow writer could put its older head over a newer one."""
    monkeypatch.setattr(store, "PATIENCE_S", 0.05)
    with place.open() as ledger:
        with (
            HeadFile(place.head).turn(),
            pytest.raises(
                LedgerError, match=r"has been writing for more than .*nothing was charged"
            ),
        ):
            ledger.charge(Gaussian(60), job="j", purpose="p")
        ledger.charge(Gaussian(60), job="j", purpose="p")


def test_a_second_place_that_cannot_be_written_charges_nothing(place):
    blocked = place.head.with_name(f"{place.head.name}.next")
    with place.open() as ledger:
        blocked.unlink(missing_ok=True)
        blocked.mkdir()  # refuses a file also to root
        before = ledger.entries()
        with pytest.raises(LedgerError, match=r"a\.head: the head cannot .*; nothing was charged"):
            ledger.charge(Gaussian(60), job="j", purpose="p")
        assert ledger.entries() == before
        blocked.rmdir()
        ledger.charge(Gaussian(60), job="j", purpose="p")


def test_a_head_that_fails_after_the_commit_is_completed_by_the_next_transaction(
    place, monkeypatch
):
    with place.open() as ledger:
        old = place.head.read_bytes()
        place.head.unlink()
        place.head.mkdir()
        (place.head / "in the way").touch()
        with pytest.raises(LedgerError, match=r"cannot read the head .*: Is a directory"):
            ledger.charge(Gaussian(60), job="j", purpose="p")
        (place.head / "in the way").unlink()
        place.head.rmdir()
        place.head.write_bytes(old)
        monkeypatch.setattr(store, "flush", _fails)
        with pytest.raises(LedgerError, match="nothing of it may leave"):
            ledger.charge(Gaussian(60), job="j", purpose="p")
        monkeypatch.undo()
        assert len(ledger.events()) == 4, "at most too much is counted"
        ledger.charge(Gaussian(60), job="j", purpose="p")
    place.open().close()


def _fails(path):
    raise OSError(28, "No space left on device")


def test_the_head_is_not_the_ledger(tmp_path):
    for name in ("a", "a.key"):
        with pytest.raises(ConfigurationError, match="another file than the ledger"):
            Ledger.open(tmp_path / name, dataset="clinic-a", budget=BUDGET, head=tmp_path / "a")
    with pytest.raises(LedgerError, match=r"cannot lock with .*existing, writable folder"):
        Ledger.open(
            tmp_path / "b", dataset="clinic-a", budget=BUDGET, head=tmp_path / "missing" / "a"
        )


def test_the_key_is_never_shown(place):
    seed = json.loads(place.key.read_bytes())["private_key"]
    key = HeadFile(place.head)._key()
    assert seed not in repr(key)
    assert seed not in place.path.read_bytes().hex() + place.head.read_text()
    place.key.write_text(f'{{"private_key": "{seed}ff", "signed": 4}}')
    with pytest.raises(LedgerTampered) as caught:
        place.open()
    assert seed not in str(caught.value)
    assert caught.value.__suppress_context__
