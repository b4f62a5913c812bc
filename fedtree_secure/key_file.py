"""Signing keys of sites and servers as files, and the cards that carry their public halves.

A key is made by `new_key` and by nothing else: no command that only needs a key ever makes one. A
card is what a site sends to whoever keeps the roster: name, public key and the label set that the
site declares, signed by that very key, so that nobody can enter somebody else's key under a name. A
rotated key's card is signed by its predecessor as well.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_secagg import Identity
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.names import check_name
from fedtree_secure.storage import PRIVATE_FILE, SecretBox, write_atomically, write_json

_CARD = b"fedtree-secure/card/v1\n"
_SUCCESSION = b"fedtree-secure/succession/v1\n"


@dataclass(frozen=True)
class Card:
    """A name with its public key.

    Attributes:
        name: Of the site, see `check_name`.
        key: Ed25519 public key, 64 hexadecimal digits.
        proof: Signature of the key's holder over name, key and labels, in hexadecimal.
        succeeds: The key that this one replaces; empty if none.
        succession: Signature of the replaced key over the new one; empty if none.
        labels: The label set that the site declares, in the order of its head's outputs; sites with
            one label set may share a head. Empty: the site keeps its head to itself.
    """

    name: str
    key: str
    proof: str
    succeeds: str = ""
    succession: str = ""
    labels: tuple[str, ...] = ()

    def check(self) -> "Card":
        """Return the card; `ConfigurationError` where a signature on it does not hold."""
        check_name("the name on a card", self.name)
        _check_labels(self.name, self.labels)
        if not verifies(self.key, self.proof, _claimed(self.name, self.key, self.labels)):
            raise ConfigurationError(
                f"the card of {self.name!r} is not signed by the key that it names; make it again "
                "with `fedtree-secure keys show`"
            )
        if self.succeeds:
            claim = _claim(_SUCCESSION, self.name, self.succeeds, self.key)
            if not verifies(self.succeeds, self.succession, claim):
                raise ConfigurationError(
                    f"the card of {self.name!r} says that its key succeeds {self.succeeds[:16]}, "
                    "which did not sign it; make it with `fedtree-secure keys rotate`"
                )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a card without labels reads as it did before there were any."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found if self.labels else {k: v for k, v in found.items() if k != "labels"}

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        write_json(path, self.to_dict())


def new_key(path: Path, box: SecretBox) -> Identity:
    """Make a key file, 0600, and return the key.

    Args:
        path: Where no file is yet.
        box: Encrypts it at rest.

    Raises:
        ConfigurationError: There is a file already.
    """
    if os.path.lexists(path):
        raise ConfigurationError(
            f"there is a file {path} already, and a key is never overwritten; choose another name, "
            "or replace a key with `fedtree-secure keys rotate`"
        )
    identity = Identity.generate(os.urandom(32))
    sealed = box.seal(identity.to_private_bytes())
    write_atomically(path, lambda target: target.write_bytes(sealed), PRIVATE_FILE)
    return identity


def read_identity(path: Path, box: SecretBox) -> Identity:
    """Return the key that a file holds.

    Raises:
        ConfigurationError: It is missing, readable by others, or no key.
        StoreError: It is encrypted under another key, or not encrypted and should be.
    """
    try:
        mode, sealed = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the key {path} cannot be read ({error.strerror}); `fedtree-secure keys new` makes one"
        ) from None
    if mode & 0o077:
        raise ConfigurationError(f"the key {path} is readable by others; chmod 600 it")
    secret = box.open(sealed)
    if len(secret) != 32:
        raise ConfigurationError(f"{path} is no key of `fedtree-secure keys new`")
    return Identity(secret)


def card_of(
    name: str, identity: Identity, old: Identity | None = None, labels: Sequence[str] = ()
) -> Card:
    """Return the card of a key, signed by it, and by the key that it replaces if there is one.

    Args:
        name: Of the site.
        identity: Its key.
        old: The key before.
        labels: See `Card`.
    """
    check_name("the name on a card", name)
    key, declared = identity.public_bytes.hex(), tuple(labels)
    _check_labels(name, declared)
    proof = identity.sign(_claimed(name, key, declared)).hex()
    if old is None:
        return Card(name, key, proof, labels=declared)
    before = old.public_bytes.hex()
    succession = old.sign(_claim(_SUCCESSION, name, before, key)).hex()
    return Card(name, key, proof, before, succession, declared)


def read_card(path: Path) -> Card:
    """Read and check a card; `ConfigurationError` says what is wrong with it."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"{path} is no card ({error}); `fedtree-secure keys show` prints one"
        ) from None
    return found.check()


def verifies(key: str, signature: str, message: bytes) -> bool:
    """Say whether a hexadecimal Ed25519 signature holds under a hexadecimal key."""
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _check_labels(name: str, labels: Sequence[str]) -> None:
    if labels and (len(labels) < 2 or len(set(labels)) != len(labels) or "" in labels):
        raise ConfigurationError(
            f"the labels on the card of {name!r} are {', '.join(labels)}; allowed: at least two, "
            "each once, in the order of the head's outputs, or none"
        )


def _claimed(name: str, key: str, labels: Sequence[str]) -> bytes:
    return _claim(_CARD, name, key, *([list(labels)] if labels else []))


def _claim(tag: bytes, *parts: Any) -> bytes:
    return tag + rfc8785.dumps(list(parts))
