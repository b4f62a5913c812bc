"""The ledger's lines: canonical JSON, each sealed with the hash of the line before it.

No line holds anything about the data beyond the names that its owner gave: mechanisms, public
rates, counts of steps, budgets, times. The chain shows changes; it cannot show that lines at the
end are missing (see `fedtree_dp.ledger.checkpoint`),
and it is no signature: who may write the file may write a new chain.

A change of the budget may carry a signature of whoever answers for it, over the change and its
place in the chain. The first one pins the key: from then on a budget that is not signed with it is
no line of this ledger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import rfc8785

from fedtree_dp import checks
from fedtree_dp.account import events
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.events import Event
from fedtree_dp.account.unit import PrivacyUnit
from fedtree_dp.errors import ConfigurationError, LedgerTampered

_TAG = b"fedtree-dp/ledger/v1\n"
_BUDGET_TAG = b"fedtree-dp/budget/v1\n"
GENESIS = "0" * 64

Row = tuple[int, bytes, bytes]
"""A stored line: its number from 0, the canonical body, and the SHA-256 of tag and body."""

_COMMON = frozenset({"kind", "previous", "sequence", "time"})
_FIELDS = {
    "opened": _COMMON | {"budget", "dataset", "ledger"},
    "charge": _COMMON | {"event", "job", "purpose"},
    "budget": _COMMON | {"budget", "reason"},
    "signed-budget": _COMMON | {"budget", "reason", "key", "signature"},
    "unit": _COMMON | {"unit"},
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a ledger.

    Attributes:
        sequence: number of the line, from 0.
        kind: `"opened"` (the first line), `"charge"`, `"budget"` (a changed budget),
            `"signed-budget"` (one with a signature) or `"unit"` (what all charges protect, where
            that is not a record; before the first charge, once).
        time: UTC, ISO 8601, seconds; the writer's clock, for people.
        previous: hash of the line before, 64 hexadecimal digits; zeros for the first.
        hash: hash of this line.
        event: what was charged (`charge` only).
        job: the owner's name of the run that charged it (`charge` only).
        purpose: what it was for, such as `"round 3"` (`charge` only).
        budget: the budget from here on (`opened`, `budget` and `signed-budget`).
        reason: why the budget was changed (`budget` and `signed-budget`).
        dataset: the owner's name of the data set (`opened` only).
        ledger: random identifier of the ledger, 32 hexadecimal digits (`opened` only).
        key: Ed25519 public key that signed the change, 64 hexadecimal digits (`signed-budget`).
        signature: its signature of `budget_message`, 128 hexadecimal digits (`signed-budget`).
        unit: what every charge protects (`unit` only).
    """

    sequence: int
    kind: str
    time: str
    previous: str
    hash: str
    event: Event | None = None
    job: str | None = None
    purpose: str | None = None
    budget: PrivacyBudget | None = None
    reason: str | None = None
    dataset: str | None = None
    ledger: str | None = None
    key: str | None = None
    signature: str | None = None
    unit: PrivacyUnit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the line's own fields as plain values, its hash included."""
        body: dict[str, Any] = {name: getattr(self, name) for name in sorted(_FIELDS[self.kind])}
        for name in ("event", "budget", "unit"):
            if name in body:
                body[name] = body[name].to_dict()
        return body | {"hash": self.hash}


