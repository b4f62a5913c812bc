"""A journal's lines in a file of their own: durable, locked, repaired after a crash.

The rules are in `journal`; this is where its lines stand for an application that has no store.
A line is on the disk when `append` returns. A crash can tear the last line only; the message that
it stood for never left, so the line is dropped. A file that was set back to an older copy cannot be
told from a genuine one: keep it out of snapshots.
"""

import fcntl
import os
from pathlib import Path

from fedtree_secagg.errors import ConfigurationError

FORMAT = "fedtree-secagg/v1/journal"
_HEAD = FORMAT.encode() + b"\n"


class JournalFile:
    """Append-only lines of one client's journal; one process at a time.

    Args:
        path: the file; made with its first line when missing. Its folder must exist.

    Raises:
        ConfigurationError: the file is no journal of this version, or another process has it. It
            is left as it was.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._torn = False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self._repair()
        except BaseException:
            self.close()
            raise

    def read(self) -> list[bytes]:
        """Return the lines, in the order in which they were appended."""
        return self._data().split(b"\n")[1:-1]

    def append(self, line: bytes) -> None:
        """Write a line durably.

        Raises:
            OSError: the disk refused. What is on it now is unknown, so this object takes no more
                lines: open the file again, which drops a torn one.
        """
        if self._torn:
            raise OSError(f"{self.path}: an earlier line could not be written; open it again")
        self._torn = True
        self._write(line + b"\n")
        self._torn = False

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{self.path}: another process uses this journal") from None

    def _repair(self) -> None:
        """Drop a torn last line; refuse what is no journal before a byte of it changes."""
        data = self._data()
        if not data.startswith(_HEAD) and not _HEAD.startswith(data):
            raise ConfigurationError(f"{self.path}: not a journal of this version")
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.ftruncate(self._file, len(whole))
        if not whole:
            self._write(_HEAD)
            _sync_folder(self.path.parent)

    def _data(self) -> bytes:
        with os.fdopen(self._file, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def _write(self, data: bytes) -> None:
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: could not write the journal; nothing may be sent")
        os.fsync(self._file)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
