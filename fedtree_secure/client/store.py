"""What a client must not forget, in the one store of its data set.

Charges, counters, releases and the client's own values are rows of one SQLite file
(`fedtree_dp.Ledger`) and change in one transaction or not at all. So a crash anywhere, or a backup
of any part, never lets an upload leave that was not charged.

A charge counts as released when computing begins. It is never used again, except for results that
follow from the rows and the charge's own stored seed alone (`Charge.repeatable`).
"""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from fedtree_dp import BudgetExceeded, Event, Ledger
from fedtree_dp.ledger.transaction import Transaction
from fedtree_secagg import ProtocolError
from fedtree_secagg.journal import Journal
from fedtree_secure.agreed.messages import WireError
from fedtree_secure.client.state import ClientState
from fedtree_secure.errors import StoreError
from fedtree_secure.storage import SecretBox

_FORMAT = 1
_LINES = "journal/"


class Earlier(msgspec.Struct, forbid_unknown_fields=True):
    """A tree that was in force before the present one: its labels and what it came from."""

    labels: tuple[tuple[int, ...], ...]
    evidence: str


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Decisions of a client in one run. Changed only inside `Store.writing`.

    Attributes:
        counter: Number of the last request that was answered.
        round: Last round begun; -1 before any.
        known_round: Last round whose opened sums are in the client's experts.
        clips: The run's clip by kind of round, once accepted.
        sketch_attempt: Last attempt for which an advert was made.
        sketched_attempt: Last attempt in which a sketch may have left.
        sketches: How many sketches may have left.
        gradient_attempt, gradient_sketched, gradient_sketches: The same of gradients.
        voted: SHA-256 of the proposed tree that this client signed; it signs no other.
        evidence: The same of the adopted tree.
        tree: Labels of the adopted tree, or None.
        earlier: Trees that were in force before, the first one first.
        seated: Clients that distances have placed.
        gone: Clients that left for good, or were declared gone.
        voted_change: SHA-256 of the change of the present tree that this client signed.
        leaving: Whether its operator ended its part in the run, for good.
        beacons: What draws the sparse graph, by the tree that it was drawn for, in hexadecimal.
        head_merged: Whether the client's head is the average of its group's.
        releases: Charges by purpose: how often computing began.
        seeds: Sealed seed of repeatable charges whose result is not kept yet, by purpose.
        finished: Stages whose result is kept at home.
    """

    format: int = _FORMAT
    counter: int = 0
    round: int = -1
    known_round: int = -1
    clips: dict[str, float] = msgspec.field(default_factory=dict)
    sketch_attempt: int = 0
    sketched_attempt: int = 0
    sketches: int = 0
    gradient_attempt: int = 0
    gradient_sketched: int = 0
    gradient_sketches: int = 0
    voted: str = ""
    evidence: str = ""
    tree: tuple[tuple[int, ...], ...] | None = None
    earlier: list[Earlier] = msgspec.field(default_factory=list)
    seated: list[str] = msgspec.field(default_factory=list)
    gone: list[str] = msgspec.field(default_factory=list)
    voted_change: str = ""
    leaving: bool = False
    beacons: dict[str, str] = msgspec.field(default_factory=dict)
    head_merged: bool = False
    releases: dict[str, int] = msgspec.field(default_factory=dict)
    seeds: dict[str, str] = msgspec.field(default_factory=dict)
    finished: list[str] = msgspec.field(default_factory=list)

    def public(self) -> dict[str, Any]:
        """Return what auditors may see: everything but seeds."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        del found["seeds"]
        return found


def read_record(ledger: Ledger, run: str) -> Record:
    """Return what a client decided in a run so far.

    Raises:
        StoreError: It is of another format, or damaged.
    """
    stored = ledger.get(run, "record")
    if stored is None:
        return Record()
    try:
        found = msgspec.json.decode(stored, type=Record)
    except msgspec.DecodeError as error:
        raise StoreError(f"{ledger.path}: the record of run {run}: {error}") from None
    if found.format != _FORMAT:
        raise StoreError(
            f"{ledger.path}: run {run} was written by another version (format {found.format}, this "
            f"one reads {_FORMAT}); finish it with that version"
        )
    return found


