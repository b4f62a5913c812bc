"""``policy.toml``: what a site takes part in. Written by its operator, read by nobody else.

A job that violates it is refused when it asks the site to join, and at every later request: the
file is read again when it changes. The operator is told which rule in words; the server is told
"policy" and nothing more. No rule has a default.
"""

import typing
from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import PrivacyBudget
from fedtree_dp.account.unit import name_of
from fedtree_secure.config import Job, Noise
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
        largest_epsilon, largest_delta: A job may ask this site for no more; what it asks of others
            is theirs to judge.
        unit: What a job must protect: "record", or the unit's name in the job, such as
            "patient_id".
        noise: How a job may protect it: "own", "shared", or both; see `Job.noise`.
        largest_own_epsilon: With shared noise, what this site's own noise must keep at least,
            whatever all others do; given if, and only if, `noise` allows "shared".
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
    unit: str
    noise: tuple[str, ...]
    largest_own_epsilon: float | None = None

    def __post_init__(self) -> None:
        self._check_noise()
        PrivacyBudget(
            epsilon=self.largest_epsilon,
            delta=self.largest_delta,
            own_epsilon=self.largest_own_epsilon,
        )
        if not self.unit:
            raise ConfigurationError(
                'unit is empty; allowed: "record", or the name of a unit such as "patient_id"'
            )
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

    def _check_noise(self) -> None:
        if not self.noise or not set(self.noise) <= set(typing.get_args(Noise)):
            raise ConfigurationError(
                f'noise is {list(self.noise)}; allowed: ["own"], ["shared"] or ["own", "shared"]'
            )
        if ("shared" in self.noise) != (self.largest_own_epsilon is not None):
            raise ConfigurationError(
                f"largest_own_epsilon is {self.largest_own_epsilon}, noise is {list(self.noise)}; "
                "give it where shared noise is allowed, and only there"
            )

    @property
    def server_key(self) -> bytes:
        """The server's key as bytes."""
        return bytes.fromhex(self.server)

    def against(self, site: str, job: Job, roster: RosterFile) -> list[str]:
        """Say in words which rules a job violates, of what it asks of this site; empty if none."""
        found, asked = [], job.budget_of(site)
        if asked.epsilon > self.largest_epsilon:
            found.append(
                f"epsilon is {asked.epsilon:g}; the policy allows at most "
                f"{self.largest_epsilon:g} (largest_epsilon)"
            )
        if asked.delta > self.largest_delta:
            found.append(
                f"delta is {asked.delta:g}; the policy allows at most "
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
        found += self._against_protection(site, job)
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

    def _against_protection(self, site: str, job: Job) -> list[str]:
        """What is protected, and by whose noise."""
        found, unit, own = [], name_of(job.privacy_unit), job.budget_of(site).own_epsilon
        if unit != self.unit:
            found.append(f"it protects each {unit}; the policy demands each {self.unit} (unit)")
        if job.noise not in self.noise:
            found.append(
                f"its noise is {job.noise}; the policy allows {', '.join(self.noise)} (noise)"
            )
        most = self.largest_own_epsilon
        if job.noise == "shared" and own is not None and most is not None and own > most:
            found.append(
                f"own_epsilon is {own:g}; the policy allows at most {most:g} (largest_own_epsilon)"
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
