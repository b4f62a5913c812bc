"""What a run must not forget beside its charges: named values, in the same file and the same
transaction.

Each value has a hash over its run, its name and itself; all hashes together have one digest, which
stands beside the count of write transactions and in the signed head. So an edited, added or removed
row is noticed, and a write hashes its own value only, however large the others are.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

import rfc8785

from fedtree_dp import checks
from fedtree_dp.errors import ConfigurationError, LedgerTampered
from fedtree_dp.ledger import schema

LARGEST_VALUE = 64 * 2**20  # bytes
_ROW_TAG = b"fedtree-dp/state-row/v1\n"
_TAG = b"fedtree-dp/state/v1\n"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a store has come.

    Attributes:
        generation: number of write transactions since it got this schema.
        state: digest of all state rows, 32 bytes.
        key: Ed25519 public key of its signed head, 32 bytes; None while it has no head.
    """

    generation: int
    state: bytes
    key: bytes | None


def seal(run: str, name: str, value: bytes) -> bytes:
    """Return the hash of one row."""
    # canonical JSON holds no line break, so that the value's start is unambiguous
    return hashlib.sha256(_ROW_TAG + rfc8785.dumps([run, name]) + b"\n" + value).digest()


def put(connection: sqlite3.Connection, run: str, name: str, value: bytes) -> None:
    """Write one value in the caller's transaction, replacing an earlier one.

    Raises:
        ConfigurationError: not bytes, or larger than 64 MiB; a run or name that is no label.
    """
    _check_names(run, name)
    if not isinstance(value, bytes) or len(value) > LARGEST_VALUE:
        raise ConfigurationError(
            f"{name} of run {run!r} must be bytes, at most {LARGEST_VALUE} of them"
        )
    connection.execute(
        "INSERT OR REPLACE INTO state (run, name, hash, value) VALUES (?, ?, ?, ?)",
        (run, name, seal(run, name, value), value),
    )
    _redigest(connection)


def delete(connection: sqlite3.Connection, run: str, name: str) -> None:
    """Remove one value in the caller's transaction; nothing happens where there is none."""
    _check_names(run, name)
    connection.execute("DELETE FROM state WHERE run = ? AND name = ?", (run, name))
    _redigest(connection)


def get(connection: sqlite3.Connection, run: str, name: str) -> bytes | None:
    """Return one value, or None where there is none.

    Raises:
        LedgerTampered: the row was edited.
    """
    _check_names(run, name)
    if not _kept(connection):
        return None
    found: tuple[bytes, bytes] | None = connection.execute(
        "SELECT hash, value FROM state WHERE run = ? AND name = ?", (run, name)
    ).fetchone()
    if found is None:
        return None
    _check_row(run, name, *found)
    return found[1]


def names(connection: sqlite3.Connection, run: str) -> tuple[str, ...]:
    """Return the names of a run's values, sorted."""
    checks.label("run", run)
    if not _kept(connection):
        return ()
    found = connection.execute("SELECT name FROM state WHERE run = ? ORDER BY name", (run,))
    return tuple(name for (name,) in found.fetchall())


def runs(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return all runs that have values, sorted."""
    if not _kept(connection):
        return ()
    found = connection.execute("SELECT DISTINCT run FROM state ORDER BY run").fetchall()
    return tuple(run for (run,) in found)


def position(connection: sqlite3.Connection) -> Position:
    """Return how far the file has come, its rows' hashes compared with their digest.

    Raises:
        LedgerTampered: the record is gone, or rows were added, removed or edited.
    """
    if not _kept(connection):
        return Position(0, hashlib.sha256(_TAG).digest(), None)
    found: tuple[int, bytes, bytes | None] | None = connection.execute(
        "SELECT number, state, key FROM generation"
    ).fetchone()
    if found is None:
        raise LedgerTampered("the ledger's count of transactions is gone")
    if found[1] != _digest(connection):
        raise LedgerTampered("the state beside the ledger was changed: its digest does not fit")
    return Position(*found)


def check_values(connection: sqlite3.Connection) -> None:
    """Check every value against its hash.

    Raises:
        LedgerTampered: a value was edited.
    """
    if _kept(connection):
        for row in connection.execute("SELECT run, name, hash, value FROM state"):
            _check_row(*row)


def advance(connection: sqlite3.Connection) -> Position:
    """Count the caller's transaction, and return where it leads."""
    connection.execute("UPDATE generation SET number = number + 1")
    return position(connection)


def record_key(connection: sqlite3.Connection, key: bytes) -> None:
    """Write down, in the caller's transaction, that the store has a head signed with this key."""
    connection.execute("UPDATE generation SET key = ?", (key,))


def _kept(connection: sqlite3.Connection) -> bool:
    return schema.number(connection, "user_version") >= 2  # the first with state


def _check_names(run: str, name: str) -> None:
    checks.label("run", run)
    checks.label("name", name)


def _check_row(run: str, name: str, sealed: bytes, value: bytes) -> None:
    if seal(run, name, value) != sealed:
        raise LedgerTampered(f"{name} of run {run!r} was changed: its hash does not fit")


def _digest(connection: sqlite3.Connection) -> bytes:
    found = connection.execute("SELECT hash FROM state ORDER BY run, name").fetchall()
    return hashlib.sha256(_TAG + b"".join(sealed for (sealed,) in found)).digest()


def _redigest(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE generation SET state = ?", (_digest(connection),))
