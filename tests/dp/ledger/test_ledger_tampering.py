"""Changed, shortened, replaced and foreign ledger files are found, and left as they are."""

import contextlib
import hashlib
import json
import shutil
import sqlite3

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtree_dp import (
    Checkpoint,
    ConfigurationError,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerTampered,
    PrivacyBudget,
)
from fedtree_dp.ledger import schema

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "ledger"
    with Ledger.open(file, dataset="clinic-a", budget=BUDGET) as ledger:
        for index in range(4):
            ledger.charge(Gaussian(10 + index), job="j", purpose=f"p{index}")
    return file


def edit(path, *statements, triggers=False):
    """Run SQL on the file, without the triggers unless asked; they are put back."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        if not triggers:
            for name in ("entries_stay", "entries_hold"):
                connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(
                statement
            )
        if not triggers:
            for name in ("entries_stay", "entries_hold"):
                connection.execute(schema.SCHEMAS[1][name])


def refused(path, text, kind=LedgerTampered):
    before = path.read_bytes()
    for opener in (
        lambda: Ledger.open(path, dataset="clinic-a", budget=BUDGET),
        lambda: Ledger.inspect(path),
    ):
        with pytest.raises(kind, match=text):
            opener()
    assert path.read_bytes() == before, "never repaired silently"


def body(path, sequence):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return json.loads(
            connection.execute(
                "SELECT body FROM entries WHERE sequence = ?", (sequence,)
            ).fetchone()[0]
        )


def resealed(path, number, **changes):
    """The statement that replaces a line by a changed one whose own hash fits."""
    data = body(path, number) | changes
    text = rfc8785.dumps({key: value for key, value in data.items() if value is not None})
    return rewritten(number, text)


def rewritten(sequence, text):
    sealed = hashlib.sha256(b"fedtree-dp/ledger/v1\n" + text).digest()
    return "UPDATE entries SET body = ?, hash = ? WHERE sequence = ?", (text, sealed, sequence)


def test_every_line_is_guarded_against_accidents(path):
    for statement in ("DELETE FROM entries", "UPDATE entries SET sequence = 9 WHERE sequence = 4"):
        with pytest.raises(sqlite3.IntegrityError, match="ledger lines are never"):
            edit(path, statement, triggers=True)


def test_any_changed_byte_of_a_line(path):
    content = path.read_bytes()
    start = content.index(b'"noise_multiplier":11')
    for offset in (
        start,
        start + 20,
        content.index(b'"purpose":"p3"') + 12,
        content.index(b'"kind":"charge"') + 3,
    ):
        changed = bytearray(content)
        changed[offset] ^= 1
        path.write_bytes(bytes(changed))
        refused(path, "was changed: its hash does not fit")


def test_scribbled_pages_and_short_files(path):
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * 64 + content[4160:])
    refused(path, "damaged")
    path.write_bytes(
        content[:36] + b"\0\0\0\x05" + content[40:]
    )  # a wrong count of free pages, never read otherwise
    refused(path, "damaged")
    path.write_bytes(content[:5000])
    refused(path, "damaged")
    path.write_bytes(b"not a database at all" * 300)
    refused(path, "no ledger, or a damaged one")
    path.write_bytes(content)
    Ledger.inspect(path).close()


@pytest.mark.parametrize(
    "changes", [{"purpose": "other"}, {"event": {"mechanism": "gaussian", "noise_multiplier": 99}}]
)
def test_an_edited_line_breaks_the_chain(path, changes):
    edit(path, resealed(path, 2, **changes))
    refused(path, "line 3 of the ledger does not follow")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"event": {"mechanism": "gaussian", "noise_multiplier": -1}}, "noise_multiplier must be"),
        ({"event": {"mechanism": "magic"}}, "unknown mechanism"),
        ({"extra": 1}, "fields are not those"),
        ({"kind": "refund"}, "fields are not those"),
        ({"purpose": None}, "fields are not those"),
        ({"purpose": "\n"}, "purpose must be printable"),
        ({"sequence": "4"}, "sequence must be a whole number"),
        ({"sequence": 3}, "does not follow"),
        ({"previous": "0" * 64}, "does not follow"),
    ],
)
def test_a_last_line_that_no_writer_writes(path, changes, text):
    edit(
        path,
        resealed(path, 4, **changes),
        "UPDATE head SET hash = (SELECT hash FROM entries WHERE sequence = 4)",
    )
    refused(path, text)


def test_a_second_first_line(path):
    opened = body(path, 0)
    fields = {name: opened[name] for name in ("budget", "dataset", "ledger")}
    edit(path, resealed(path, 4, kind="opened", event=None, job=None, purpose=None, **fields))
    refused(path, "of kind 'opened', which cannot stand there")


def test_the_same_line_in_other_words(path):
    """Two texts for one meaning would be two hashes for one history."""
    text = rewritten(4, json.dumps(body(path, 4), indent=1).encode())
    edit(path, text, "UPDATE head SET hash = (SELECT hash FROM entries WHERE sequence = 4)")
    refused(path, "its text is not canonical")


@pytest.mark.parametrize("text", [b"[1]", b'{"a": 1}', b"\xff", b"{"])
def test_lines_that_are_not_canonical(path, text):
    edit(path, rewritten(4, text))
    refused(path, "line 4 of the ledger is not one that this package writes")


def test_removed_lines(path):
    content = path.read_bytes()
    edit(path, "DELETE FROM entries WHERE sequence = 4")
    refused(path, "the last line is not the recorded one; lines were removed")
    path.write_bytes(content)
    edit(path, "DELETE FROM entries WHERE sequence = 2")
    refused(path, "line 2 of the ledger is missing: line 3 follows")
    path.write_bytes(content)
    edit(path, "DELETE FROM entries")
    refused(path, "no first line")
    path.write_bytes(content)
    edit(path, "DELETE FROM head")
    refused(path, "head record is gone")


def test_changed_while_open(path):
    with Ledger.open(path, dataset="clinic-a") as ledger:
        edit(path, "DELETE FROM entries WHERE sequence = 4")
        for use in (
            ledger.spent,
            lambda: ledger.charge(Gaussian(90), job="j", purpose="p"),
            ledger.verify,
        ):
            with pytest.raises(LedgerTampered):
                use()


@pytest.mark.parametrize(
    ("statement", "text", "kind"),
    [
        ("DROP TRIGGER entries_hold", "tables or triggers were changed", LedgerTampered),
        ("CREATE TABLE more (x)", "tables or triggers were changed", LedgerTampered),
        ("PRAGMA user_version = 99", "schema 99 is not known here", LedgerError),
        ("PRAGMA application_id = 7", "a database, but not a privacy ledger", LedgerError),
    ],
)
def test_foreign_schema(path, statement, text, kind):
    edit(path, statement, triggers=True)
    refused(path, text, kind)


def shortened(path):
    """Remove the last line so that the file itself does not show it."""
    edit(
        path,
        "DELETE FROM entries WHERE sequence = 4",
        "UPDATE head SET size = 4, hash = (SELECT hash FROM entries WHERE sequence = 3)",
    )


def test_a_checkpoint_shows_what_the_chain_cannot(path, tmp_path):
    old = tmp_path / "old"
    shutil.copy(path, old)
    with Ledger.open(path, dataset="clinic-a") as ledger:
        first = ledger.checkpoint()
        ledger.charge(Gaussian(30), job="j", purpose="later")
        second = ledger.checkpoint()
        assert (first.size, second.size, first.dataset) == (5, 6, "clinic-a")
        ledger.verify(first)
        ledger.verify(second)
    with Ledger.inspect(old) as ledger:
        ledger.verify(first)
        with pytest.raises(LedgerTampered, match=r"5 lines where the checkpoint of .* saw 6"):
            ledger.verify(second)
    shortened(old)
    with Ledger.open(old, dataset="clinic-a") as ledger:
        ledger.verify()
        with pytest.raises(LedgerTampered, match="lines at the end were removed"):
            ledger.verify(first)
        ledger.charge(Gaussian(40), job="j", purpose="another past")
        with pytest.raises(LedgerTampered, match="line 4 is not the one that the checkpoint saw"):
            ledger.verify(first)
    with (
        Ledger.open(tmp_path / "new", dataset="clinic-a", budget=BUDGET) as ledger,
        pytest.raises(LedgerTampered, match="replaced or made anew"),
    ):
        ledger.verify(first)


def test_signed_checkpoints(path):
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    with Ledger.open(path, dataset="clinic-a") as ledger:
        signed = Checkpoint.from_json(ledger.checkpoint(key).to_json())
        ledger.verify(signed, public_key=key.public_key())
        with pytest.raises(LedgerTampered, match="not signed with the expected key"):
            ledger.verify(signed, public_key=other.public_key())
        with pytest.raises(LedgerTampered, match="not signed"):
            ledger.verify(ledger.checkpoint(), public_key=key.public_key())
        forged = Checkpoint(**{**json.loads(signed.to_json()), "size": 4})
        with pytest.raises(LedgerTampered, match="changed after signing"):
            ledger.verify(forged, public_key=key.public_key())
        with pytest.raises(ConfigurationError, match="needs the checkpoint"):
            ledger.verify(public_key=key.public_key())


@pytest.mark.parametrize(
    "change", [{"head": "zz"}, {"ledger": ""}, {"size": 0}, {"signature": "ab"}, {"more": 1}]
)
def test_checkpoints_are_read_strictly(path, change):
    with Ledger.inspect(path) as ledger:
        data = json.loads(ledger.checkpoint().to_json())
    with pytest.raises(ConfigurationError):
        Checkpoint.from_json(json.dumps(data | change))
    with pytest.raises(ConfigurationError, match="not a checkpoint"):
        Checkpoint.from_json("{")


def test_checkpoints_at_a_second_place(path, tmp_path):
    key, place = Ed25519PrivateKey.generate(), tmp_path / "elsewhere.jsonl"
    old = tmp_path / "old"
    shutil.copy(path, old)
    with Ledger.open(path, dataset="clinic-a") as ledger:
        first = ledger.keep_checkpoint(place, key)
        ledger.charge(Gaussian(30), job="j", purpose="later")
        second = ledger.keep_checkpoint(place, key)
        assert (first.size, second.size) == (5, 6)
        ledger.verify_kept(place, public_key=key.public_key())
        with pytest.raises(LedgerTampered, match="not signed with the expected key"):
            ledger.verify_kept(place, public_key=Ed25519PrivateKey.generate().public_key())
        with pytest.raises(LedgerError, match="cannot keep a checkpoint"):
            ledger.keep_checkpoint(tmp_path / "missing" / "place")
        with pytest.raises(LedgerError, match="cannot read checkpoints"):
            ledger.verify_kept(tmp_path / "missing")
    with (
        Ledger.inspect(old) as ledger,
        pytest.raises(LedgerTampered, match="lines at the end were removed"),
    ):
        ledger.verify_kept(place)


def test_a_damaged_second_place(path, tmp_path):
    place = tmp_path / "elsewhere.jsonl"
    with Ledger.open(path, dataset="clinic-a") as ledger:
        ledger.keep_checkpoint(place)
        good = place.read_text()
        other = json.dumps(json.loads(good) | {"ledger": "0" * 32})
        for text, complaint in (
            (good + "{", "line 2: not a checkpoint"),
            ("", "emptied"),
            (good + other, "another ledger"),
        ):
            place.write_text(text)
            with pytest.raises(LedgerTampered, match=complaint):
                ledger.verify_kept(place)
        place.write_text(good)
        ledger.verify_kept(place)