def leave_run(ledger: Ledger, run: str) -> None:
    """Write down that a client leaves a run for good; see `Participant.leave`.

    Raises:
        StoreError, fedtree_dp.LedgerError: The store cannot be read or written.
    """
    record = read_record(ledger, run)
    record.leaving = True
    with ledger.transaction() as transaction:
        transaction.put(run, "record", msgspec.json.encode(record))


class Writing:
    """One transaction on a client's store."""

    def __init__(self, store: "Store", transaction: Transaction, record: Record) -> None:
        self._store, self._transaction, self.record = store, transaction, record

    def charge(self, purpose: str, event: Event, *, repeatable: bool) -> bytes:
        """Charge, note that computing begins, and return the seed of this release.

        Raises:
            BudgetExceeded: Too much; the whole transaction is undone.
        """
        if repeatable and (sealed := self.record.seeds.get(purpose)):
            return self._store.secrets.open(bytes.fromhex(sealed))
        if repeatable and purpose in self.record.finished:
            return b""  # its result is kept; there is nothing to compute, and no seed any more
        self._transaction.charge(event, job=self._store.run, purpose=purpose)
        self.record.releases[purpose] = self.record.releases.get(purpose, 0) + 1
        seed = secrets.token_bytes(32)
        if repeatable:
            self.record.seeds[purpose] = self._store.secrets.seal(seed).hex()
        return seed

    def finish(self, stage: str) -> None:
        """Note that a stage's result is kept at home; its seed is not needed and goes."""
        self.record.seeds.pop(stage, None)
        if stage not in self.record.finished:
            self.record.finished = [*self.record.finished, stage]

    def keep(self, state: ClientState) -> None:
        """Keep the client's values."""
        sealed = self._store.secrets.seal(state.to_bytes())
        self._transaction.put(self._store.run, "values", sealed)


class Store:
    """A client's memory of one run, inside the store of its data set.

    Args:
        ledger: Of the data set, open and held by this process.
        run: Name of the run.
        secrets: Encrypts values and seeds at rest.
        initial: The values of a client that has none yet.

    Attributes:
        record: What was decided; read it, change it in `writing`.
        state: The client's values; changed in memory, kept by `Writing.keep`.
        journal: Rounds and attempts, by the rules of `fedtree_secagg.journal`.

    Raises:
        StoreError: The run's rows are of another format or damaged.
    """

    def __init__(self, ledger: Ledger, run: str, secrets: SecretBox, initial: ClientState) -> None:
        self.ledger, self.run, self.secrets = ledger, run, secrets
        self._transaction: Transaction | None = None
        self._broken = False
        self.record = read_record(ledger, run)
        values = ledger.get(run, "values")
        self.state = initial if values is None else ClientState.from_bytes(secrets.open(values))
        self.journal = Journal(_Lines(self))

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """Change the record, charge and keep values together, durably, or not at all.

        After an error of the store itself nothing is answered any more: what is in memory and on
        the disk may differ.
        """
        if self._broken:
            raise StoreError(f"{self.ledger.path}: a write failed earlier; start this client again")
        draft = msgspec.json.decode(msgspec.json.encode(self.record), type=Record)
        try:
            with self.ledger.transaction() as transaction:
                self._transaction = transaction
                yield Writing(self, transaction, draft)
                transaction.put(self.run, "record", msgspec.json.encode(draft))
        except (BudgetExceeded, WireError, ProtocolError):  # refused; nothing was written
            raise
        except BaseException:
            self._broken = True
            raise
        finally:
            self._transaction = None
        self.record = draft

    def affords(self, event: Event) -> bool:
        """Say whether a charge would be accepted now."""
        return self.ledger.affords(event)


class _Lines:
    """The lines of `fedtree_secagg.journal` as rows of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> list[bytes]:
        """Return all lines, in order."""
        ledger, run = self._store.ledger, self._store.run
        names = sorted(name for name in ledger.names(run) if name.startswith(_LINES))
        self._count = len(names)
        return [ledger.get(run, name) or b"" for name in names]

    def append(self, line: bytes) -> None:
        """Add a line in the transaction that is open."""
        transaction = self._store._transaction
        if transaction is None:
            raise StoreError("the journal is written inside a transaction of its store")
        transaction.put(self._store.run, f"{_LINES}{self._count:08d}", line)
        self._count += 1

    def close(self) -> None:
        """Leave the store to its owner."""
