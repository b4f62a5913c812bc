"""What a run delivered, file by file with SHA-256, signed by its clients: changes after the run
have a name.

`manifest.json` lists every file of the run folder that somebody else reads, and within files their
entries: tensors of a safetensors file, keys of a JSON file, lines of a text file. Each client signs
the list with the key that the roster pins, so whoever changes a file and the list as well still
lacks a signature. The ledgers' copies are in it, too: nobody writes to a copy. Beside each stands a
checkpoint that its client signed.

The file is canonical JSON (RFC 8785), byte for byte: there is one way to write what it says, so a
changed byte of the manifest itself has no place to hide, either. What is written after a run,
audits and the report on them, has a manifest of its own (`write_addendum`), which names the first
by its SHA-256.

A manifest cannot show that a whole folder was replaced by that of another run with other keys: keep
its SHA-256, or the roster, somewhere else.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_secagg import Identity
from fedtree_secure.errors import RunFolderError
from fedtree_secure.storage import read_json, write_atomically

NAME = "manifest.json"
_LOCK = ".lock"  # of the process that holds the folder; every other dot file is listed
FORMAT = 1
SERVER_PARTY = "server"  # whose folder it is, where job.json names the server as the party
ADDENDUM = "report/manifest.json"
_TAG = b"fedtree-secure/manifest/v1\n"
_ADDENDUM_TAG = b"fedtree-secure/manifest-addendum/v1\n"
_LATER = ("audits", "report")  # written after the run: the addendum lists them
# runs of their own, the server's working state, and a simulation's stores with their private heads
_APART = (*_LATER, "references", "server", "stores", "heads")
_OF_CLIENTS = (
    "noise.json",
    "journal.json",
    "canaries.json",
)  # the rest of a client's folder is its own
# hexadecimal digits of an entry's digest: it only names what changed, the file's SHA-256 decides
_SHORT = 16
_READ = 1 << 20
_SHOWN = 5


def listed(folder: Path) -> Iterator[str]:
    """Yield the names of the files that a manifest lists, relative to the run folder, sorted."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        private = parts[0] == "clients" and path.name not in _OF_CLIENTS
        if parts[0] not in _APART and not private and parts not in ((NAME,), (_LOCK,)):
            yield "/".join(parts)


