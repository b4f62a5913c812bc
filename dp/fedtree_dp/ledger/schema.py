"""The tables of a ledger's file, how an older file becomes a present one, and the refusal of any
other.

Version 1 held lines only. Version 2 adds what a run must not forget beside its charges (`state`)
and a count of write transactions (`generation`), so that one transaction covers both and a signed
head can say how far the file had come.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fedtree_dp.errors import LedgerError, LedgerTampered

APPLICATION_ID = 0x46544450  # "FTDP"
SNAPSHOT_ID = 0x46544453  # "FTDS": a copy, which must never be charged
SCHEMA_VERSION = 2

_FIRST: dict[str, str] = {
    "entries": "CREATE TABLE entries (sequence INTEGER PRIMARY KEY CHECK (sequence >= 0), "
    "body BLOB NOT NULL CHECK (typeof(body) = 'blob'), hash BLOB NOT NULL CHECK (length(hash) = "
    "32))",
    "head": "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, "
    "hash BLOB NOT NULL)",
    "entries_stay": "CREATE TRIGGER entries_stay BEFORE DELETE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'ledger lines are never removed'); END",
    "entries_hold": "CREATE TRIGGER entries_hold BEFORE UPDATE ON entries "
    "BEGIN SELECT RAISE(ABORT, 'ledger lines are never changed'); END",
}
_SECOND: dict[str, str] = {
    # hash before value: reading all hashes then never touches the pages of large values
    "state": "CREATE TABLE state (run TEXT NOT NULL, name TEXT NOT NULL, hash BLOB NOT NULL CHECK "
    "(length(hash) = 32), value BLOB NOT NULL CHECK (typeof(value) = 'blob'), "
    "PRIMARY KEY (run, name))",
    "generation": "CREATE TABLE generation (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "number INTEGER NOT NULL CHECK (typeof(number) = 'integer' AND number >= 0), "
    "state BLOB NOT NULL CHECK (length(state) = 32), "
    "key BLOB CHECK (key IS NULL OR length(key) = 32))",
}

# Tables of each schema that can be read, and the statements that lead from it to the next. Lines of
# the chain never change their form: a migration may add tables, indices or triggers, nothing else.
SCHEMAS: dict[int, dict[str, str]] = {1: _FIRST, 2: _FIRST | _SECOND}
# The digest of no state rows: SHA-256 of "fedtree-dp/state/v1\n".
START = (
    "INSERT INTO generation (one, number, state, key) VALUES (1, 0, "
    "x'f9683107496e12629ee738ac2870fbb4f66500e7b75743964da19cc2fa2cdf97', NULL)"
)
MIGRATIONS: dict[int, tuple[str, ...]] = {1: (*_SECOND.values(), START)}


def install(connection: sqlite3.Connection, application_id: int) -> None:
    """Make the present tables in an empty database, inside the caller's transaction."""
    connection.execute(f"PRAGMA application_id = {application_id}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in SCHEMAS[SCHEMA_VERSION].values():
        connection.execute(statement)
    connection.execute(START)


def check_file(connection: sqlite3.Connection, path: Path, *, snapshot_allowed: bool) -> None:
    """Check that the file is a whole ledger of a known schema.

    Raises:
        LedgerError: another program's file, a snapshot where a ledger is needed, or a newer schema.
        LedgerTampered: pages or tables are not as they were written.
    """
    kind, version = number(connection, "application_id"), number(connection, "user_version")
    if kind not in {APPLICATION_ID, SNAPSHOT_ID}:
        raise LedgerError(f"{path}: a database, but not a privacy ledger. Name another file")
    if kind == SNAPSHOT_ID and not snapshot_allowed:
        raise LedgerError(
            f"{path}: a snapshot of a ledger, which may lack later charges. Name the ledger itself"
        )
    if version not in SCHEMAS:
        raise LedgerError(
            f"{path}: schema {version} is not known here (known: {max(SCHEMAS)}). Update this "
            "package"
        )
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise LedgerTampered(
            f"{path}: damaged ({verdict}). Keep the file, and compare with a snapshot or checkpoint"
        )
    # what SQLite makes itself for a primary key has no text
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    if dict(found.fetchall()) != SCHEMAS[version]:
        raise LedgerTampered(f"{path}: its tables or triggers were changed")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a checked ledger of an older schema to the present one, inside the caller's
    transaction.
    """
    # nothing to do if another process was faster
    for version in range(number(connection, "user_version"), SCHEMA_VERSION):
        for statement in MIGRATIONS[version]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version + 1}")


def number(connection: sqlite3.Connection, pragma: str) -> int:
    """Return a whole number that the file's header holds."""
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
