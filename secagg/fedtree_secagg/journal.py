"""The client's write-ahead journal: a restarted client never answers twice.

Two counters, (round, attempt), only grow; the stage of the current attempt is on disk before the
message of that stage may leave. After a crash the attempt is over, whatever its stage: keys and
shares lived in memory only, so there is nothing to resume, and nothing of them is written here.
What survives is which updates are *burnt*: once an upload may have left, its update must never be
uploaded again. Reveals of others open the sum that it is in, also when this client never answers
again, and two sums that hold the same updates differ by somebody's alone.

This module does I/O and is therefore outside of the pure steps; call it around them:

    journal = Journal(path)
    attempt = journal.begin(round)                  # a number never used before in this round
    state, advert = client.advertise(..., round=round, attempt=attempt, ...)
    journal.record("advertised")                    # then send
    ...
    journal.record("masked", update=hash_of_update) # refuses an update that is burnt, and burns it
    journal.record("revealed")

    number = journal.ceremony(plan.tree)            # before `beacon.commit`: no ceremony of a tree
    is held twice

A file that was set back to an older copy cannot be told from a genuine one: keep the journal out of
snapshots.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from fedtree_secagg.beacon import CEREMONIES
from fedtree_secagg.errors import ConfigurationError, ProtocolError

STAGES = ("begun", "advertised", "shared", "masked", "confirmed", "revealed")
FORMAT = "fedtree-secagg/v1/journal"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    round: int
    attempt: int
    stage: str
    update: str = ""


class _Ceremony(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tree: str
    ceremony: int


class Journal:
    """Append-only file of one client; one process at a time, one attempt at a time.

    Args:
        path: the file; made with its first line when missing. Its folder must exist.

    Raises: ConfigurationError: the file is foreign or damaged (other than by a torn last line), or
        another process has it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self._ceremonies: list[_Ceremony] = []
            self._entries = self._read()
        except BaseException:
            os.close(self._file)
            raise
        self._open = False  # an attempt of an earlier process is over

    @property
    def last(self) -> tuple[int, int] | None:
        """The (round, attempt) begun last, or None."""
        return (self._entries[-1].round, self._entries[-1].attempt) if self._entries else None

    @property
    def burnt(self) -> frozenset[str]:
        """Hashes of the updates that may be in a sum."""
        return frozenset(entry.update for entry in self._entries if entry.stage == "masked")

    def begin(self, round: int) -> int:  # noqa: A002
        """Begin an attempt of a round and return its number; whatever was under way is given up.

        Raises:
            ProtocolError: the round is older than the last one.
        """
        last_round, last_attempt = self.last or (-1, -1)
        if round < last_round:
            raise ProtocolError(
                f"journal: round {round} is older than {last_round}, which this client already "
                "answered"
            )
        attempt = last_attempt + 1 if round == last_round else 0
        self._append(_Entry(round, attempt, "begun"))
        self._open = True
        return attempt

    def record(self, stage: str, *, update: bytes = b"") -> None:
        """Write a stage durably; call it after the step and before its message leaves.

        Args: stage: the next of "advertised", "shared", "masked", "confirmed", "revealed". update:
            with "masked", the 32-byte hash of the noised update, to be refused once it is burnt.

        Raises: ProtocolError: not the next stage of an attempt that this process began, or the
            update is burnt. ConfigurationError: a hash is missing, or given where none belongs.
        """
        if not self._open:
            raise ProtocolError("journal: no attempt is under way in this process; begin one")
        current = self._entries[-1]
        if (
            STAGES.index(current.stage) + 1 >= len(STAGES)
            or stage != STAGES[STAGES.index(current.stage) + 1]
        ):
            raise ProtocolError(
                f"journal: {stage!r} does not follow {current.stage!r}; each stage happens once"
            )
        if (len(update) == 32) != (stage == "masked") or len(update) not in (0, 32):
            raise ConfigurationError(
                'journal: give the 32-byte hash of the update with "masked", and with it only'
            )
        if update.hex() in self.burnt:
            raise ProtocolError(
                "journal: this update was uploaded in another attempt, which others may have "
                "opened: add fresh noise"
            )
        self._append(_Entry(current.round, current.attempt, stage, update.hex()))

    def ceremony(self, tree: bytes) -> int:
        """Return the number of a tree's next beacon ceremony, written durably; see
        `fedtree_secagg.beacon`.

        Args:
            tree: `Plan.tree`.

        Raises:
            ConfigurationError: the tree is no hash.
            ProtocolError: the tree had all ceremonies it may have; change the tree.
        """
        if not isinstance(tree, bytes) or len(tree) != 32:
            raise ConfigurationError(
                "journal: a ceremony is for a tree; give the 32 bytes of Plan.tree"
            )
        number = sum(held.tree == tree.hex() for held in self._ceremonies)
        if number >= CEREMONIES:
            raise ProtocolError(
                f"journal: this tree had {CEREMONIES} ceremonies; each more is another draw: "
                "change it"
            )
        held = _Ceremony(tree.hex(), number)
        self._write(msgspec.json.encode(held) + b"\n")
        self._ceremonies.append(held)
        return number

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{self.path}: another process uses this journal") from None

    def _read(self) -> list[_Entry]:
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):  # torn by a crash: the message of that stage never left
            data = data[: data.rfind(b"\n") + 1]
            os.ftruncate(self._file, len(data))
        lines = data.splitlines()
        if not lines:
            self._write(FORMAT.encode() + b"\n")
            _sync_folder(self.path.parent)
            return []
        if lines[0] != FORMAT.encode():
            raise ConfigurationError(f"{self.path}: not a journal of this version")
        try:
            kinds = [_Ceremony if line.startswith(b'{"tree"') else _Entry for line in lines[1:]]
            found = [
                msgspec.json.decode(line, type=kind)
                for line, kind in zip(lines[1:], kinds, strict=True)
            ]
        except msgspec.DecodeError:
            raise ConfigurationError(
                f"{self.path}: damaged; restore it, or take a new identity and roster"
            ) from None
        entries = [entry for entry in found if isinstance(entry, _Entry)]
        self._ceremonies = [entry for entry in found if isinstance(entry, _Ceremony)]
        order = [
            (e.round, e.attempt, STAGES.index(e.stage) if e.stage in STAGES else -1)
            for e in entries
        ]
        if order != sorted(set(order)) or any(stage < 0 for *_, stage in order):
            raise ConfigurationError(
                f"{self.path}: entries out of order; restore it, or take a new identity and roster"
            )
        return entries

    def _append(self, entry: _Entry) -> None:
        self._write(msgspec.json.encode(entry) + b"\n")
        self._entries.append(entry)

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
