"""What one party of a deployment keeps as evidence of a run: the form of a run folder, with what
this party knows in it and nothing else. `fedtree-secure audit --site | --server` and `verify` read
it.

::

    job.json         settings, the run's name, whose folder it is, its own data set
    roster.json      the keys whose signatures count here: the party's own
    federation.json  the signed roster of all
    summary.json     what the party knows of the run
    manifest.json    every file with its SHA-256, signed by the party
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_secagg import Identity
from fedtree_secure.config import Job
from fedtree_secure.report.manifest import SERVER_PARTY, write_manifest
from fedtree_secure.roster_file import RosterFile
from fedtree_secure.storage import write_json

FORMAT = 2  # that of an embedded run, whose form this is


@dataclass(frozen=True)
class PartyRun:
    """A run as one party pinned it.

    Attributes:
        party: Name of the site, or `SERVER_PARTY`.
        run: Name of the run.
        job, roster: What was pinned.
        key: The party's key pair.
        client: Data set and declared records of a site; None for the server.
    """

    party: str
    run: str
    job: Job
    roster: RosterFile
    key: Identity
    client: Mapping[str, Any] | None = None


def write_party_folder(place: Path, given: PartyRun, summary: Mapping[str, Any]) -> None:
    """Write the files that are alike at all parties; what else is evidence lies there already.

    Args:
        place: The folder, private to the party.
        given: Whose run it is.
        summary: What the party knows.
    """
    key, own = given.key.public_bytes.hex(), given.client is not None
    described = {
        "format": FORMAT,
        "run": given.run,
        "party": given.party,
        "job": given.job.to_dict(),
        "clients": {given.party: dict(given.client)} if given.client is not None else {},
    }
    write_json(place / "job.json", described)
    keys = {given.party: key} if own else {}
    write_json(place / "roster.json", {"clients": keys, "server": given.roster.server})
    given.roster.write(place / "federation.json")
    write_json(place / "summary.json", {"format": 1, **summary})
    write_manifest(place, given.run, {given.party if own else SERVER_PARTY: given.key})
