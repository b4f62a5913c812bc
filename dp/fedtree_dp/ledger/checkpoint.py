"""A ledger's size and head hash, kept somewhere else: the only thing that shows a shortened or
replaced ledger.

Keep checkpoints where who can write the ledger cannot: another machine, a log of another party,
paper. A signature (Ed25519) says who made the checkpoint; it proves something only against a public
key that the verifier knew before.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import rfc8785

from fedtree_dp import checks
from fedtree_dp.errors import ConfigurationError, LedgerError, LedgerTampered
from fedtree_dp.ledger.file import flush

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

_TAG = b"fedtree-dp/checkpoint/v1\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a ledger held at one moment.

    Attributes:
        ledger: identifier of the ledger, 32 hexadecimal digits.
        dataset: the owner's name of the data set.
        size: number of lines, at least 1.
        head: hash of the last line, 64 hexadecimal digits.
        time: UTC, ISO 8601, when the checkpoint was made.
        public_key: Ed25519 public key, 64 hexadecimal digits, or empty when unsigned.
        signature: Ed25519 signature of everything else, 128 hexadecimal digits, or empty.

    Raises:
        ConfigurationError: a value of another form.
    """

    ledger: str
    dataset: str
    size: int
    head: str
    time: str
    public_key: str = ""
    signature: str = ""

    def __post_init__(self) -> None:
        checks.count("size", self.size)
        checks.label("dataset", self.dataset)
        checks.label("time", self.time)
        for name, lengths in (
            ("ledger", {32}),
            ("head", {64}),
            ("public_key", {0, 64}),
            ("signature", {0, 128}),
        ):
            value = getattr(self, name)
            if (
                not isinstance(value, str)
                or not re.fullmatch("[0-9a-f]*", value)
                or len(value) not in lengths
            ):
                raise ConfigurationError(
                    f"{name} of a checkpoint must be {max(lengths)} lower-case hexadecimal digits"
                )

    def to_json(self) -> str:
        """Return one line of canonical JSON, `from_json`'s inverse."""
        return rfc8785.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: it is no checkpoint.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"not a checkpoint: {error}") from None

    def signed(self, key: Ed25519PrivateKey) -> Checkpoint:
        """Return this checkpoint with the key's signature."""
        named = replace(self, public_key=key.public_key().public_bytes_raw().hex(), signature="")
        return replace(named, signature=key.sign(named._message()).hex())

    def check_signature(self, key: Ed25519PublicKey) -> None:
        """Check that the holder of `key` made this checkpoint.

        Raises:
            LedgerTampered: it is unsigned, signed with another key, or was changed afterwards.
        """
        from cryptography.exceptions import InvalidSignature

        if self.public_key != key.public_bytes_raw().hex():
            raise LedgerTampered("the checkpoint is not signed with the expected key")
        try:
            key.verify(bytes.fromhex(self.signature), self._message())
        except InvalidSignature:
            raise LedgerTampered(
                "the checkpoint's signature does not fit: it was changed after signing"
            ) from None

    def _message(self) -> bytes:
        return _TAG + rfc8785.dumps(asdict(replace(self, signature="")))


def keep(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Add the checkpoint as one line to a file elsewhere, durably; create the file when missing.

    Raises:
        LedgerError: the file cannot be written.
    """
    file = Path(path)
    line = checkpoint.to_json().encode() + b"\n"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)  # one write, so that two processes do not mix their lines
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        flush(file.parent)
    except OSError as error:
        raise LedgerError(f"cannot keep a checkpoint in {file}: {error.strerror}") from error


def kept(path: str | os.PathLike[str]) -> tuple[Checkpoint, ...]:
    """Return all checkpoints of a file that `keep` wrote, oldest first.

    Raises:
        LedgerError: it cannot be read.
        LedgerTampered: a line is no checkpoint, there are none, or they speak of several ledgers.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"cannot read checkpoints from {path}: {error}") from error
    found: list[Checkpoint] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Checkpoint.from_json(line))
        except ConfigurationError as error:
            raise LedgerTampered(f"{path}: line {number}: {error}") from None
        if found[-1].ledger != found[0].ledger:
            raise LedgerTampered(f"{path}: line {number} is of another ledger than line 1")
    if not found:
        raise LedgerTampered(f"{path}: no checkpoints; the file was emptied")
    return tuple(found)
