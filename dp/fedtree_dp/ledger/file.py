"""The ledger's file: one SQLite database, durable when a write returns, never half created, never
repaired here.

A rollback journal with `synchronous = EXTRA` (file and folder are flushed before a commit returns)
rather than a write-ahead log, so that one file holds everything. Lines can be added, not changed or
removed (triggers against accidents). Locks need a local file system.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fedtree_dp.errors import LedgerError, LedgerTampered
from fedtree_dp.ledger.entries import Row

APPLICATION_ID = 0x46544450  # "FTDP"
SNAPSHOT_ID = 0x46544453  # "FTDS": a copy, which must never be charged
SCHEMA_VERSION = 1
_PATIENCE_S = 60.0

_SCHEMA: dict[str, str] = {
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

# Tables of each schema that can be read, and the statements that lead from it to the next. Lines of
# the chain never change their form: a migration may add tables, indices or triggers, nothing else.
SCHEMAS: dict[int, dict[str, str]] = {1: _SCHEMA}
MIGRATIONS: dict[int, tuple[str, ...]] = {}


def create(path: Path, first: Row) -> None:
    """Create a ledger with its first line: complete under its name, or not at all.

    Raises:
        FileExistsError: another process was faster, or the file was there.
        LedgerError: the folder is missing or refuses hard links, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.creating-{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(temporary)) as connection, immediate(connection):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in SCHEMAS[SCHEMA_VERSION].values():
                connection.execute(statement)
            append(connection, first)
        flush(temporary)
        os.link(temporary, path)  # unlike a rename, this never replaces a ledger
        flush(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise LedgerError(
            f"cannot create the ledger {path}: {error.strerror}. It needs an existing, writable "
            "folder on a local disk"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open an existing database file; its content is not looked at yet.

    Raises:
        LedgerError: it cannot be opened.
    """
    mode = "ro" if read_only else "rw"
    with explained(path):
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=_PATIENCE_S,
            check_same_thread=False,
        )
        for pragma in (
            "synchronous = EXTRA",
            "fullfsync = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, with the path and what to do."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LedgerError(f"{path}: the line was refused ({error}); nothing was charged") from error
    except sqlite3.OperationalError as error:
        raise LedgerError(
            f"{path}: cannot be used now ({error}); nothing was charged. Check permissions, free "
            "space and whether "
            f"another process has held it for more than {_PATIENCE_S:.0f} s"
        ) from error
    except sqlite3.DatabaseError as error:
        raise LedgerTampered(
            f"{path}: no ledger, or a damaged one ({error}). Keep the file, and compare with a "
            "snapshot or checkpoint"
        ) from error


@contextlib.contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the only write lock of the file from here to a durable commit; roll back on any
    exception.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        _roll_back(connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def append(connection: sqlite3.Connection, row: Row) -> None:
    """Add one line and move the head to it, inside the caller's transaction."""
    connection.execute("INSERT INTO entries (sequence, body, hash) VALUES (?, ?, ?)", row)
    connection.execute(
        "INSERT OR REPLACE INTO head (one, size, hash) VALUES (1, ?, ?)", (row[0] + 1, row[2])
    )


def rows_from(connection: sqlite3.Connection, start: int) -> list[Row]:
    """Return all lines from number `start` on, in order."""
    return connection.execute(
        "SELECT sequence, body, hash FROM entries WHERE sequence >= ? ORDER BY sequence", (start,)
    ).fetchall()


def head(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Return the stored number of lines and the last line's hash.

    Raises:
        LedgerTampered: there is no such record.
    """
    found: tuple[int, bytes] | None = connection.execute("SELECT size, hash FROM head").fetchone()
    if found is None:
        raise LedgerTampered("the ledger's head record is gone")
    return found


def check_file(connection: sqlite3.Connection, path: Path, *, snapshot_allowed: bool) -> None:
    """Check that the file is a whole ledger of this schema.

    Raises:
        LedgerError: another program's file, a snapshot where a ledger is needed, or a newer schema.
        LedgerTampered: pages or tables are not as they were written.
    """
    kind, version = _number(connection, "application_id"), _number(connection, "user_version")
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
    if (
        dict(connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
        != SCHEMAS[version]
    ):
        raise LedgerTampered(f"{path}: its tables or triggers were changed")


@contextlib.contextmanager
def deferred(connection: sqlite3.Connection) -> Iterator[None]:
    """See one state of the file throughout; inside a write transaction, that one."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN DEFERRED")
    try:
        yield
    finally:
        _roll_back(connection)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a checked ledger of an older schema to the present one, all at once or not at all."""
    if _number(connection, "user_version") == SCHEMA_VERSION:
        return
    with immediate(connection):
        for version in range(
            _number(connection, "user_version"), SCHEMA_VERSION
        ):  # nothing if another was faster
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")


def write_text(target: Path, text: str) -> None:
    """Write a file completely or not at all; a ledger or snapshot is never overwritten.

    Raises:
        LedgerError: it is one, or the file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.writing-{secrets.token_hex(8)}")
    try:
        if os.path.lexists(target) and _kind(target) in {APPLICATION_ID, SNAPSHOT_ID}:
            raise LedgerError(
                f"{target}: a ledger or snapshot, so it is not overwritten. Name another file"
            )
        temporary.write_text(text, "utf-8")
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)
    except OSError as error:
        raise LedgerError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def copy(source: sqlite3.Connection, target: Path) -> None:
    """Write a consistent, marked copy of a ledger; an earlier snapshot under that name is replaced
    at once.

    Raises:
        LedgerError: the name holds anything else, or cannot be written.
    """
    temporary = target.with_name(f".{target.name}.copying-{secrets.token_hex(8)}")
    try:
        if os.path.lexists(target) and _kind(target) != SNAPSHOT_ID:
            raise LedgerError(
                f"{target}: not an earlier snapshot, so it is not overwritten. Name another file"
            )
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(temporary)) as connection:
            source.backup(connection)
            connection.execute(f"PRAGMA application_id = {SNAPSHOT_ID}")
        flush(temporary)
        temporary.replace(target)
        flush(target.parent)
    except OSError as error:
        raise LedgerError(f"cannot write the snapshot {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _kind(path: Path) -> int:
    """Return a database's application number, 0 for anything else.

    Asked through SQLite: opening and closing a ledger in any other way would drop this process's
        locks on it (POSIX).
    """
    try:
        with contextlib.closing(connect(path, read_only=True)) as connection:
            return _number(connection, "application_id")
    except (LedgerError, sqlite3.Error):
        return 0


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
