"""A run folder as an auditor reads it: files, their hashes, and what is missing by name. Nothing is
written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedtree_audits.errors import MissingEvidence
from fedtree_secure.testing import SERVER_PARTY, FedTreeError, Job, NoisePlan, build


@dataclass(frozen=True)
class RunFolder:
    """One finished or stopped run."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return self.read("summary.json")

    @cached_property
    def described(self) -> dict[str, Any]:
        """Content of ``job.json``: settings, run id, clients."""
        return self.read("job.json")

    @cached_property
    def job(self) -> Job:
        """The job's settings, checked.

        Raises:
            MissingEvidence: no job file, or one that describes no job.
        """
        try:
            return build(Job, self.described["job"], "")
        except (KeyError, FedTreeError, ValueError) as error:
            raise MissingEvidence(f"{self.path / 'job.json'} describes no job: {error}") from None

    @property
    def signers(self) -> dict[str, str]:
        """Who signs the manifest, with public keys: all clients of a run; of one party's folder
        that party alone.
        """
        if self.described.get("party") == SERVER_PARTY and not self.clients:
            return {SERVER_PARTY: str(self.read("roster.json").get("server"))}
        return self.roster

    @property
    def clients(self) -> dict[str, dict[str, Any]]:
        """Client id to its data set and declared size."""
        return dict(self.described.get("clients", {}))

    @property
    def roster(self) -> dict[str, str]:
        """Client id to its pinned public key, hexadecimal."""
        try:
            return {name: str(key) for name, key in self.read("roster.json")["clients"].items()}
        except (KeyError, AttributeError):
            raise MissingEvidence(f"{self.path / 'roster.json'} names no clients' keys") from None

    def noise_plan(self, client: str) -> NoisePlan:
        """The plan that the client wrote before it computed anything, of its own noise.

        Raises:
            MissingEvidence: it is missing or damaged; or noise is shared, and no client's rounds
                have the whole of it.
        """
        self.require_own_noise()
        return self.noise_written(client)

    def require_own_noise(self) -> None:
        """Refuse a run with shared noise, for audits that measure a client's own.

        Raises:
            MissingEvidence: noise is shared.
        """
        if self.job.noise == "shared":
            raise MissingEvidence(
                f"the run in {self.path} shares its noise, and this audit measures a client's own; "
                "components, canary_client and ledger measure shared noise"
            )

    def noise_written(self, client: str) -> NoisePlan:
        """The same of any job; where noise is shared its rounds are those of the honest members
        together.
        """
        return NoisePlan(**self.read(f"clients/{client}/noise.json"))

    def journal(self, client: str) -> dict[str, Any] | None:
        """The client's journal, None where this folder is not the client's."""
        path = f"clients/{client}/journal.json"
        return self.read(path) if (self.path / path).exists() else None

    def ledger(self, client: str) -> Path:
        """Path of the ledger (or its snapshot) of the client's data set."""
        return self.path / "ledgers" / f"{self.clients[client]['dataset']}.sqlite"

    def hashes(self, *names: str) -> dict[str, str]:
        """SHA-256 of those of the named files that exist."""
        found = {name: self.path / name for name in names if (self.path / name).is_file()}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}

    def read(self, name: str) -> dict[str, Any]:
        """Content of a JSON file of the run.

        Raises:
            MissingEvidence: it is missing or damaged.
        """
        path = self.path / name
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MissingEvidence(f"{path} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise MissingEvidence(f"{path} holds no table")
        return found


def open_run(path: Path) -> RunFolder:
    """Return the run in this folder.

    Raises:
        MissingEvidence: there is no run here.
    """
    if not (path / "job.json").is_file():
        raise MissingEvidence(f"{path} holds no run: there is no job.json")
    return RunFolder(path)
