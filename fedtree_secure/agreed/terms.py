"""What all parties have pinned before the first message: job, roster, the server's key, the run,
and who shares a head.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import rfc8785

from fedtree_secagg import Roster
from fedtree_secure.agreed.graph import check_graph, graph_bytes
from fedtree_secure.agreed.head_groups import HeadGroup
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.agreed.noise_plan import sums_noise
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_budgets import check_known


@dataclass(frozen=True, eq=False)
class Terms:
    """Equal at the server and at every client; a difference is noticed before anything is computed.

    Attributes:
        job: The public configuration.
        roster: The clients' pinned Ed25519 keys.
        server_key: The server's Ed25519 key, 32 bytes; only requests signed with it are looked at.
        run: Name of this run, 1 to 64 printable characters; another run of the same job has
            another one, so that no request of one can be replayed in the other.
        heads: Groups of clients that share a head, see `head_groups`; disjoint.
        shared_noise: Where the job shares noise, what each member of a sum adds in a round: its
            standard deviation over the clipping norm. Everybody must add the same, so it is agreed
            and not computed by each; every client charges exactly this, and refuses rounds that its
            ledger does not afford.

    Raises:
        ConfigurationError: A key, a name or a group of another form.
    """

    job: Job
    roster: Roster
    server_key: bytes
    run: str
    heads: tuple[HeadGroup, ...] = ()
    shared_noise: float | None = None

    def __post_init__(self) -> None:
        if (self.job.noise == "shared") != (self.shared_noise is not None):
            raise ConfigurationError(
                f"the job's noise is {self.job.noise}, and the terms say {self.shared_noise!r} of "
                "what each member adds; both or neither must speak of shared noise"
            )
        if self.shared_noise is not None and not 0 < self.shared_noise < math.inf:
            raise ConfigurationError(
                f"the noise of each member is {self.shared_noise!r}; allowed: a finite number "
                "above 0"
            )
        if not isinstance(self.server_key, bytes) or len(self.server_key) != 32:
            raise ConfigurationError("the server's key must be the 32 bytes of an Ed25519 key")
        if not (0 < len(self.run) <= 64 and self.run.isprintable()):
            raise ConfigurationError(
                f"the run's name is {self.run!r}; allowed: 1 to 64 printable characters"
            )
        self._check_share()
        check_known(self.job, self.names)
        check_graph(self.job.masking, len(self.roster))
        if self.heads:
            self._check_heads()

    def _check_share(self) -> None:
        share, count = self.job.cohort.share, len(self.roster)
        asked = math.ceil(share * count)
        if asked < self.quorum:
            raise ConfigurationError(
                f"cohort.share is {share:g}, which asks {asked} of {count} clients in a round; "
                f"{self.quorum} must answer for anything to open: ask a larger share"
            )

    def _check_heads(self) -> None:
        if self.job.head != "group":
            raise ConfigurationError(
                f"there are groups of heads, and the job's are {self.job.head}"
            )
        members = [name for group in self.heads for name in group.members]
        if len(set(members)) != len(members) or not set(members) <= set(self.roster.names):
            raise ConfigurationError(
                "groups of heads must be disjoint, and of the roster's clients"
            )
        least = self.job.masking.min_group
        if min(len(group.members) for group in self.heads) < least:
            raise ConfigurationError(f"a group of heads has at least min_group = {least} members")

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
            + self._heads_bytes()
            + self._noise_bytes()
            + self._release_bytes()
            + graph_bytes(self.job.masking, len(self.roster))
        ).digest()

    def _noise_bytes(self) -> bytes:
        return b"" if self.shared_noise is None else b"\0noise\n" + self.shared_noise.hex().encode()

    def _release_bytes(self) -> bytes:
        """How heads are made, where not as ever: who chose otherwise computes nothing with us."""
        if not sums_classes(self.job):
            return b""
        return b"\0head-release\nclass_sums\n" + sums_noise(self.job).hex().encode()

    def _heads_bytes(self) -> bytes:
        if not self.heads:
            return b""
        shown: Any = [
            {"members": list(g.members), "outputs": g.outputs, "labels": g.labels.hex()}
            for g in self.heads
        ]
        return b"\0heads\n" + rfc8785.dumps(shown)

    @property
    def outputs_of_heads(self) -> tuple[int, ...]:
        """Labels of each group that shares a head, in the layout's order."""
        return tuple(group.outputs for group in self.heads)

    @property
    def merges(self) -> bool:
        """Whether a round before the first averages what clients trained alone, once."""
        warmed_up = self.job.topology.source == "lora_b" and self.job.rounds > 0
        return warmed_up or self.merges_heads

    @property
    def merges_heads(self) -> bool:
        """Whether heads that were trained at home are averaged in their groups."""
        return bool(self.heads) and self.job.head_steps > 0

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
