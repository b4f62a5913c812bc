"""``policy.toml``: what a site takes part in. Written by its operator, read by nobody else.

A job that violates it is refused when it asks the site to join, and at every later request: the
file is read again when it changes. The operator is told which rule in words; the server is told
"policy" and nothing more. No rule has a default.
"""

from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import PrivacyBudget
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_file import build, read_toml
from fedtree_secure.roster_file import RosterFile

HINT = "docs/deploy.md shows one; every rule must be written down"
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules.

    Attributes:
        server: The only server that may ask this site for anything: its Ed25519 public key, 64
            hexadecimal digits.
        roster: Digest of the only roster that it takes part with, which the sites compare with one
            another (``keys roster`` prints it).
        models: Digests of the models that it trains on (``site check`` prints those of its own).
        largest_epsilon, largest_delta: A job may ask each client for no more.
        smallest_group: No sum over fewer clients may be opened.
        most_colluders: So many clients may work with the server at most, as this site sees it; a
            job must withstand at least as many.
        most_rounds: A job may have no more.
    """

    server: str
    roster: str
    models: tuple[str, ...]
    largest_epsilon: float
    largest_delta: float
    smallest_group: int
    most_colluders: int
    most_rounds: int

    def __post_init__(self) -> None:
        PrivacyBudget(epsilon=self.largest_epsilon, delta=self.largest_delta)
        for name, digits in (("server", self.server), ("roster", self.roster)):
            _digest(name, digits)
        for digits in self.models:
            _digest("models", digits)
        for name, least in (("smallest_group", 2), ("most_colluders", 0), ("most_rounds", 1)):
            given = getattr(self, name)
            if isinstance(given, bool) or given < least:
                raise ConfigurationError(
                    f"{name} is {given!r}; allowed: a whole number of at least {least}"
                )

    @property
    def server_key(self) -> bytes:
        """The server's key as bytes."""
        return bytes.fromhex(self.server)

    def against(self, job: Job, roster: RosterFile) -> list[str]:
        """Say in words which rules a job violates; empty if none."""
        found = []
        if job.privacy.epsilon > self.largest_epsilon:
            found.append(
                f"epsilon is {job.privacy.epsilon:g}; the policy allows at most "
                f"{self.largest_epsilon:g} (largest_epsilon)"
            )
        if job.privacy.delta > self.largest_delta:
            found.append(
                f"delta is {job.privacy.delta:g}; the policy allows at most "
                f"{self.largest_delta:g} (largest_delta)"
            )
        if job.masking.min_group < self.smallest_group:
            found.append(
                f"sums over {job.masking.min_group} clients may be opened; the policy wants at "
                f"least {self.smallest_group} in each (smallest_group)"
            )
        if job.masking.colluders < self.most_colluders:
            found.append(
                f"masking withstands {job.masking.colluders} colluding clients; the policy wants "
                f"at least {self.most_colluders} (most_colluders)"
            )
        if job.rounds > self.most_rounds:
            found.append(
                f"it has {job.rounds} rounds; the policy allows {self.most_rounds} (most_rounds)"
            )
        if roster.digest != self.roster:
            found.append(
                f"its roster is version {roster.version} with digest {roster.digest[:16]}; the "
                f"policy names {self.roster[:16]} (roster)"
            )
        keys = {roster.server, job.server.key or roster.server}
        if keys != {self.server}:
            found.append(
                f"its server's key is {min(keys - {self.server})[:16]}; the policy names "
                f"{self.server[:16]} (server)"
            )
        return found

    def against_model(self, digest: bytes) -> list[str]:
        """Say whether the policy does not name a model, by its frozen digest."""
        if digest.hex() in self.models:
            return []
        return [f"the model has the digest {digest.hex()}, which the policy does not name (models)"]


def load_policy(path: Path) -> Policy:
    """Read ``policy.toml``; `ConfigurationError` says what is wrong with it."""
    return build(Policy, read_toml(path, "policy", HINT), "policy.")


def _digest(name: str, digits: str) -> None:
    if len(digits) != 64 or not HEX.issuperset(digits):
        raise ConfigurationError(f"{name} is {digits!r}; allowed: 64 lower-case hexadecimal digits")
