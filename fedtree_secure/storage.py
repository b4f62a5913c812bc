"""Files that survive a crash, folders that one process holds, and secrets at rest.

Files are written beside their place, fsynced and renamed: readers see old or new, whole.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedtree_secure.errors import ConfigurationError, RunFolderError, StoreError

KEY_FILE = "FEDTREE_KEY_FILE"
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner reads (0700); one that exists is narrowed to that."""
    path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    if path.stat().st_uid == os.getuid():
        path.chmod(PRIVATE_FOLDER)
    return path


def write_atomically(path: Path, write: Callable[[Path], object], mode: int = 0o644) -> None:
    """Let ``write`` fill a temporary file, make it durable and move it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=mode)
    write(temporary)
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    temporary.chmod(mode)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda target: target.write_text(text, "utf-8"), mode)


def read_json(path: Path) -> Any:
    """Read JSON; `RunFolderError` names a file that is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. At the end nothing but the run is left: no lock, and no
    folder that was made for it and stayed empty.

    Raises:
        RunFolderError: Another process holds it, or no folder can be made there.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be made a run folder: {error.strerror}; choose another one"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _same_file(handle.fileno(), folder / ".lock"):  # its last holder removed it
                raise BlockingIOError
        except OSError:
            raise RunFolderError(
                f"{folder} is in use by another process; wait for it or choose another folder"
            ) from None
        try:
            yield
        finally:
            _free(folder, made)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _free(folder: Path, made: Sequence[Path]) -> None:
    (folder / ".lock").unlink(missing_ok=True)
    for place in made:
        with contextlib.suppress(OSError):  # not empty
            place.rmdir()


class SecretBox:
    """Encrypts what must not be read off a disk, with a key that the operator gives.

    AES-256-GCM with a random nonce. Without a key the box is open: bytes are stored as they are,
    marked as such, and a box with a key refuses them. `encrypts` says which one it is, for reports.

    Args:
        key: 32 bytes, or None for an open box.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes | None) -> None:
        self._cipher = None if key is None else AESGCM(key)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "SecretBox":
        """Return the box of the key file that `FEDTREE_KEY_FILE` names; an open box without one.

        The file holds 32 random bytes, in base64 or raw: ``openssl rand -base64 32``.

        Raises:
            ConfigurationError: The file is missing, readable by others, or holds no such key.
        """
        place = environment.get(KEY_FILE)
        return cls(None if place is None else read_key(Path(place).expanduser()))

    @property
    def encrypts(self) -> bool:
        """Whether a key was given."""
        return self._cipher is not None

    def seal(self, data: bytes) -> bytes:
        """Return the stored form."""
        if self._cipher is None:
            return b"P" + data
        nonce = secrets.token_bytes(12)
        return b"E" + nonce + self._cipher.encrypt(nonce, data, b"fedtree-secure/at-rest/v1")

    def open(self, stored: bytes) -> bytes:
        """Return what `seal` was given.

        Raises:
            StoreError: Stored under another key, with a key where none was given, or changed.
        """
        if self._cipher is None:
            if stored[:1] != b"P":
                raise StoreError(f"secrets are stored encrypted; name their key file in {KEY_FILE}")
            return stored[1:]
        if stored[:1] != b"E":
            raise StoreError(
                f"secrets are stored unencrypted, but {KEY_FILE} gives a key; run without it, or "
                "begin with a new store"
            )
        try:
            return self._cipher.decrypt(stored[1:13], stored[13:], b"fedtree-secure/at-rest/v1")
        except InvalidTag:
            raise StoreError(
                f"secrets cannot be decrypted: {KEY_FILE} names another key, or they were changed"
            ) from None

    def __repr__(self) -> str:
        return f"SecretBox({'encrypting' if self.encrypts else 'open'})"


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in PEM, as ``openssl genpkey -algorithm ed25519`` writes it.

    Raises:
        ConfigurationError: The file is missing, readable by others, or holds no such key.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the key {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigurationError(f"the key {path} is readable by others; chmod 600 it")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the cause might quote the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path} holds no Ed25519 private key in PEM without a password; make one with "
            "`openssl genpkey -algorithm ed25519`"
        )
    return key


def read_key(path: Path) -> bytes:
    """Read a key file; see `SecretBox.from_environment`."""
    try:
        mode, data = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"the key file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigurationError(f"the key file {path} is readable by others; chmod 600 it")
    if len(data) != 32:
        with contextlib.suppress(ValueError):
            data = base64.b64decode(data, validate=True)
    if len(data) != 32:
        raise ConfigurationError(
            f"the key file {path} must hold 32 random bytes, raw or in base64; make one with "
            "`openssl rand -base64 32`"
        )
    return hashlib.sha256(b"fedtree-secure/key-file/v1\n" + data).digest()
