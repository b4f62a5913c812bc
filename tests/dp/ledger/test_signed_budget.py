"""A budget is changed with a signature: appended, bound to its place, and never without again."""

import contextlib
import json
import sqlite3

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtree_dp import BudgetExceeded, Gaussian, Ledger, LedgerError, LedgerTampered, PrivacyBudget
from fedtree_dp.ledger.entries import (
    budget_key,
    budget_message,
    digest,
    read_chain,
    read_lines,
    seal,
)

EIGHT, FIVE, NINE = (PrivacyBudget(epsilon, 1e-5) for epsilon in (8, 5, 9))
OFFICER, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = OFFICER.public_key().public_bytes_raw().hex()


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger.open(path, dataset="a", budget=EIGHT, head=tmp_path / "head.json") as opened:
        opened.charge(Gaussian(5.0), job="j", purpose="p")
        yield opened


def rows(ledger):
    with contextlib.closing(sqlite3.connect(ledger.path)) as connection:
        return connection.execute("SELECT sequence, body, hash FROM entries ORDER BY 1").fetchall()


def edited(row, **changes):
    """The row with other fields and a hash that fits them."""
    body = rfc8785.dumps(json.loads(row[1]) | changes)
    return row[0], body, digest(body)


def test_raising_and_lowering_both_become_lines_of_the_chain(ledger):
    ledger.set_budget(NINE, reason="board", key=OFFICER)
    ledger.set_budget(FIVE, reason="withdrawn", key=OFFICER)
    assert [entry.kind for entry in ledger.entries()[2:]] == ["signed-budget"] * 2
    assert [entry.reason for entry in ledger.entries()[2:]] == ["board", "withdrawn"]
    assert budget_key(ledger.entries()) == PUBLIC
    assert ledger.budget == FIVE
    ledger.verify()


def test_a_lowered_budget_refuses_what_the_old_one_allowed(ledger):
    ledger.require(Gaussian(1.0))
    ledger.set_budget(PrivacyBudget(1.0, 1e-5), reason="lower", key=OFFICER)
    with pytest.raises(BudgetExceeded):
        ledger.charge(Gaussian(1.0), job="j", purpose="q")


def test_after_a_signed_change_no_other_key_and_no_key_will_do(ledger):
    ledger.set_budget(FIVE, reason="first", key=OFFICER)
    before = ledger.entries()
    for key in (None, STRANGER):
        with pytest.raises(LedgerError, match="needs its signature"):
            ledger.set_budget(NINE, reason="more", key=key)
    assert ledger.entries() == before
    ledger.set_budget(NINE, reason="more", key=OFFICER)


def test_an_unsigned_change_is_possible_only_before_the_first_signature(ledger):
    ledger.set_budget(NINE, reason="unsigned")
    assert budget_key(ledger.entries()) is None
    ledger.set_budget(FIVE, reason="signed", key=OFFICER)
    ledger.verify()


def test_an_unsigned_line_behind_a_signed_one_is_noticed(ledger):
    ledger.set_budget(NINE, reason="unsigned")
    ledger.set_budget(FIVE, reason="signed", key=OFFICER)
    chain = rows(ledger)
    forged = seal(
        "budget",
        {"budget": NINE.to_dict(), "reason": "forged"},
        sequence=len(chain),
        previous=chain[-1][2].hex(),
    )
    with pytest.raises(LedgerTampered, match="without the signature"):
        read_chain([*chain, forged])


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"epsilon": 50.0, "delta": 1e-5}},
        {"reason": "another"},
        {"signature": "00" * 64},
        {"signature": "x"},
        {"key": "00" * 32},
        {"key": "zz"},
        {"key": STRANGER.public_key().public_bytes_raw().hex()},
    ],
)
def test_an_edited_change_is_noticed_though_its_hash_fits(ledger, changes):
    ledger.set_budget(FIVE, reason="signed", key=OFFICER)
    *chain, last = rows(ledger)
    assert len(read_chain([*chain, last])) == 3
    with pytest.raises(LedgerTampered, match="signature that does not fit"):
        read_chain([*chain, edited(last, **changes)])


def test_a_signature_is_for_one_place_of_one_ledger(ledger, tmp_path):
    ledger.set_budget(NINE, reason="once", key=OFFICER)
    (*_, signed) = ledger.entries()
    chain = rows(ledger)
    again = {
        "budget": NINE.to_dict(),
        "reason": "once",
        "key": signed.key,
        "signature": signed.signature,
    }
    later = seal("signed-budget", again, sequence=len(chain), previous=chain[-1][2].hex())
    with pytest.raises(LedgerTampered, match="does not fit"):
        read_chain([*chain, later])
    with Ledger.open(tmp_path / "b.sqlite", dataset="a", budget=EIGHT) as other:
        first = rows(other)
    elsewhere = seal("signed-budget", again, sequence=1, previous=first[-1][2].hex())
    with pytest.raises(LedgerTampered, match="does not fit"):
        read_chain([*first, elsewhere])


def test_what_is_signed_names_ledger_place_and_change(ledger):
    message = budget_message(ledger.entries(), FIVE, "why")
    assert ledger.identifier.encode() in message
    assert ledger.entries()[-1].hash.encode() in message
    assert b'"reason":"why"' in message
    assert message != budget_message(ledger.entries()[:1], FIVE, "why")


def test_signed_changes_survive_export_and_snapshot(ledger, tmp_path):
    ledger.set_budget(FIVE, reason="signed", key=OFFICER)
    ledger.export(tmp_path / "export.jsonl")
    assert read_lines((tmp_path / "export.jsonl").read_text().splitlines()) == ledger.entries()
    ledger.snapshot(tmp_path / "copy.sqlite")
    with Ledger.inspect(tmp_path / "copy.sqlite") as copy:
        assert copy.entries() == ledger.entries()
