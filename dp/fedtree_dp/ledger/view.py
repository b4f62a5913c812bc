"""What a ledger says: its lines, what they cost, and the values beside them. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION, epsilon_of, upper_bound
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event
from fedtree_dp.account.shared import given_honest
from fedtree_dp.account.unit import PrivacyUnit
from fedtree_dp.errors import (
    BudgetExceeded,
    ConfigurationError,
    LedgerError,
    LedgerRolledBack,
    LedgerTampered,
)
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import schema, state
from fedtree_dp.ledger.checkpoint import Checkpoint, keep, kept
from fedtree_dp.ledger.entries import Entry, read_chain, to_line, unit_of
from fedtree_dp.ledger.odometer import Reading, readings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )


class LedgerView:
    """The reading half of `fedtree_dp.Ledger`; use that."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Open and check an existing file."""
        self.path = path
        self._read_only = read_only
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._entries: tuple[Entry, ...] = ()
        self._position: state.Position | None = None
        self._inode = _inode(path)
        self._connection = store.connect(path, read_only=read_only)
        try:
            self.verify()
        except BaseException:
            self._connection.close()
            raise

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

    @property
    def unit(self) -> PrivacyUnit | None:
        """What every charge protects; None where it is a record, or nothing was charged yet."""
        return unit_of(self.entries())

    def check_unit(self, unit: PrivacyUnit | None) -> None:
        """Refuse a job whose releases protect another unit than those that were charged before;
        nothing is written.

        Epsilons of different units are statements about different neighbours: a clip a record lets
        a unit of k records move a sum by k, a clip a unit lets one record move it by two, and no
        sum of the two bounds either.

        Args:
            unit: of the job; None for records.

        Raises:
            LedgerError: the data set's unit is another one, in name or bound.
        """
        entries = self.entries()
        known, used = unit_of(entries), any(line.event is not None for line in entries)
        if known == unit or (known is None and not used):
            return
        wanted, held = (
            "one record" if u is None else f"one {u.name} (at most {u.at_most} records)"
            for u in (unit, known)
        )
        raise LedgerError(
            f"{self.path}: all charges of data set {self.dataset!r} protect {held}, the job's "
            f"would protect {wanted}; units are not mixed on one data set, so use {held} here. "
            "Nothing was charged"
        )

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
        statements. Of shared noise it holds while others are honest; see `own_spent`.
        """
        return epsilon_of(given_honest(self.events()), self.budget.delta)

    def own_spent(self) -> float:
        """Return the same whatever all others do: by this client's own noise alone."""
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

    def get(self, run: str, name: str) -> bytes | None:
        """Return a value that a transaction has put, or None where there is none.

        Raises:
            LedgerTampered: the value was edited.
            ConfigurationError: `run` or `name` is no label.
        """
        with self._reading():
            return state.get(self._connection, run, name)

    def names(self, run: str) -> tuple[str, ...]:
        """Return the names of a run's values, sorted."""
        with self._reading():
            return state.names(self._connection, run)

    def runs(self) -> tuple[str, ...]:
        """Return all runs that have values, sorted."""
        with self._reading():
            return state.runs(self._connection)

    @property
    def generation(self) -> int:
        """Number of write transactions since the file got the present schema."""
        with self._reading():
            return self._where().generation

    def verify(
        self, checkpoint: Checkpoint | None = None, *, public_key: Ed25519PublicKey | None = None
    ) -> None:
        """Check the whole file from its first byte, and against a checkpoint kept elsewhere.

        Args:
            checkpoint: an earlier `checkpoint()`; without one, removed last lines or a replaced
                file stay unseen.
            public_key: the key that must have signed the checkpoint.

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
            self._refuse_inside()
            self._entries = ()
            with store.explained(self.path), store.deferred(self._connection):
                schema.check_file(self._connection, self.path, snapshot_allowed=self._read_only)
                self._refresh()
                state.check_values(self._connection)
            if checkpoint is not None:
                self._compare(checkpoint)

    def checkpoint(self, key: Ed25519PrivateKey | None = None) -> Checkpoint:
        """Return size and head hash, signed when a key is given. Keep it where this ledger's
        writers cannot write.
        """
        entries = self._settled()
        made = Checkpoint(
            ledger=self.identifier,
            dataset=self.dataset,
            size=len(entries),
            head=entries[-1].hash,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return made if key is None else made.signed(key)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy of all lines for reading, without the values beside them; it is
        marked, so that it can never be charged.

        Raises:
            LedgerError: `path` holds something else than an earlier snapshot, or cannot be written;
                or a transaction is open.
        """
        with self._lock:
            self._refuse_inside()
            with self._reading():
                store.write_snapshot(store.rows_from(self._connection, 0), Path(path))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all lines as JSON lines with their hashes, for people and other programs; replaces
        the file.

        `fedtree_dp.ledger.entries.read_lines` checks such a file. It is no ledger and cannot be
        charged.

        Raises:
            LedgerError: the file is a ledger or snapshot, or cannot be written.
        """
        store.write_text(Path(path), "".join(f"{to_line(entry)}\n" for entry in self._settled()))

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

    # --- inside -----------------------------------------------------------------------------------

    def _excess(self, events: tuple[Event, ...]) -> float | None:
        """Return the epsilon that these events would bring the total to, if that is too much.

        Both promises are kept: `epsilon` while others are honest, `own_epsilon` whatever they do.
        """
        assumed = self._above(self.budget, given_honest((*self.events(), *events)))
        return assumed or self._above(self.budget.alone, (*self.events(), *events))

    def _above(self, budget: PrivacyBudget, total: tuple[Event, ...]) -> float | None:
        # All three only overstate, so the quick ones may accept; only the fine grid may refuse.
        if (
            upper_bound(total, budget.delta) <= budget.epsilon
            or epsilon_of(total, budget.delta, discretization=PLANNING_DISCRETIZATION)
            <= budget.epsilon
        ):
            return None
        reached = epsilon_of(total, budget.delta)
        return reached if reached > budget.epsilon else None

    def _refuse_excess(self, *events: Event) -> None:
        budget, total = self.budget, (*self.events(), *events)
        reached = self._above(budget, given_honest(total))
        if reached is not None:
            raise self._exceeded(reached, budget, self.spent(), "epsilon", "")
        alone = self._above(budget.alone, total)
        if alone is not None:
            hint = "; set own_epsilon" if budget.own_epsilon is None else ""
            raise self._exceeded(
                alone, budget.alone, self.own_spent(), "the epsilon of its own noise alone", hint
            )

    def _exceeded(
        self, reached: float, budget: PrivacyBudget, spent: float, what: str, hint: str
    ) -> BudgetExceeded:
        left = max(0.0, budget.epsilon - spent)
        return BudgetExceeded(
            f"{self.path}: data set {self.dataset!r}: this would bring {what} to {reached:.4f} "
            f"of {budget.epsilon:g} allowed at delta {budget.delta:g}; {spent:.4f} is spent, "
            f"{left:.4f} is left. Nothing was charged. Plan more noise or fewer steps, or stop "
            f"here{hint}",
            spent=spent,
            requested_total=reached,
            allowed=budget.epsilon,
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            self._check_process()
            with store.explained(self.path), store.deferred(self._connection):
                self._refresh()
                yield

    def _refresh(self) -> None:
        """Read the lines that are not known yet, inside the caller's transaction, and compare with
        what is recorded beside them.
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
        position = state.position(self._connection)
        if self._position is not None and position.generation < self._position.generation:
            raise LedgerRolledBack(f"{self.path}: set back to an older copy while it was open")
        self._entries, self._position = entries, position

    def _settled(self) -> tuple[Entry, ...]:
        with self._lock:
            self._refuse_inside()
            return self.entries()

    def _where(self) -> state.Position:
        assert self._position is not None  # set by the constructor's verify
        return self._position

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
        if _inode(self.path) != self._inode:
            raise LedgerRolledBack(
                f"{self.path}: replaced by another file while it was open; nothing was charged. "
                "Put back the one that was there"
            )

    def _refuse_inside(self) -> None:
        """What is uncommitted must not be copied or signed."""
        if self._connection.in_transaction:
            raise LedgerError(
                f"{self.path}: a transaction is open; copy, check and export after it"
            )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
