"""The index of all messages of a run, and the messages themselves where an audit asked for them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from fedtree_secure.errors import RunFolderError

SERVER = "server"


@dataclass
class Transcript:
    """Plain-text index of all messages: one line each with number, sender, receiver, stage, bytes
    and SHA-256.

    Attributes:
        path: The index.
        keep: File that the messages themselves are appended to, one after the other, for audits;
            None to keep none.
        sent, received: Bytes by client id, from the client's point of view.
    """

    path: Path
    keep: Path | None = None
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    _lines: int = 0
    _file: TextIO | None = None

    def __post_init__(self) -> None:
        """Continue an index that an interrupted run left; a torn last line is cut off."""
        if self.path.exists():
            whole = self.path.read_text("utf-8").rpartition("\n")[0]
            for line in whole.splitlines()[1:]:
                _, sender, receiver, _, size, _ = line.split()
                self._count(sender, receiver, int(size))
            self.path.write_text(whole + "\n" if whole else "", "utf-8")
        if self.keep is not None:
            self._cut_kept(self.keep, sum(self.sent.values()) + sum(self.received.values()))
        self._file = self.path.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._file.write("number sender receiver stage bytes sha256\n")

    def record(self, sender: str, receiver: str, stage: str, message: bytes) -> None:
        """Append one line."""
        assert self._file is not None
        self._count(sender, receiver, len(message))
        digest = hashlib.sha256(message).hexdigest()
        if (
            self.keep is not None
        ):  # first: a message without a line is cut off, a line without a message is a fault
            with self.keep.open("ab") as kept:
                kept.write(message)
        self._file.write(f"{self._lines} {sender} {receiver} {stage} {len(message)} {digest}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @staticmethod
    def _cut_kept(path: Path, size: int) -> None:
        """Cut off what a killed run wrote of a message that has no line."""
        path.touch()
        if path.stat().st_size < size:
            raise RunFolderError(
                f"{path} has {path.stat().st_size} bytes, its index lists {size}; it was shortened"
            )
        with path.open("r+b") as kept:
            kept.truncate(size)

    def _count(self, sender: str, receiver: str, size: int) -> None:
        self._lines += 1
        if sender == SERVER:
            self.received[receiver] = self.received.get(receiver, 0) + size
        else:
            self.sent[sender] = self.sent.get(sender, 0) + size
