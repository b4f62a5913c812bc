"""The server's folder of a job: what it pins, what it must not forget, and how it ended.

::

    job.toml  roster.json  model.facts  server.key     put there by the server's operator
    run.id                                             our name of the run, made once
    server/                                            state after each round
    outcome.json  report.json  events.jsonl            how the last start ended; the run; all events
    runs/<run>/                                        evidence of the run, signed, for audits

There is no ledger in it, no row and no weight of a model.
"""

import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from fedtree_secagg import Identity
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_file import load_public_job
from fedtree_secure.key_file import read_identity
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.facts_file import check_heads, read_facts
from fedtree_secure.names import check_name
from fedtree_secure.report.manifest import SERVER_PARTY
from fedtree_secure.report.party_folder import PartyRun, write_party_folder
from fedtree_secure.roster_file import RosterFile, read_roster
from fedtree_secure.storage import SecretBox, private_folder, write_atomically, write_json

FINISHED, STOPPED, REFUSED = "finished", "stopped", "refused"


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a start of the server ended.

    Attributes:
        start: Name of the start, chosen by who started it.
        state: `FINISHED`, `STOPPED` or `REFUSED`.
        reason: In words, for the operator; empty when finished.
        finished_round: Last round that is over.
    """

    start: str
    state: str
    reason: str
    finished_round: int


@dataclass(frozen=True)
class JobFolder:
    """A job as its server has it.

    Attributes:
        path: The folder.
        events_file: Where events go in place of the folder's own file.

    Raises:
        FedTreeError: Of each property: the file is missing, damaged or contradicts another.
    """

    path: Path
    events_file: Path | None = None

    @cached_property
    def job(self) -> Job:
        """The public settings."""
        return load_public_job(self.path / "job.toml")

    @cached_property
    def roster(self) -> RosterFile:
        """Who takes part."""
        return read_roster(self.path / "roster.json")

    @cached_property
    def key(self) -> Identity:
        """The server's key pair; it must be the one that roster and job name."""
        found = read_identity(self.path / "server.key", SecretBox.from_environment())
        public = found.public_bytes.hex()
        for where, named in (
            ("roster.json", self.roster.server),
            ("job.toml", self.job.server.key),
        ):
            if named not in ("", public):
                raise ConfigurationError(
                    f"{where} names the server's key {named[:16]}..., {self.path / 'server.key'} "
                    f"is {public[:16]}...; sites would answer nothing"
                )
        return found

    @cached_property
    def facts(self) -> ModelFacts:
        """Public facts of the model."""
        return read_facts(self.path / "model.facts")

    @cached_property
    def run(self) -> str:
        """Our name of the run, made at the first start and kept for all others."""
        place = self.path / "run.id"
        if not place.exists():
            name = secrets.token_hex(8)
            write_atomically(place, lambda target: target.write_text(name + "\n", "ascii"))
        return check_name("the run's name in run.id", place.read_text("ascii").strip())

    @property
    def terms(self) -> Terms:
        """What all parties pinned."""
        return self.roster.terms(self.job, self.run)

    @property
    def state(self) -> Path:
        """Folder of the server's state; whoever holds its lock serves."""
        return self.path / "server"

    @property
    def events(self) -> Path:
        """File of events, unless told otherwise."""
        return self.events_file or self.path / "events.jsonl"

    def check(self) -> None:
        """Look at everything that a start needs; raises what is wrong with it."""
        _ = self.job, self.roster, self.key
        check_heads(self.facts, self.terms.outputs_of_heads, self.path / "model.facts")

    def outcome(self) -> Outcome | None:
        """How the last start ended; None if none did."""
        try:
            return msgspec.json.decode((self.path / "outcome.json").read_bytes(), type=Outcome)
        except (OSError, msgspec.DecodeError):
            return None

    def end(self, outcome: Outcome) -> None:
        """Write down how a start ended."""
        write_json(self.path / "outcome.json", msgspec.to_builtins(outcome))

    def report(self, found: dict[str, Any]) -> None:
        """Write the server's report of a run, and evidence of it: the same, the opened sums, and
        the events up to now, signed.
        """
        write_json(self.path / "report.json", found)
        place = private_folder(self.path / "runs" / self.run)
        kept = [self.events, self.path / "model.facts", *sorted(self.state.glob("sums-*"))]
        for path in filter(Path.is_file, kept):
            shutil.copyfile(path, place / path.name)
        given = PartyRun(SERVER_PARTY, self.run, self.job, self.roster, self.key)
        write_party_folder(place, given, found)
