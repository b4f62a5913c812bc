"""A run folder: whose it is, its keys, and the job that it holds."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtree_secagg import Identity, Roster
from fedtree_secure.client.data import Client
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, RunFolderError
from fedtree_secure.report.comparison import differing
from fedtree_secure.storage import (
    PRIVATE_FILE,
    SecretBox,
    private_folder,
    read_json,
    write_atomically,
    write_json,
)

FORMAT = 2


def open_folder(
    folder: Path,
    job: Job,
    clients: Sequence[Client],
    *,
    resume: bool,
    kind: Mapping[str, Any],
) -> str:
    """Create the run folder, or check that it is this job's; return the run's name.

    Args:
        kind: What else must be the same when a run is resumed (simulation, audits).

    Raises:
        RunFolderError: It holds something else, another job, or a run that is not to be resumed.
    """
    path = folder / "job.json"
    described = {
        "job": job.to_dict(),
        **kind,
        "clients": {
            c.id: {"dataset": c.dataset or c.id, "records": c.records}
            for c in sorted(clients, key=lambda c: c.id)
        },
    }
    if not path.exists():
        strangers = sorted(p.name for p in folder.iterdir() if p.name != ".lock")
        if strangers:
            raise RunFolderError(
                f"{folder} is not empty (it holds {', '.join(strangers[:5])}) and holds no run; "
                "choose another folder"
            )
        run = secrets.token_hex(8)
        write_json(path, {"format": FORMAT, "run": run, **described})
        return run
    stored = read_json(path)
    if stored.get("format") != FORMAT:
        raise RunFolderError(f"{folder} was written by another version; choose another folder")
    held = {key: stored.get(key) for key in described}
    if held != described:
        names = list(differing([held, described]))
        raise RunFolderError(
            f"{folder} holds another job: its job.json differs in {', '.join(names[:5])}; "
            "continue with the settings of before, or choose another folder"
        )
    if not resume:
        state = "a finished run" if (folder / "summary.json").exists() else "an unfinished run"
        raise RunFolderError(
            f"{folder} holds {state} of this job; continue with resume=True (--resume) or choose "
            "another folder"
        )
    return str(stored["run"])


def empty(folder: Path) -> None:
    """Remove all that a run put into its folder; the folder itself and its lock stay."""
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def key_of(folder: Path, box: SecretBox) -> Identity:
    """Return the signing key that is kept in a folder, made when missing.

    Args:
        folder: A client's, or the server's; narrowed to its owner.
        box: Encrypts the key at rest.
    """
    path = private_folder(folder) / "identity.key"
    if not path.exists():
        secret = Identity.generate(os.urandom(32)).to_private_bytes()
        sealed = box.seal(secret)
        write_atomically(path, lambda target: target.write_bytes(sealed), PRIVATE_FILE)
    return Identity(box.open(path.read_bytes()))


def server_key(folder: Path, job: Job, box: SecretBox) -> Identity:
    """Return the server's key of an embedded run.

    Raises:
        ConfigurationError: The job pins another server's key, which this process does not hold.
    """
    key = key_of(folder / "server", box)
    if job.server.key not in ("", key.public_bytes.hex()):
        raise ConfigurationError(
            f"server.key is {job.server.key[:16]}...: the key of a server elsewhere. An embedded "
            "run makes its own; leave server.key out"
        )
    return key


def record_roster(folder: Path, roster: Roster, server: bytes) -> None:
    """Write down the pinned keys, or compare them.

    Raises:
        RunFolderError: Others were pinned.
    """
    path = folder / "roster.json"
    keys = {
        "clients": {name: key.hex() for name, key in roster.keys.items()},
        "server": server.hex(),
    }
    if path.exists() and read_json(path) != keys:
        raise RunFolderError(
            f"{path} names other keys than the clients hold; the folder was changed by somebody"
        )
    write_json(path, keys)
