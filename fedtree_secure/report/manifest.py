"""What a run delivered, file by file with SHA-256, signed by its clients: changes after the run
have a name.

`manifest.json` lists every file of the run folder that somebody else reads, and within files their
entries: tensors of a safetensors file, keys of a JSON file, lines of a text file. Each client signs
the list with the key that the roster pins, so whoever changes a file and the list as well still
lacks a signature. Ledgers are not in it, because SQLite rewrites bytes that mean nothing; each
client's signed checkpoint stands beside its ledger instead.

A manifest cannot show that a whole folder was replaced by that of another run with other keys: keep
its SHA-256, or the roster, somewhere else.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rfc8785

from fedtree_secagg import Identity
from fedtree_secure.errors import RunFolderError
from fedtree_secure.storage import read_json, write_json

NAME = "manifest.json"
_LOCK = ".lock"  # of the process that holds the folder; every other dot file is listed
FORMAT = 1
_TAG = b"fedtree-secure/manifest/v1\n"
_APART = (
    "audits",
    "references",
    "server",
)  # written later, manifests of their own, the server's working state
_OF_CLIENTS = (
    "noise.json",
    "journal.json",
    "canaries.json",
)  # the rest of a client's folder is its own
# hexadecimal digits of an entry's digest: it only names what changed, the file's SHA-256 decides
_SHORT = 16
_READ = 1 << 20


def listed(folder: Path) -> Iterator[str]:
    """Yield the names of the files that a manifest lists, relative to the run folder, sorted."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        private = parts[0] == "clients" and path.name not in _OF_CLIENTS
        ledger = parts[0] == "ledgers" and not path.name.endswith(".checkpoints")
        if (
            parts[0] not in _APART
            and not private
            and not ledger
            and parts not in ((NAME,), (_LOCK,))
        ):
            yield "/".join(parts)


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
    data = signed_bytes(content)  # once: canonical JSON of a thousand clients' files takes seconds
    signatures = {name: key.sign(data).hex() for name, key in sorted(identities.items())}
    write_json(folder / NAME, content | {"signatures": signatures})
    return folder / NAME


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest.

    Raises:
        RunFolderError: It is missing, damaged or of another format.
    """
    found = read_json(folder / NAME)
    shape = (
        isinstance(found, dict)
        and isinstance(found.get("files"), dict)
        and isinstance(found.get("signatures"), dict)
    )
    if not shape or found.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder / NAME} is no manifest of format {FORMAT}; take it from the run that wrote it"
        )
    return dict(found)


def signed_bytes(content: Mapping[str, Any]) -> bytes:
    """Return what clients sign: everything but the signatures, as canonical JSON behind a domain
    tag.
    """
    return _TAG + rfc8785.dumps(
        {key: value for key, value in content.items() if key != "signatures"}
    )


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
