"""What all parties have pinned before the first message: job, roster, the server's key, the run."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from fedtree_secagg import Roster
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Terms:
    """Equal at the server and at every client; a difference is noticed before anything is computed.

    Attributes:
        job: The public configuration.
        roster: The clients' pinned Ed25519 keys.
        server_key: The server's Ed25519 key, 32 bytes; only requests signed with it are looked at.
        run: Name of this run, 1 to 64 printable characters; another run of the same job has
            another one, so that no request of one can be replayed in the other.

    Raises:
        ConfigurationError: A key or a name of another form.
    """

    job: Job
    roster: Roster
    server_key: bytes
    run: str

    def __post_init__(self) -> None:
        if not isinstance(self.server_key, bytes) or len(self.server_key) != 32:
            raise ConfigurationError("the server's key must be the 32 bytes of an Ed25519 key")
        if not (0 < len(self.run) <= 64 and self.run.isprintable()):
            raise ConfigurationError(
                f"the run's name is {self.run!r}; allowed: 1 to 64 printable characters"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All clients, sorted."""
        return tuple(sorted(self.roster.names))

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over everything; part of every masking plan and of every sketch."""
        return hashlib.sha256(
            b"fedtree-secure/terms/v1\n"
            + self.job.digest()
            + self.roster.hash
            + self.server_key
            + self.run.encode()
        ).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terms) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def quorum(self) -> int:
        """Clients that any two accepted decisions share enough of: more than (n + c) / 2.

        Two groups of this size have more than c clients in common, so one honest client at least,
        and that one speaks for one decision only (Bonawitz et al., CCS 2017, section 6).
        """
        return (len(self.roster) + self.job.masking.colluders) // 2 + 1
