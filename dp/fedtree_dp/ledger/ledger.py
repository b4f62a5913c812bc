"""The ledger of one data set: what was spent on it, by all jobs together, the refusal of what is
too much, and what a run must not forget beside it.

A charge is durable before `charge` returns, and a release may leave only after that: a crash can
overcount, never undercount. The budget is checked inside the same exclusive transaction that writes
the charge, so processes that race cannot exceed it together. What is stored are events; epsilon is
always recomputed from them. Values that belong to a charge are put in its transaction, so that a
crash leaves both or neither.

Limits: who can write the file can replace it by an older copy or by none. A signed head
(`fedtree_dp.ledger.head`) shows that on opening, unless it was set back as well; a checkpoint kept
elsewhere shows it to whoever keeps it. Copy a ledger with `snapshot`, never with `cp`, and never
charge two copies. An odometer's epsilon holds for charges fixed beforehand (see
`fedtree_dp.account.accounting`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fedtree_dp import checks
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event
from fedtree_dp.account.unit import PrivacyUnit
from fedtree_dp.errors import ConfigurationError, LedgerError, LedgerRolledBack, LedgerTampered
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import locks, schema, state
from fedtree_dp.ledger.entries import (
    GENESIS,
    Entry,
    Row,
    budget_key,
    budget_message,
    read_chain,
    seal,
    unit_of,
)
from fedtree_dp.ledger.head import Head, HeadFile
from fedtree_dp.ledger.transaction import Transaction
from fedtree_dp.ledger.view import LedgerView

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Ledger(LedgerView):
    """A durable, append-only account of one data set, and the store of its runs. Make one with
    `Ledger.open`, and close it or use `with`.

    Threads may share it; a forked process must open its own.

    Formal guarantee: if every release about the data set is charged here first with an event that
    describes it, and the events were fixed before they ran, all releases together are (epsilon,
    delta)-differentially private for neighbours that differ by one record added or removed, with
    the current budget's epsilon and delta. Where a unit was named (`use_unit`), neighbours differ
    by one whole unit. Charges of shared noise keep epsilon while others are honest, and the
    budget's own_epsilon (epsilon, where there is none) whatever they do.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool,
        head: HeadFile | None = None,
        exclusive: bool = False,
    ) -> None:
        """Open an existing file; use `open` or `inspect` instead."""
        self._head = head
        self._unit: PrivacyUnit | None = None
        self._held = locks.hold(path) if exclusive else None
        try:
            super().__init__(path, read_only=read_only)
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        dataset: str,
        budget: PrivacyBudget | None = None,
        create: bool = True,
        head: str | os.PathLike[str] | None = None,
        exclusive: bool = False,
    ) -> Self:
        """Open the ledger of `dataset`, or create it.

        A file of this user that others may read or write is made private (mode 600); somebody
        else's is refused. No folder is made.

        Args:
            path: the file; its folder must exist, on a local disk.
            dataset: the owner's name of the data set, 1 to 200 printable characters; never a digest
                of its rows.
            budget: what may be spent; must equal what the ledger says. `None`: take the ledger's.
            create: whether a missing file may be created; pass `False` when resuming, so that a
                lost ledger is noticed.
            head: file of the signed head, with `.key` appended that of its key; in an existing
                folder, best on another disk. A ledger without a head gets one here, once; from then
                on it can be written only with it.
            exclusive: whether to keep every other writer out until `close`.

        Raises:
            LedgerError: missing and not to be created, not a ledger, of another data set, with
                another budget, a snapshot, in use, or with a head that was not named.
            LedgerRolledBack: the ledger or its head is an older copy, or the ledger of a head is
                gone.
            LedgerTampered: ledger or head are damaged, changed or foreign; both are left as they
                are.
            ConfigurationError: `dataset` is no such name, or `head` names the ledger itself.
        """
        file = Path(path)
        checks.label("dataset", dataset)
        place = None if head is None else HeadFile(head)
        if place is not None and file.resolve() in {place.path, place.key_path}:
            raise ConfigurationError(f"head must be another file than the ledger {file}")
        # asked first, because a head is only ever made after its ledger
        had_one = place is not None and place.exists()
        if not os.path.lexists(file):
            if had_one:
                raise LedgerRolledBack(
                    f"{file}: there is no ledger of {dataset!r} here, but there is a head of one: "
                    "it was moved or deleted. Put it back, because a new one would forget what was "
                    "spent; or name another head"
                )
            _create(file, dataset, budget if create else None)
        file = _existing(file)
        store.make_private(file)
        ledger = cls(file, read_only=False, head=place, exclusive=exclusive)
        try:
            ledger._refuse_foreign(dataset, budget)
            ledger._begin()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def inspect(cls, path: str | os.PathLike[str]) -> Self:
        """Open any ledger or snapshot for reading, whatever its data set, budget and head; charging
        it is refused.

        Raises:
            LedgerError: missing, not a ledger, or interrupted in a write that only `open` may roll
                back.
            LedgerTampered: damaged or changed.
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
                f"{self.budget.delta:g}{_own(self.budget)}, not "
                f"{budget.epsilon:g} at {budget.delta:g}{_own(budget)}. Ask for the recorded one, "
                "or change it with set_budget"
            )

    def _begin(self) -> None:
        """Bring an older schema up to date, and compare with the head or make it."""
        with self._lock, store.explained(self.path):
            if schema.number(self._connection, "user_version") != schema.SCHEMA_VERSION:
                with store.immediate(self._connection, self.path):
                    schema.migrate(self._connection)
        if self._head is not None:
            with self._writing():
                pass
        elif self._where().key is not None:
            raise self._headless()

    # --- what it does -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Charge events and change values together: all of it is on the disk, and in the signed
        head, when the block ends, or nothing of it is.

        Any exception rolls everything back, one that an operation raised and the block swallowed
        included. Other writers wait meanwhile: compute elsewhere, and ask `require` before.

        Raises:
            LedgerError: it could not be written, this ledger was opened with `inspect`, another
                process holds it, a transaction is open already, or an operation inside failed.
            LedgerRolledBack: ledger or head were set back since.
            LedgerTampered: the file changed in a way that no transaction makes.
        """
        with self._writing():
            current = Transaction(self._connection, self.path, self._charge)
            try:
                yield current
                current.refuse_failed()
            finally:
                current.end()

    def charge(self, event: Event, *, job: str, purpose: str) -> Entry:
        """Charge one event before its result may leave; when this returns the charge is on the
        disk. A transaction of one charge.

        Args:
            event: what is about to be released.
            job: the owner's name of the run.
            purpose: what it is for, such as `"warm-up"` or `"round 3"`.

        Raises:
            BudgetExceeded: everything together would exceed the budget; nothing was written.
            LedgerError: as for `transaction`.
            LedgerTampered: the file changed in a way that no charge makes.
            ConfigurationError: an unusable name, or not an event.
        """
        _charge_fields(event, job, purpose)
        # most of the work, before the lock is taken; repeated under it from the cache
        self._refuse_excess(event)
        with self.transaction() as current:
            return current.charge(event, job=job, purpose=purpose)

    def use_unit(self, unit: PrivacyUnit | None) -> None:
        """Say what this ledger object's charges protect, before the first of them.

        The first unit that is named becomes a line of the chain and holds for good; it must be
        named again whenever the ledger was opened, or nothing can be charged. None is a record.

        Raises:
            LedgerError: as for `check_unit` and `transaction`; nothing was written.
        """
        self.check_unit(unit)
        if unit is not None:
            with self._writing():
                self.check_unit(unit)  # another process may have been faster
                if unit_of(self._entries) is None:
                    self._append("unit", {"unit": unit.to_dict()})
        self._unit = unit

    def set_budget(
        self, budget: PrivacyBudget, *, reason: str, key: Ed25519PrivateKey | None = None
    ) -> Entry:
        """Record another budget, for all later charges; what was spent stays spent.

        Lower and higher ones alike become a line of the chain. The first signed change pins its
        key: whoever raises the budget later needs that key.

        Args:
            budget: from here on.
            reason: for people.
            key: of whoever answers for the change; signs it together with its place in the chain.

        Raises:
            LedgerError: as for `charge`; or the budget was signed before, and not with this key.
            ConfigurationError: `reason` is not 1 to 200 printable characters.
        """
        fields = {"budget": budget.to_dict(), "reason": checks.label("reason", reason)}
        public = None if key is None else key.public_key().public_bytes_raw().hex()
        with self._writing():
            lines = self.entries()
            pinned = budget_key(lines)
            if pinned is not None and public != pinned:
                raise LedgerError(
                    f"{self.path}: the budget of {self.dataset!r} was signed with the key "
                    f"{pinned[:16]}..., and a change needs its signature; nothing was changed"
                )
            if key is None:
                return self._append("budget", fields)
            signature = key.sign(budget_message(lines, budget, reason)).hex()
            return self._append("signed-budget", fields | {"key": public, "signature": signature})

    def close(self) -> None:
        """Close the file; charges are on the disk already."""
        if self._pid == os.getpid():
            self._connection.close()
            self._let_go()

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

    def _charge(self, event: Event, job: str, purpose: str) -> Entry:
        fields = _charge_fields(event, job, purpose)
        self.check_unit(self._unit)
        self._refuse_excess(event)
        return self._append("charge", fields)

    def _append(self, kind: str, fields: Mapping[str, Any]) -> Entry:
        lines = self.entries()
        row: Row = seal(kind, fields, sequence=len(lines), previous=lines[-1].hash)
        (*_, entry) = read_chain([row], after=lines)
        store.append(self._connection, row)
        return entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the write lock, with all lines known, from here to a durable commit and its head."""
        if self._read_only:
            raise LedgerError(
                f"{self.path}: opened for reading only; open it with Ledger.open to charge it"
            )
        with self._lock, contextlib.ExitStack() as stack:
            self._check_process()
            if self._connection.in_transaction:
                raise LedgerError(
                    f"{self.path}: a transaction is open already; use that one, nothing was charged"
                )
            if self._held is None:
                stack.enter_context(locks.unheld(self.path))
            if self._head is not None:
                stack.enter_context(self._head.turn())
            known, changes = self._entries, self._connection.total_changes
            try:
                with store.immediate(self._connection, self.path):
                    with store.explained(self.path):
                        self._refresh()
                        self._settle_head()
                    yield
                    changed = self._connection.total_changes != changes
                    if changed:
                        self._count()
            except BaseException:
                self._entries = known  # lines that were read inside are gone
                raise
            if changed and self._head is not None:
                self._head.publish()

    def _settle_head(self) -> None:
        where = self._where()
        if self._head is None:
            if where.key is not None:
                raise self._headless()
        elif where.key is None:
            key = self._head.adopt(self._now(where, len(self._entries), self._entries[-1].hash))
            state.record_key(self._connection, key)
        else:
            now = self._now(where, len(self._entries), self._entries[-1].hash)
            self._head.settle(now, where.key, self._entries)

    def _count(self) -> None:
        """Count the transaction and prepare its head; the commit follows."""
        with store.explained(self.path):
            where = state.advance(self._connection)
            size, last = store.head(self._connection)
        if self._head is not None:
            self._head.prepare(self._now(where, size, last.hex()))

    def _now(self, where: state.Position, size: int, last: str) -> Head:
        return Head(
            ledger=self.identifier,
            dataset=self.dataset,
            generation=where.generation,
            size=size,
            hash=last,
            state=where.state.hex(),
        )

    def _headless(self) -> LedgerError:
        return LedgerError(
            f"{self.path}: this ledger has a signed head, which shows whether it was set back; "
            "name its file as head, or open the ledger with inspect to read it"
        )

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _own(budget: PrivacyBudget) -> str:
    return "" if budget.own_epsilon is None else f" with own_epsilon {budget.own_epsilon:g}"


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


def _create(path: Path, dataset: str, budget: PrivacyBudget | None) -> None:
    if budget is None:
        raise LedgerError(
            f"{path}: there is no ledger of {dataset!r} here; was it moved or deleted?"
        )
    fields = {"dataset": dataset, "budget": budget.to_dict(), "ledger": secrets.token_hex(16)}
    # a process that was faster created the same ledger
    with contextlib.suppress(FileExistsError):
        store.create(path, seal("opened", fields, sequence=0, previous=GENESIS))


def _charge_fields(event: Event, job: str, purpose: str) -> dict[str, Any]:
    if not isinstance(event, Event):
        raise ConfigurationError(f"only events can be charged, not {event!r:.80}")
    return {
        "event": event.to_dict(),
        "job": checks.label("job", job),
        "purpose": checks.label("purpose", purpose),
    }