def seal(kind: str, fields: Mapping[str, Any], *, sequence: int, previous: str) -> Row:
    """Return the stored line for these fields, at this place of the chain, with the present
    time.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    body = rfc8785.dumps(
        {**fields, "kind": kind, "sequence": sequence, "previous": previous, "time": time}
    )
    return sequence, body, digest(body)


def budget_message(lines: Sequence[Entry], budget: PrivacyBudget, reason: str) -> bytes:
    """Return what is signed to change the budget after these lines: ledger, place and change."""
    return _BUDGET_TAG + rfc8785.dumps(
        {
            "ledger": lines[0].ledger,
            "dataset": lines[0].dataset,
            "sequence": len(lines),
            "previous": lines[-1].hash,
            "budget": budget.to_dict(),
            "reason": reason,
        }
    )


def budget_key(lines: Iterable[Entry]) -> str | None:
    """Return the key that all further changes of the budget need; None while none was signed."""
    return next((line.key for line in lines if line.key is not None), None)


def unit_of(lines: Iterable[Entry]) -> PrivacyUnit | None:
    """Return the unit that all charges protect; None where it is a record."""
    return next((line.unit for line in lines if line.unit is not None), None)


def digest(body: bytes) -> bytes:
    """Return the hash of one canonical body."""
    return hashlib.sha256(_TAG + body).digest()


def read_chain(rows: Iterable[Row], after: tuple[Entry, ...] = ()) -> tuple[Entry, ...]:
    """Check rows that follow the already checked lines `after`, and return all lines.

    Raises:
        LedgerTampered: a gap, a hash that does not fit, a body that is not canonical or says what
            no writer writes.
    """
    entries = list(after)
    for row in rows:
        entries.append(_read(row, entries))
    if not entries:
        raise LedgerTampered("the ledger has no first line; its lines were removed")
    return tuple(entries)


def to_line(entry: Entry) -> str:
    """Return the entry as one line of canonical JSON with its hash: the form of exports."""
    return rfc8785.dumps(entry.to_dict()).decode()


def read_lines(lines: Iterable[str]) -> tuple[Entry, ...]:
    """Check an export and return its entries.

    Raises:
        LedgerTampered: it is not a whole export from the first line on, or was changed. Missing
            last lines show only against a checkpoint.
    """
    return read_chain(_row(number, line) for number, line in enumerate(lines))


def _row(number: int, line: str) -> Row:
    try:
        data = json.loads(line)
        sealed = bytes.fromhex(data.pop("hash"))
        return data["sequence"], rfc8785.dumps(data), sealed
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerTampered(f"line {number} of the export cannot be read: {error}") from None


def _read(row: Row, before: list[Entry]) -> Entry:
    sequence, body, stored = row
    expected = len(before)
    if sequence != expected:
        raise LedgerTampered(
            f"line {expected} of the ledger is missing: line {sequence} follows line {expected - 1}"
        )
    if digest(body) != stored:
        raise LedgerTampered(f"line {sequence} of the ledger was changed: its hash does not fit")
    try:
        entry = _parse(body, stored.hex())
    except (ConfigurationError, ValueError, TypeError, KeyError) as error:
        raise LedgerTampered(
            f"line {sequence} of the ledger is not one that this package writes: {error}"
        ) from None
    if entry.sequence != sequence or entry.previous != (before[-1].hash if before else GENESIS):
        raise LedgerTampered(
            f"line {sequence} of the ledger does not follow the line before it: the chain is broken"
        )
    if (entry.kind == "opened") != (sequence == 0):
        raise LedgerTampered(
            f"line {sequence} of the ledger is of kind {entry.kind!r}, which cannot stand there"
        )
    if sequence and entry.budget is not None:
        _check_budget(entry, before)
    if entry.unit is not None and any(line.kind in ("charge", "unit") for line in before):
        raise LedgerTampered(
            f"line {sequence} of the ledger names a unit after charges or another unit; it cannot "
            "stand there"
        )
    return entry


def _check_budget(entry: Entry, before: Sequence[Entry]) -> None:
    """Refuse a changed budget whose signature is missing, foreign or of another change."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    pinned = budget_key(before)
    if pinned is not None and entry.key != pinned:
        raise LedgerTampered(
            f"line {entry.sequence} of the ledger changes the budget without the signature of the "
            f"key {pinned[:16]}..., which signed it before"
        )
    if entry.key is None:
        return
    assert entry.budget is not None
    message = budget_message(before, entry.budget, entry.reason or "")
    try:
        signature = bytes.fromhex(entry.signature or "")
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(entry.key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise LedgerTampered(
            f"line {entry.sequence} of the ledger changes the budget with a signature that does "
            "not fit"
        ) from None


def _parse(body: bytes, sealed: str) -> Entry:
    data = json.loads(body)
    if not isinstance(data, dict) or rfc8785.dumps(data) != body:
        raise ValueError("its text is not canonical")
    if data.get("kind") not in _FIELDS or data.keys() != _FIELDS[data["kind"]]:
        raise ValueError("its fields are not those of any kind")
    labels = {"job", "purpose", "reason", "dataset", "ledger", "time", "previous"}
    for name in data.keys() & (labels | {"key", "signature"}):
        checks.label(name, data[name])
    checks.count("sequence", data["sequence"], at_least=0)
    if "event" in data:
        data["event"] = events.from_dict(data["event"])
    if "budget" in data:
        data["budget"] = PrivacyBudget(**data["budget"])
    if "unit" in data:
        data["unit"] = PrivacyUnit(**data["unit"])
    return Entry(**data, hash=sealed)
