"""Messages in, messages out: what carries bytes between the coordinator and the participants.

A transport is handed one request for each client and returns the replies that came; a missing reply
is a dropout. It is never trusted: everything that must not be read or changed on the way is
protected by the protocols inside.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from fedtree_secure.errors import RunFolderError

log = logging.getLogger("fedtree_secure.agreed.transport")
SERVER = "server"


class Transport(Protocol):
    """Carries one request to each of some clients and brings back what they answer."""

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """Deliver ``requests`` by client id; return replies by client id, without those that did
        not answer.
        """
        ...


@dataclass
class Transcript:
    """Plain-text index of all messages: one line each with number, sender, receiver, stage, bytes
    and SHA-256.

    Attributes: keep: File that the messages themselves are appended to, one after the other, for
        audits; None to keep none. sent, received: Bytes by client id, from the client's point of
        view.
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


class InProcess:
    """Every participant in this process; nothing but bytes passes in either direction.

    A participant that raises is a client that died at this stage: it does not answer. What it
    raised is kept for the local report (`failures`), and its text is not sent to the server.
    """

    def __init__(
        self, participants: Mapping[str, Callable[[bytes], bytes]], transcript: Transcript
    ) -> None:
        self._participants, self._transcript = participants, transcript
        self.failures: list[tuple[str, str, Exception]] = []

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        replies = {}
        for name, request in requests.items():
            self._transcript.record(SERVER, name, stage, request)
            try:
                reply = self._participants[name](request)
            except Exception as error:  # a dying client must not take the others with it
                log.warning(
                    "client %s failed at stage %s: %s: %s", name, stage, type(error).__name__, error
                )
                self.failures.append((name, stage, error))
                continue
            self._transcript.record(name, SERVER, stage, reply)
            replies[name] = reply
        return replies