def listed_later(folder: Path) -> Iterator[str]:
    """Yield the names of the files that an addendum lists: audits and the report on them."""
    for part in _LATER:
        for path in sorted(p for p in (folder / part).rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if name != ADDENDUM:
                yield name


def describe(path: Path) -> dict[str, Any]:
    """Return size, SHA-256 and the digests of a file's entries."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_READ):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest(), "entries": entries_of(path)}


def entries_of(path: Path) -> dict[str, str]:
    """Return short digests of a file's entries by name; none for a file of another kind, or one
    that is damaged.
    """
    readers = {".json": _keys, ".txt": _lines, ".checkpoints": _lines, ".safetensors": _tensors}
    reader = readers.get(path.suffix)
    try:
        return {} if reader is None else {name: _short(data) for name, data in reader(path)}
    except (ValueError, OSError, KeyError, TypeError):
        return {}


def write_manifest(folder: Path, run: str, identities: Mapping[str, Identity]) -> Path:
    """List and sign what a run folder holds; returns the manifest's path.

    Args:
        folder: of a run that wrote its last file.
        run: id of the run.
        identities: of the clients; each signs the whole list.
    """
    content = {
        "format": FORMAT,
        "run": run,
        "files": {name: describe(folder / name) for name in listed(folder)},
    }
    return _write(folder / NAME, content, signed_bytes(content), identities)


def write_addendum(folder: Path, identities: Mapping[str, Identity]) -> Path:
    """List and sign what was written after the run; an earlier addendum is replaced.

    Args:
        folder: of a finished run.
        identities: of clients whose keys are here; each signs.

    Raises:
        RunFolderError: The run has no manifest to refer to.
    """
    first = folder / NAME
    content = {
        "format": FORMAT,
        "run": read_manifest(folder)["run"],
        "manifest": hashlib.sha256(first.read_bytes()).hexdigest(),
        "files": {name: describe(folder / name) for name in listed_later(folder)},
    }
    return _write(folder / ADDENDUM, content, addendum_bytes(content), identities)


def _write(
    path: Path, content: Mapping[str, Any], data: bytes, identities: Mapping[str, Identity]
) -> Path:
    # data once: canonical JSON of a thousand clients' files takes seconds
    signatures = {name: key.sign(data).hex() for name, key in sorted(identities.items())}
    text = rfc8785.dumps({**content, "signatures": signatures})
    write_atomically(path, lambda target: target.write_bytes(text))
    return path


def read_manifest(folder: Path, name: str = NAME) -> dict[str, Any]:
    """Return the manifest, or the addendum under its name.

    Raises:
        RunFolderError: It is missing, damaged or of another format.
    """
    found = read_json(folder / name)
    shape = (
        isinstance(found, dict)
        and isinstance(found.get("files"), dict)
        and all(isinstance(entry, dict) for entry in found["files"].values())
        and isinstance(found.get("signatures"), dict)
    )
    if not shape or found.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder / name} is no manifest of format {FORMAT}; take it from the run that wrote it"
        )
    return dict(found)


def is_canonical(folder: Path, name: str = NAME) -> bool:
    """Say whether a manifest's bytes are the one way to write what it says."""
    try:
        return rfc8785.dumps(read_manifest(folder, name)) == (folder / name).read_bytes()
    except (ValueError, RecursionError):  # a number or a text that has no canonical form
        return False


def signed_bytes(content: Mapping[str, Any]) -> bytes:
    """Return what clients sign: everything but the signatures, as canonical JSON behind a domain
    tag.
    """
    return _TAG + _unsigned(content)


def addendum_bytes(content: Mapping[str, Any]) -> bytes:
    """Return what clients sign of an addendum; another tag, so that it is no manifest."""
    return _ADDENDUM_TAG + _unsigned(content)


def _unsigned(content: Mapping[str, Any]) -> bytes:
    return rfc8785.dumps({key: value for key, value in content.items() if key != "signatures"})


def signature_fits(key: str, signature: str, message: bytes) -> bool:
    """Say whether a signature, both in lower-case hexadecimal, is that of the key's holder."""
    try:
        public, given = bytes.fromhex(key), bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(public).verify(given, message)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return given.hex() == signature  # one way to write it, too


def difference(path: Path, told: Mapping[str, Any]) -> str:
    """Say in words how a file differs from what a manifest tells; empty where it does not."""
    if not path.is_file():
        return "it was delivered and is gone"
    found = describe(path)
    if found["sha256"] == told.get("sha256"):
        return ""
    before, now = told.get("entries"), found["entries"]
    before = before if isinstance(before, dict) else {}
    changed = [
        entry
        for entry in [*before, *(e for e in now if e not in before)]
        if before.get(entry) != now.get(entry)
    ]
    where = (
        f"changed: {few(changed)}"
        if changed and now
        else f"{found['bytes']} bytes, delivered {told.get('bytes')}"
    )
    return f"not what was delivered; {where}"


def few(names: Iterable[str]) -> str:
    """Join names, and count those that would make the line too long."""
    given = list(names)
    more = f" and {len(given) - _SHOWN} more" if len(given) > _SHOWN else ""
    return ", ".join(given[:_SHOWN]) + more


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_SHORT]


def _keys(path: Path) -> Iterator[tuple[str, bytes]]:
    """Keys of the first two levels: ``clients.clinic-a``, ``rounds.3``."""
    for key, value in _items(json.loads(path.read_text("utf-8"))):
        for inner, part in _items(value) or [("", value)]:
            yield f"{key}.{inner}".rstrip("."), json.dumps(part, sort_keys=True).encode()


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    return [(str(at), item) for at, item in enumerate(value)] if isinstance(value, list) else []


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        yield f"line {number}", line


def _tensors(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read the format itself (8 bytes of length, a JSON header, data), so that nothing of torch is
    needed.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            yield (
                name,
                repr((entry["dtype"], entry["shape"])).encode()
                + data[start + first : start + last],
            )
