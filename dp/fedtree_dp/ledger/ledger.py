"""The ledger of one data set: what was spent on it, by all jobs together, and the refusal of what
is too much.

A charge is durable before `charge` returns, and a release may leave only after that: a crash can
overcount, never undercount. The budget is checked inside the same exclusive transaction that writes
the charge, so processes that race cannot exceed it together. What is stored are events; epsilon is
always recomputed from them.

Limits: who can write the file can replace it by an older copy or by none; only a checkpoint kept
elsewhere shows that. Copy a ledger with `snapshot`, never with `cp`, and never charge two copies.
An odometer's epsilon holds for charges fixed beforehand (see `fedtree_dp.account.accounting`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedtree_dp import checks
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION, epsilon_of
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event
from fedtree_dp.errors import BudgetExceeded, ConfigurationError, LedgerError, LedgerTampered
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger.checkpoint import Checkpoint, keep, kept
from fedtree_dp.ledger.entries import GENESIS, Entry, Row, read_chain, seal, to_line
from fedtree_dp.ledger.odometer import Reading, readings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )


class Ledger:
    """A durable, append-only account of one data set. Make one with `Ledger.open`, and close it or
    use `with`.

    Threads may share it; a forked process must open its own.

    Formal guarantee: if every release about the data set is charged here first with an event that
    describes it, and the events were fixed before they ran, all releases together are (epsilon,
    delta)-differentially private for neighbours that differ by one record added or removed, with
    the current budget's epsilon and delta.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Open an existing file; use `open` or `inspect` instead."""
        self.path = path
        self._read_only = read_only
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._entries: tuple[Entry, ...] = ()
        self._connection = store.connect(path, read_only=read_only)
        try:
            self.verify()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        dataset: str,
        budget: PrivacyBudget | None = None,
        create: bool = True,
    ) -> Self:
        """Open the ledger of `dataset`, or create it.

        Args: path: the file; its folder must exist, on a local disk. dataset: the owner's name of
            the data set, 1 to 200 printable characters; never a digest of its rows. budget: what
            may be spent; must equal what the ledger says. `None`: take the ledger's. create:
            whether a missing file may be created; pass `False` when resuming, so that a lost ledger
            is noticed.

        Raises: LedgerError: missing and not to be created, not a ledger, of another data set, with
            another budget, or a
                snapshot.
            LedgerTampered: damaged or changed; it is left as it is.
            ConfigurationError: `dataset` is no such name.
        """
        file = Path(path)
        checks.label("dataset", dataset)
        if not os.path.lexists(file):
            if not create or budget is None:
                raise LedgerError(
                    f"{file}: there is no ledger of {dataset!r} here; was it moved or deleted?"
                )
            fields = {
                "dataset": dataset,
                "budget": budget.to_dict(),
                "ledger": secrets.token_hex(16),
            }
            with contextlib.suppress(
                FileExistsError
            ):  # a process that was faster created the same ledger
                store.create(file, seal("opened", fields, sequence=0, previous=GENESIS))
        ledger = cls(_existing(file), read_only=False)
        try:
            ledger._refuse_foreign(dataset, budget)
            with store.explained(file):
                store.migrate(ledger._connection)
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def inspect(cls, path: str | os.PathLike[str]) -> Self:
        """Open any ledger or snapshot for reading, whatever its data set and budget; charging it is
        refused.

        Raises: LedgerError: missing, not a ledger, or interrupted in a write that only `open` may
            roll back. LedgerTampered: damaged or changed.
        """
        return cls(_existing(Path(path)), read_only=True)

    def _refuse_foreign(self, dataset: str, budget: PrivacyBudget | None) -> None:
        if self.dataset != dataset:
            raise LedgerError(
                f"{self.path}: the ledger of data set {self.dataset!r}, not of {dataset!r}"
            )
        if budget is not None and budget != self.budget:
            raise LedgerError(
                f"{self.path}: its budget is epsilon {self.budget.epsilon:g} at delta "
                f"{self.budget.delta:g}, not "
                f"{budget.epsilon:g} at {budget.delta:g}. Ask for the recorded one, or change it "
                "with set_budget"
            )

    # --- what it says -----------------------------------------------------------------------------

    @property
    def dataset(self) -> str:
        """The owner's name of the data set."""
        return self._entries[0].dataset or ""

    @property
    def identifier(self) -> str:
        """The random identifier that the ledger got when it was created."""
        return self._entries[0].ledger or ""

    @property
    def budget(self) -> PrivacyBudget:
        """The budget in force: the last one recorded."""
        return next(entry.budget for entry in reversed(self.entries()) if entry.budget is not None)

    def entries(self) -> tuple[Entry, ...]:
        """Return all lines, other processes' included."""
        with self._reading():
            return self._entries

    def events(self, job: str | None = None) -> tuple[Event, ...]:
        """Return everything charged, or what one job was charged, in order."""
        wanted = (entry for entry in self.entries() if job is None or entry.job == job)
        return tuple(entry.event for entry in wanted if entry.event is not None)

    def spent(self) -> float:
        """Return epsilon of everything charged, at the budget's delta, by PLD on the grid of
        statements.
        """
        return epsilon_of(self.events(), self.budget.delta)

    @property
    def remaining(self) -> float:
        """Epsilon of the budget less `spent`; not what an event may cost, because epsilons do not
        add up.
        """
        return max(0.0, self.budget.epsilon - self.spent())

    def odometer(self) -> tuple[Reading, ...]:
        """Return, for each job in the order of its first charge, what it cost alone and what the
        total was after it.
        """
        return readings(self.entries(), self.budget.delta)

    def affords(self, *events: Event) -> bool:
        """Say whether all these events together would be accepted now."""
        return self._excess(events) is None

    def require(self, *events: Event) -> None:
        """Refuse a job before it starts unless all its events together would be accepted now;
        nothing is charged.

        Raises:
            BudgetExceeded: they would not; the text says what is left.
        """
        self._refuse_excess(*events)

    # --- what it does -----------------------------------------------------------------------------

    def charge(self, event: Event, *, job: str, purpose: str) -> Entry:
        """Charge one event before its result may leave; when this returns the charge is on the
        disk.

        Args:
            event: what is about to be released.
            job: the owner's name of the run.
            purpose: what it is for, such as `"warm-up"` or `"round 3"`.

        Raises:
            BudgetExceeded: everything together would exceed the budget; nothing was written.
            LedgerError: it could not be written, or this ledger was opened with `inspect`.
            LedgerTampered: the file changed in a way that no charge makes.
            ConfigurationError: an unusable name, or not an event.
        """
        if not isinstance(event, Event):
            raise ConfigurationError(f"only events can be charged, not {event!r:.80}")
        fields = {
            "event": event.to_dict(),
            "job": checks.label("job", job),
            "purpose": checks.label("purpose", purpose),
        }
        self._refuse_excess(
            event
        )  # most of the work, before the lock is taken; repeated below from the cache
        with self._writing():
            self._refuse_excess(event)
            return self._append("charge", fields)

    def set_budget(self, budget: PrivacyBudget, *, reason: str) -> Entry:
        """Record another budget, for all later charges; what was spent stays spent.

        Raises:
            LedgerError: as for `charge`.
            ConfigurationError: `reason` is not 1 to 200 printable characters.
        """
        fields = {"budget": budget.to_dict(), "reason": checks.label("reason", reason)}
        with self._writing():
            return self._append("budget", fields)

    def verify(
        self, checkpoint: Checkpoint | None = None, *, public_key: Ed25519PublicKey | None = None
    ) -> None:
        """Check the whole file from its first byte, and against a checkpoint kept elsewhere.

        Args: checkpoint: an earlier `checkpoint()`; without one, removed last lines or a replaced
            file stay unseen. public_key: the key that must have signed the checkpoint.

        Raises:
            LedgerTampered: anything does not fit.
            LedgerError: the file cannot be read, or is no ledger.
            ConfigurationError: a key without a checkpoint.
        """
        if public_key is not None:
            if checkpoint is None:
                raise ConfigurationError("public_key needs the checkpoint that it signed")
            checkpoint.check_signature(public_key)
        with self._lock:
            self._check_process()
            self._entries = ()
            with store.explained(self.path), store.deferred(self._connection):
                store.check_file(self._connection, self.path, snapshot_allowed=self._read_only)
                self._refresh()
            if checkpoint is not None:
                self._compare(checkpoint)

    def checkpoint(self, key: Ed25519PrivateKey | None = None) -> Checkpoint:
        """Return size and head hash, signed when a key is given. Keep it where this ledger's
        writers cannot write.
        """
        entries = self.entries()
        made = Checkpoint(
            ledger=self.identifier,
            dataset=self.dataset,
            size=len(entries),
            head=entries[-1].hash,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return made if key is None else made.signed(key)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy for reading; the copy is marked, so that it can never be charged.

        Raises:
            LedgerError: `path` holds something else than an earlier snapshot, or cannot be written.
        """
        with self._lock:
            self._check_process()
            with store.explained(self.path):
                store.copy(self._connection, Path(path))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all lines as JSON lines with their hashes, for people and other programs; replaces
        the file.

        `fedtree_dp.ledger.entries.read_lines` checks such a file. It is no ledger and cannot be
        charged.

        Raises:
            LedgerError: the file is a ledger or snapshot, or cannot be written.
        """
        store.write_text(Path(path), "".join(f"{to_line(entry)}\n" for entry in self.entries()))

    def keep_checkpoint(
        self, path: str | os.PathLike[str], key: Ed25519PrivateKey | None = None
    ) -> Checkpoint:
        """Add a checkpoint to a file at a second place, durably, and return it.

        Raises:
            LedgerError: the file cannot be written.
        """
        made = self.checkpoint(key)
        keep(made, path)
        return made

    def verify_kept(
        self, path: str | os.PathLike[str], *, public_key: Ed25519PublicKey | None = None
    ) -> None:
        """Check the whole file, and against every checkpoint of the second place.

        Raises:
            LedgerError: the checkpoints cannot be read.
            LedgerTampered: anything does not fit, or a signature is missing where a key is given.
        """
        found = kept(path)
        for checkpoint in found:
            if public_key is not None:
                checkpoint.check_signature(public_key)
        self.verify()
        for checkpoint in found:
            self._compare(checkpoint)

    def close(self) -> None:
        """Close the file; charges are on the disk already."""
        if self._pid == os.getpid():
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r}, dataset={self.dataset!r})"

    # --- inside -----------------------------------------------------------------------------------

    def _excess(self, events: tuple[Event, ...]) -> float | None:
        """Return the epsilon that these events would bring the total to, if that is too much."""
        budget, total = self.budget, (*self.events(), *events)
        # Both grids only overstate, so the quick one may accept; only the fine one may refuse.
        if (
            epsilon_of(total, budget.delta, discretization=PLANNING_DISCRETIZATION)
            <= budget.epsilon
        ):
            return None
        reached = epsilon_of(total, budget.delta)
        return reached if reached > budget.epsilon else None

    def _refuse_excess(self, *events: Event) -> None:
        reached = self._excess(events)
        if reached is None:
            return
        budget, spent = self.budget, self.spent()
        left = max(0.0, budget.epsilon - spent)
        raise BudgetExceeded(
            f"data set {self.dataset!r}: this would bring epsilon to {reached:.4g} of "
            f"{budget.epsilon:g} "
            f"allowed at delta {budget.delta:g}; {spent:.4g} is spent, {left:.2g} is left. Nothing "
            "was charged. Plan "
            "more noise or fewer steps, or stop here",
            spent=spent,
            requested_total=reached,
            allowed=budget.epsilon,
        )

    def _append(self, kind: str, fields: Mapping[str, Any]) -> Entry:
        row: Row = seal(kind, fields, sequence=len(self._entries), previous=self._entries[-1].hash)
        (*_, entry) = read_chain([row], after=self._entries)
        store.append(self._connection, row)
        return entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the file's write lock, with all lines known, until the commit."""
        if self._read_only:
            raise LedgerError(
                f"{self.path}: opened for reading only; open it with Ledger.open to charge it"
            )
        with self._lock:
            self._check_process()
            with store.explained(self.path), store.immediate(self._connection):
                self._refresh()
                yield

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            self._check_process()
            with store.explained(self.path), store.deferred(self._connection):
                self._refresh()
                yield

    def _refresh(self) -> None:
        """Read the lines that are not known yet, inside the caller's transaction, and compare with
        the head.
        """
        known = self._entries
        start = max(len(known) - 1, 0)
        rows = store.rows_from(self._connection, start)
        if known and (not rows or rows[0][2].hex() != known[-1].hash):
            raise LedgerTampered(f"{self.path}: lines that were there are gone or changed")
        entries = read_chain(rows[1:] if known else rows, after=known)
        if store.head(self._connection) != (len(entries), bytes.fromhex(entries[-1].hash)):
            raise LedgerTampered(
                f"{self.path}: the last line is not the recorded one; lines were removed"
            )
        self._entries = entries

    def _compare(self, checkpoint: Checkpoint) -> None:
        if checkpoint.ledger != self.identifier:
            raise LedgerTampered(
                f"{self.path}: not the ledger of this checkpoint; it was replaced or made anew"
            )
        if checkpoint.size > len(self._entries):
            raise LedgerTampered(
                f"{self.path}: {len(self._entries)} lines where the checkpoint of "
                f"{checkpoint.time} saw "
                f"{checkpoint.size}; lines at the end were removed"
            )
        if self._entries[checkpoint.size - 1].hash != checkpoint.head:
            raise LedgerTampered(
                f"{self.path}: line {checkpoint.size - 1} is not the one that the checkpoint saw"
            )

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise LedgerError(
                f"{self.path}: opened by another process; after a fork each process opens its own"
            )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LedgerError(
            f"{path}: there is no ledger here" if not path.exists() else f"{path}: not a file"
        )
    if path.stat().st_size == 0:
        raise LedgerTampered(
            f"{path}: empty; a ledger never is, so its content was lost. Restore it, or ask its "
            "owner"
        )
    return path.resolve()
