"""Who may write a store now: one process for as long as it runs, or whoever's turn it is.

Locks are `flock`, so they end with their process, however it ends. They lie in files of their own:
opening and closing the database in any other way than through SQLite would drop SQLite's locks.
A lock file is empty and is never removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fedtree_dp.errors import LedgerError

_STEP_S = 0.005
# A writer that holds a store for one transaction is waited for this long by one that wants to hold
# it for good.
_BRIEFLY_S = 1.0


def lock_file(path: Path) -> Path:
    """Return the name of the lock file beside a store."""
    return path.with_name(f"{path.name}.lock")


def hold(path: Path) -> int:
    """Take the store for as long as the returned descriptor is open.

    Raises:
        LedgerError: it is in use, or no file can be made beside it.
    """
    descriptor = _open(lock_file(path), os.O_RDWR | os.O_CREAT)
    if not _taken(descriptor, fcntl.LOCK_EX, _BRIEFLY_S):
        os.close(descriptor)
        raise _in_use(path)
    return descriptor


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[None]:
    """Keep others from holding the store until the end of the block; many writers may be inside.

    Raises:
        LedgerError: another one holds it.
    """
    place = lock_file(path)
    if not place.exists():  # nobody ever held it
        yield
        return
    descriptor = _open(place, os.O_RDWR)
    try:
        if not _taken(descriptor, fcntl.LOCK_SH, 0.0):
            raise _in_use(path)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def turn(path: Path, patience_s: float) -> Iterator[None]:
    """Be the only one inside this block, by this lock file.

    Raises:
        LedgerError: another one was inside for longer than `patience_s`, or the file cannot be
            made.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _taken(descriptor, fcntl.LOCK_EX, patience_s):
            raise LedgerError(
                f"{path}: another process has been writing for more than {patience_s:g} s; nothing "
                "was charged. Wait, or end it"
            )
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int, kind: int, patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(_STEP_S)
        else:
            return True


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise LedgerError(
            f"cannot lock with {path}: {error.strerror}; nothing was charged. It needs an "
            "existing, writable folder on a local disk"
        ) from error


def _in_use(path: Path) -> LedgerError:
    return LedgerError(
        f"{path}: in use by another process; nothing was charged. Wait until it ends, or end it"
    )
