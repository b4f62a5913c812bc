"""The client's write-ahead journal: a restarted client never answers twice.

Two counters, (round, attempt), only grow; the stage of an attempt is written durably before the
message of that stage may leave. (`attempts` has the rules, and the one case of two attempts at
once.) After a crash the attempt is over, whatever its stage:
keys and shares lived in memory only, so there is nothing to resume, and nothing of them is written
here. What survives is which updates are *burnt*: once an upload may have left, its update must
never be uploaded again. Reveals of others open the sum that it is in, also when this client never
answers again, and two sums that hold the same updates differ by somebody's alone.

Call it around the pure steps:

    journal = Journal.open(path)
    attempt = journal.begin(round)                  # or begin(round, attempt), the server's number
    state, advert = client.advertise(..., round=round, attempt=attempt, ...)
    journal.record("advertised")                    # then send
    ...
    journal.record("masked", update=hash_of_update) # refuses an update that is burnt, and burns it
    following = journal.begin(round + 1, ahead=True)      # its keys leave with this upload
    journal.record("confirmed", of=(round, attempt))
    journal.record("revealed", of=(round, attempt))

    number = journal.ceremony(plan.tree)            # before `beacon.commit`

`Journal` has the rules and does no I/O. Its lines stand in `Records`: in a file (`JournalFile`), or
in whatever durable store an application has, one line a decision.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from fedtree_secagg.attempts import (
    AHEAD,
    LARGEST_COUNTER,
    LARGEST_JUMP,
    STAGES,
    Attempts,
    Key,
)
from fedtree_secagg.beacon import CEREMONIES
from fedtree_secagg.errors import ConfigurationError, ProtocolError, shown
from fedtree_secagg.journal_file import FORMAT, JournalFile

__all__ = [
    "FORMAT",
    "LARGEST_COUNTER",
    "LARGEST_JUMP",
    "STAGES",
    "Journal",
    "JournalFile",
    "Records",
]


class Records(Protocol):
    """Where the lines of one client's journal stand, durably and in order."""

    def read(self) -> list[bytes]:
        """Return all lines that were appended, in order."""

    def append(self, line: bytes) -> None:
        r"""Write one line, without "\n"; return when it is durable.

        It is called once a decision, before the journal changes its own memory. Raise when the line
        may not be durable: then nothing may be sent. Raise also from then on, unless the line is
        known to have left no trace.
        """

    def close(self) -> None:
        """Release what is held."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    round: int
    attempt: int
    stage: str
    update: str = ""


class _Ceremony(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tree: str
    ceremony: int


class Journal:
    """What one client answered, and what may follow.

    Args:
        records: where the lines stand; the journal owns and closes it.

    Raises:
        ConfigurationError: the lines are damaged or out of order.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._entries: list[_Entry] = []
        self._ceremonies: list[_Ceremony] = []
        self._attempts = Attempts()
        for line in records.read():
            self._read(_decoded(line))
        self._attempts.give_up()  # those of an earlier process are over

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Return the journal in a file, made when missing; see `JournalFile`."""
        file = JournalFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    @property
    def last(self) -> tuple[int, int] | None:
        """The (round, attempt) begun last, or None."""
        return self._attempts.last

    @property
    def burnt(self) -> frozenset[str]:
        """Hashes of the updates that may be in a sum."""
        return frozenset(entry.update for entry in self._entries if entry.stage == "masked")

    def begin(
        self,
        round: int,  # noqa: A002
        attempt: int | None = None,
        *,
        ahead: bool = False,
    ) -> int:
        """Begin an attempt of a round and return its number; whatever was under way is given up.

        Check the round against the job's first: what is written here is the oldest round from then
        on.

        Args:
            round: 0 to 2^31 - 1, not below the last one; or the one below it, where the last one
                was begun ahead and has uploaded nothing.
            attempt: the server's number, above every attempt of this round and by 1000 at most; the
                first of a round is 0 to 999. None takes the next.
            ahead: whether the attempt under way, which has uploaded and is of the round before,
                goes on beside this one, until this one uploads.

        Raises:
            ProtocolError: a counter is no such number, or nothing may be begun ahead now; nothing
                is written.
        """
        number = self._attempts.number(round, attempt, ahead=ahead)
        self._append(_Entry(round, number, AHEAD if ahead else STAGES[0]))
        return number

    def check(self, round: int, attempt: int) -> None:  # noqa: A002
        """Refuse what `begin` would refuse of these counters; write nothing.

        Raises:
            ProtocolError: see `begin`.
        """
        self._attempts.number(round, attempt, ahead=False)

    def record(self, stage: str, *, update: bytes = b"", of: Key | None = None) -> None:
        """Write a stage durably; call it after the step and before its message leaves.

        Args:
            stage: the next of "advertised", "shared", "masked", "confirmed", "revealed".
            update: with "masked", the 32-byte hash of the noised update, to be refused once burnt.
            of: which (round, attempt), where one was begun ahead of another; None for the one begun
                last.

        Raises:
            ProtocolError: not the next stage of an attempt that this process began, or the update
                is burnt.
            ConfigurationError: a hash is missing, or given where none belongs.
        """
        key = self._attempts.check_stage(of, stage)
        if (len(update) == 32) != (stage == "masked") or len(update) not in (0, 32):
            raise ConfigurationError(
                'journal: give the 32-byte hash of the update with "masked", and with it only'
            )
        if update.hex() in self.burnt:
            raise ProtocolError(
                "journal: this update was uploaded in another attempt, "
                "which others may have opened: add fresh noise"
            )
        self._append(_Entry(*key, stage, update.hex()))

    def ceremony(self, tree: bytes, number: int | None = None) -> int:
        """Return the number of a tree's next beacon ceremony, written durably; see `beacon`.

        Args:
            tree: `Plan.tree`.
            number: the server's, above every number that this client used for the tree: one that
                was away from a ceremony skips its number. None takes the next.

        Raises:
            ConfigurationError: the tree is no hash.
            ProtocolError: the number was used, or is none; or the tree had all ceremonies it may
                have: change the tree. Nothing is written.
        """
        if not isinstance(tree, bytes) or len(tree) != 32:
            raise ConfigurationError(
                "journal: a ceremony is for a tree; give the 32 bytes of Plan.tree"
            )
        used = [held.ceremony for held in self._ceremonies if held.tree == tree.hex()]
        least = max(used, default=-1) + 1
        if least >= CEREMONIES:
            raise ProtocolError(
                f"journal: this tree had {CEREMONIES} ceremonies; "
                "each more is another draw: change it"
            )
        chosen = least if number is None else number
        if type(chosen) is not int or not least <= chosen < CEREMONIES:
            raise ProtocolError(
                f"journal: ceremony {shown(chosen)} of this tree does not follow {least - 1}; "
                f"give {least} to {CEREMONIES - 1}"
            )
        self._append(_Ceremony(tree.hex(), chosen))
        return chosen

    def close(self) -> None:
        """Release the records."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, entry: _Entry | _Ceremony) -> None:
        self._records.append(msgspec.json.encode(entry))
        self._note(entry)

    def _note(self, entry: _Entry | _Ceremony) -> None:
        if isinstance(entry, _Entry):
            self._entries.append(entry)
            self._attempts.note((entry.round, entry.attempt), entry.stage)
        else:
            self._ceremonies.append(entry)

    def _read(self, entry: _Entry | _Ceremony) -> None:
        """Take over a line that is there, by the rules under which it was written."""
        try:
            if isinstance(entry, _Entry):
                self._check_line(entry)
        except ProtocolError:
            raise ConfigurationError(
                "journal: entries out of order; restore it, or take a new identity and roster"
            ) from None
        self._note(entry)

    def _check_line(self, entry: _Entry) -> None:
        if len(entry.update) != 64 * (entry.stage == "masked"):
            raise ProtocolError("journal: a hash is missing, or stands where none belongs")
        if entry.stage in (STAGES[0], AHEAD):
            at, ahead = (entry.round, entry.attempt), entry.stage == AHEAD
            self._attempts.number(*at, ahead=ahead, jump=LARGEST_COUNTER + 1)
        else:
            self._attempts.check_stage((entry.round, entry.attempt), entry.stage)


def _decoded(line: bytes) -> _Entry | _Ceremony:
    kind: Any = _Ceremony if line.startswith(b'{"tree"') else _Entry
    try:
        found: _Entry | _Ceremony = msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigurationError(
            "journal: damaged; restore it, or take a new identity and roster"
        ) from None
    return found
