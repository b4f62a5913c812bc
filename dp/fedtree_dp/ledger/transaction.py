"""Charges and values that belong together: kept together, or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from fedtree_dp.account.events import Event
from fedtree_dp.errors import LedgerError
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import state
from fedtree_dp.ledger.entries import Entry


class Transaction:
    """The operations of one open transaction; made by `Ledger.transaction`.

    Runs and names are 1 to 200 printable characters without blank ends. Every operation may raise
    `LedgerError`; after one that failed the transaction keeps nothing, even if the error is caught.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        charge: Callable[[Event, str, str], Entry],
    ) -> None:
        """Use `Ledger.transaction` instead."""
        self._connection, self._path, self._charge = connection, path, charge
        self._open, self._failed = True, False

    def charge(self, event: Event, *, job: str, purpose: str) -> Entry:
        """Charge one event; its result may leave after the transaction has ended.

        Raises:
            BudgetExceeded: everything together, this transaction's other charges included, would
                exceed the budget.
            ConfigurationError: an unusable name, or not an event.
        """
        with self._operation():
            return self._charge(event, job, purpose)

    def get(self, run: str, name: str) -> bytes | None:
        """Return a value as this transaction sees it, or None where there is none.

        Raises:
            LedgerTampered: the value was edited.
            ConfigurationError: `run` or `name` is no label.
        """
        with self._operation():
            return state.get(self._connection, run, name)

    def put(self, run: str, name: str, value: bytes) -> None:
        """Keep a value, in place of an earlier one of this name.

        Raises:
            ConfigurationError: not bytes, larger than 64 MiB, or `run` or `name` is no label.
        """
        with self._operation():
            state.put(self._connection, run, name, value)

    def delete(self, run: str, name: str) -> None:
        """Forget a value; nothing happens where there is none.

        Raises:
            ConfigurationError: `run` or `name` is no label.
        """
        with self._operation():
            state.delete(self._connection, run, name)

    def names(self, run: str) -> tuple[str, ...]:
        """Return the names of a run's values as this transaction sees them, sorted.

        Raises:
            ConfigurationError: `run` is no label.
        """
        with self._operation():
            return state.names(self._connection, run)

    def refuse_failed(self) -> None:
        """Refuse to end well where an operation failed: what it belonged to would be kept without
        it.

        Raises:
            LedgerError: one did.
        """
        if self._failed:
            raise LedgerError(
                f"{self._path}: an operation of this transaction failed, so nothing of it is kept"
            )

    def end(self) -> None:
        """Refuse all further operations."""
        self._open = False

    @contextlib.contextmanager
    def _operation(self) -> Iterator[None]:
        if not self._open:
            raise LedgerError(f"{self._path}: this transaction has ended; begin another one")
        try:
            with store.explained(self._path):
                yield
        except BaseException:
            self._failed = True
            raise
