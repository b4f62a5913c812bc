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
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from fedtree_dp.errors import LedgerError, LedgerTampered
from fedtree_dp.ledger import schema
from fedtree_dp.ledger.entries import Row

PATIENCE_S = 60.0


def create(path: Path, first: Row) -> None:
    """Create a ledger with its first line: complete under its name, or not at all.

    Raises:
        FileExistsError: another process was faster, or the file was there.
        LedgerError: the folder is missing or refuses hard links, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.creating-{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(temporary)) as connection, immediate(connection, path):
            schema.install(connection, schema.APPLICATION_ID)
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


def write_durably(path: Path, content: bytes) -> None:
    """Write a file of its owner alone, and wait until its content is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(descriptor)


def replace_durably(path: Path, content: bytes) -> None:
    """Write a file of its owner alone, completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.next")
    write_durably(temporary, content)
    temporary.replace(path)
    flush(path.parent)


def make_private(path: Path) -> None:
    """Take a store away from other users, if it is this user's.

    Raises:
        LedgerError: others may read or write it, and it belongs to somebody else.
    """
    found = path.stat()
    if not found.st_mode & 0o077:
        return
    if found.st_uid != os.geteuid():
        raise LedgerError(
            f"{path}: other users may read or write it, and it is not yours to change. Ask its "
            "owner to run chmod 600 on it"
        )
    path.chmod(0o600)  # by name: opening and closing the file would drop SQLite's locks on it


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
            timeout=PATIENCE_S,
            check_same_thread=False,
        )
        for pragma in (
            "synchronous = EXTRA",
            "fullfsync = ON",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "secure_delete = ON",  # a seed or key that was deleted must not stay in a free page
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
            f"another process has held it for more than {PATIENCE_S:.0f} s"
        ) from error
    except sqlite3.DatabaseError as error:
        raise LedgerTampered(
            f"{path}: no ledger, or a damaged one ({error}). Keep the file, and compare with a "
            "snapshot or checkpoint"
        ) from error


@contextlib.contextmanager
def immediate(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Hold the only write lock of the file from here to a durable commit; roll back on any
    exception.
    """
    with explained(path):
        connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        with explained(path):
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


def write_text(target: Path, text: str) -> None:
    """Write a file completely or not at all; a ledger or snapshot is never overwritten.

    Raises:
        LedgerError: it is one, or the file cannot be written.
    """
    temporary = target.with_name(f".{target.name}.writing-{secrets.token_hex(8)}")
    try:
        if os.path.lexists(target) and _kind(target) in {schema.APPLICATION_ID, schema.SNAPSHOT_ID}:
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


def write_snapshot(rows: Iterable[Row], target: Path) -> None:
    """Write lines into a marked copy of their ledger; an earlier snapshot under that name is
    replaced at once. State rows stay behind: they may hold values, and a copy of lines is for
    others to read.

    Raises:
        LedgerError: the name holds anything else, or cannot be written.
    """
    temporary = target.with_name(f".{target.name}.copying-{secrets.token_hex(8)}")
    try:
        if os.path.lexists(target) and _kind(target) != schema.SNAPSHOT_ID:
            raise LedgerError(
                f"{target}: not an earlier snapshot, so it is not overwritten. Name another file"
            )
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with contextlib.closing(connect(temporary)) as connection, immediate(connection, target):
            schema.install(connection, schema.SNAPSHOT_ID)
            for row in rows:
                append(connection, row)
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
            return schema.number(connection, "application_id")
    except (LedgerError, sqlite3.Error):
        return 0
