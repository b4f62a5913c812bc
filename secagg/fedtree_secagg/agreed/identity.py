"""Who takes part: long-lived Ed25519 identities and the pinned roster of their public keys.

The roster is agreed outside of this protocol. There is no trust on first use: a key that the roster
does not name is refused, whatever the server says.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtree_secagg.errors import ConfigurationError
from fedtree_secagg.primitives.secret import Unprintable, check_randomness

NAME_BYTES_MAX = 64


class Identity(Unprintable):
    """A client's Ed25519 key: prints nothing, does not pickle; store it with `to_private_bytes`."""

    __slots__ = ("_key", "public_bytes")

    public_bytes: bytes

    def __init__(self, private_bytes: bytes) -> None:
        if not isinstance(private_bytes, bytes) or len(private_bytes) != 32:
            raise ConfigurationError(
                "an identity is read from its 32 private bytes, see Identity.to_private_bytes"
            )
        self._key = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.public_bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, randomness: bytes) -> "Identity":
        """Make an identity from 32 fresh bytes, e.g. `secrets.token_bytes(32)`."""
        return cls(
            hashlib.sha256(b"fedtree-secagg/v1/identity\0" + check_randomness(randomness)).digest()
        )

    def to_private_bytes(self) -> bytes:
        """Return the 32 private bytes, for storage by the owner and for nothing else."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of `messages.signed_input`, which separates the domains."""
        return self._key.sign(message)


@dataclass(frozen=True)
class Roster:
    """The pinned public keys, ordered by name.

    Args:
        keys: 32-byte Ed25519 public key of every participant that may ever take part, by name.
            Names have 1 to 64 UTF-8 bytes and are printable; no two names share a key.
    """

    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigurationError(
                "the roster is empty: give at least one name and its public key"
            )
        object.__setattr__(self, "keys", {name: self.keys[name] for name in sorted(self.keys)})
        for name, key in self.keys.items():
            check_name(name)
            if not isinstance(key, bytes) or len(key) != 32:
                raise ConfigurationError(
                    f"roster: the key of {name!r} must be 32 bytes (Identity.public_bytes)"
                )
        if len(set(self.keys.values())) != len(self.keys):
            raise ConfigurationError(
                "roster: two names share a key; every participant needs an identity of its own"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self.keys)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over names and keys."""
        digest = hashlib.sha256(b"fedtree-secagg/v1/roster\0")
        for name, key in self.keys.items():
            digest.update(len(name.encode()).to_bytes(1, "big") + name.encode() + key)
        return digest.digest()

    def verifies(self, name: str, signature: bytes, message: bytes) -> bool:
        """Say whether this is the named participant's signature of the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.keys[name]).verify(signature, message)
        except (InvalidSignature, KeyError):
            return False
        return True

    def __contains__(self, name: object) -> bool:
        return name in self.keys

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


def check_name(name: object) -> str:
    """Return the name; refuse what is no string of 1 to 64 printable UTF-8 bytes."""
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not 1 <= len(name.encode()) <= NAME_BYTES_MAX
    ):
        raise ConfigurationError(
            f"{name!r} is no participant or node name: 1 to {NAME_BYTES_MAX} printable UTF-8 bytes"
        )
    return name
