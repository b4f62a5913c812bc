"""A store's signed head at a second place: shows, on opening, a store that was set back.

Two small files: the head, which says how far the store had come, and beside it the key that signs
heads together with the number of the last one signed. Each transaction writes both before it
returns, so nothing may have left that a head does not cover.

What it cannot show: database, head and key set back all at once. Keep the head on another disk
than the database, and out of the backups that hold the database. The signature is no guard against
who can read the key: it tells apart stores, and heads that were edited.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rfc8785

from fedtree_dp import checks
from fedtree_dp.errors import LedgerError, LedgerRolledBack, LedgerTampered
from fedtree_dp.ledger import file as store
from fedtree_dp.ledger import locks
from fedtree_dp.ledger.entries import Entry

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TAG = b"fedtree-dp/head/v1\n"
_LOST = (
    "If it is lost for good, nobody knows what was spent since: this data set must not be used any "
    "more"
)
_MOVE = (
    "If it is lost for good, charge every event of this ledger to a new one with a new head, and "
    "use that"
)


@dataclass(frozen=True, slots=True)
class Head:
    """How far a store had come after one transaction.

    Attributes:
        ledger: identifier of the ledger, 32 hexadecimal digits.
        dataset: the owner's name of the data set.
        generation: number of write transactions.
        size: number of lines.
        hash: hash of the last line, 64 hexadecimal digits.
        state: digest of all state rows, 64 hexadecimal digits.
        signature: Ed25519 signature of everything else, 128 hexadecimal digits, or empty.
    """

    ledger: str
    dataset: str
    generation: int
    size: int
    hash: str
    state: str
    signature: str = ""

    def message(self) -> bytes:
        """Return what is signed."""
        return _TAG + rfc8785.dumps(asdict(replace(self, signature="")))


@dataclass(frozen=True, eq=False)
class _Key:
    """The signing key, and the generation of the last head that it signed."""

    private: Ed25519PrivateKey = field(repr=False)
    signed: int

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    def dump(self) -> bytes:
        seed = self.private.private_bytes_raw().hex()
        return rfc8785.dumps({"private_key": seed, "signed": self.signed})


class HeadFile:
    """The head of one store at its second place. Its folder must exist: a missing one may be a disk
    that is not mounted.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the place; nothing is read or written."""
        self.path = Path(path).resolve()
        self.key_path = self.path.with_name(f"{self.path.name}.key")

    def exists(self) -> bool:
        """Say whether a head or a key is there."""
        return self.path.exists() or self.key_path.exists()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only writer, from before a transaction begins until its head is written."""
        with locks.turn(locks.lock_file(self.path), store.PATIENCE_S):
            yield

    def adopt(self, now: Head) -> bytes:
        """Make the head of a store that has none yet, and return its public key to be recorded.

        An attempt that was interrupted before the key was recorded is taken up again.

        Raises:
            LedgerTampered: the head of another ledger lies here.
            LedgerRolledBack: a newer head of this ledger lies here: the store is an old copy.
            LedgerError: a file cannot be written.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not self.exists():
            key = _Key(Ed25519PrivateKey.generate(), now.generation)
            with _explained(self.path):
                store.replace_durably(self.key_path, key.dump())
        key = self._key()
        if self.path.exists():
            found = self._read(key.public)
            self._check_owner(found, now)
            self._check_not_older(found, now)
        self._check_key_not_newer(key, now)
        self.prepare(now)
        self.publish()
        return key.public

    def settle(self, now: Head, public_key: bytes, lines: Sequence[Entry]) -> None:
        """Compare head and key with the store, and complete them where the store is one
        transaction ahead.

        It is one ahead when a process died between its commit and the end of the head's writing.
        Nothing of that transaction can have left, because `Ledger.transaction` had not returned;
        the charge stays, so that at most too much is counted.

        Args:
            now: what the store says.
            public_key: what the store recorded.
            lines: the store's lines.

        Raises:
            LedgerRolledBack: store, head or key was set back.
            LedgerTampered: head or key are missing, foreign or edited, or the store's lines are not
                those that the head saw.
        """
        key = self._key()
        if key.public != public_key:
            raise LedgerTampered(
                f"{self.key_path}: the key of another ledger. Name the head of {now.dataset!r}"
            )
        found = self._read(public_key)
        self._check_owner(found, now)
        self._check_not_older(found, now)
        self._check_place(found, key, now)
        if found.generation == now.generation and replace(found, signature="") != now:
            raise LedgerTampered(
                f"{self.path}: saw other contents of the ledger after {now.generation} "
                "transactions; the ledger was edited, or copied and written apart. Keep all files, "
                "and ask its owner"
            )
        if found.size > len(lines) or lines[found.size - 1].hash != found.hash:
            raise LedgerTampered(
                f"{self.path}: saw another line {found.size - 1} than the ledger has. Keep all "
                "files, and ask its owner"
            )
        if found.generation < now.generation or key.signed != now.generation:
            self.prepare(now)
            self.publish()

    def prepare(self, now: Head) -> None:
        """Write the next head and key under other names, before the commit: a full or read-only
        disk then refuses while nothing is charged yet.

        Raises:
            LedgerError: a file cannot be written.
        """
        key = replace(self._key(), signed=now.generation)
        signed = replace(now, signature=key.private.sign(now.message()).hex())
        with _explained(self.path):
            store.write_durably(_next(self.path), rfc8785.dumps(asdict(signed)))
            store.write_durably(_next(self.key_path), key.dump())

    def publish(self) -> None:
        """Give what was prepared its names; head first, so that a key is never older by more than
        one.

        Raises:
            LedgerError: it failed after the commit; the charge stands, and nothing may leave.
        """
        try:
            for path in (self.path, self.key_path):
                _next(path).replace(path)
            store.flush(self.path.parent)
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the head cannot be written ({error.strerror}). The transaction is "
                "in the ledger, but nothing of it may leave; it is completed when the ledger is "
                "used again"
            ) from error

    def _check_owner(self, found: Head, now: Head) -> None:
        if (found.ledger, found.dataset) != (now.ledger, now.dataset):
            raise LedgerTampered(
                f"{self.path}: the head of another ledger, of data set {found.dataset!r}. Name the "
                f"head of {now.dataset!r}"
            )

    def _check_not_older(self, found: Head, now: Head) -> None:
        if now.generation < found.generation:
            raise LedgerRolledBack(
                f"the ledger of {now.dataset!r} is an older copy: {now.generation} transactions "
                f"where its head {self.path} saw {found.generation}. Put the newer ledger back. "
                f"{_LOST}"
            )

    def _check_key_not_newer(self, key: _Key, now: Head) -> None:
        if key.signed > now.generation:
            raise LedgerRolledBack(
                f"ledger and head of {now.dataset!r} are older copies: {now.generation} "
                f"transactions where the key {self.key_path} signed {key.signed}. Put the newer "
                f"ones back. {_LOST}"
            )

    def _check_place(self, found: Head, key: _Key, now: Head) -> None:
        if now.generation > found.generation + 1:
            raise LedgerRolledBack(
                f"{self.path}: an older copy: it saw {found.generation} transactions where the "
                f"ledger of {now.dataset!r} has {now.generation}. Put the newer head back. {_MOVE}"
            )
        self._check_key_not_newer(key, now)
        if key.signed < found.generation - 1:
            raise LedgerRolledBack(
                f"{self.key_path}: an older copy: it signed {key.signed} transactions where the "
                f"head has {found.generation}. Put the newer key back. {_MOVE}"
            )

    def _read(self, public_key: bytes) -> Head:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            head = Head(**_fields(self.path, "head"))
            message, signature = head.message(), bytes.fromhex(head.signature)
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
        except (TypeError, ValueError, RecursionError, InvalidSignature):
            raise LedgerTampered(
                f"{self.path}: not signed with this ledger's key: edited, or of another ledger. "
                f"Put back the one that was written last. {_MOVE}"
            ) from None
        return head

    def _key(self) -> _Key:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        fields = _fields(self.key_path, "key")
        try:
            seed = bytes.fromhex(fields["private_key"])
            signed = checks.count("signed", fields["signed"], at_least=0)
            return _Key(Ed25519PrivateKey.from_private_bytes(seed), signed)
        except (KeyError, TypeError, ValueError):
            # without the cause, which could quote what the file holds
            raise LedgerTampered(
                f"{self.key_path}: not the key of a head. Put back the one that was written last. "
                f"{_MOVE}"
            ) from None


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _fields(path: Path, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise LedgerTampered(
            f"{path}: the ledger has a signed head, and its {what} is missing here. Name the place "
            f"of the head, or put the {what} back. {_MOVE}"
        ) from None
    except OSError as error:
        raise LedgerError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise LedgerTampered(
            f"{path}: not the {what} of a ledger. Put back the one that was written last. {_MOVE}"
        )
    return fields


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{path}: the head cannot be written ({error.strerror}); nothing was charged. It needs "
            "an existing, writable folder with free space"
        ) from error
