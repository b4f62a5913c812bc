"""The roster as a file: who takes part, whose server it is, which version, signed by that server.

A site trusts a roster because its own ``policy.toml`` names the roster's digest, which the sites
compare with one another outside of this program. The signature says that the server published it;
the cards inside say that every key is held by whom it names. A job is bound to the roster's keys:
another version never changes a run that is under way. A run ends, and a new one begins under the
new version, once the sites' policies name it.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import rfc8785

from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed.head_groups import HeadGroup, head_groups
from fedtree_secure.agreed.noise_plan import shared_part
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.key_file import Card, verifies
from fedtree_secure.names import check_name
from fedtree_secure.storage import write_json

FORMAT = 1
_TAG = b"fedtree-secure/roster/v1\n"


@dataclass(frozen=True)
class RosterFile:
    """A version of a federation's roster.

    Attributes:
        name: Of the federation.
        version: From 1; each change makes the next.
        server: The server's Ed25519 public key, 64 hexadecimal digits.
        clients: A checked card of every site, by name.
        revoked: Public keys that no later version may name, sorted.
        previous: Digest of the version before; empty in the first.
        signature: Of the server over everything else, in hexadecimal.
    """

    name: str
    version: int
    server: str
    clients: dict[str, Card]
    revoked: tuple[str, ...] = ()
    previous: str = ""
    signature: str = ""
    format: int = FORMAT

    @cached_property
    def roster(self) -> Roster:
        """The keys alone, as the protocols use them."""
        return Roster({name: bytes.fromhex(card.key) for name, card in self.clients.items()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything but the signature: what a policy names."""
        return hashlib.sha256(self._signed()).hexdigest()

    @property
    def server_key(self) -> bytes:
        """The server's key as bytes."""
        return bytes.fromhex(self.server)

    def check(self) -> "RosterFile":
        """Return the roster; `ConfigurationError` where it contradicts itself."""
        check_name("the federation's name", self.name)
        for name, card in self.clients.items():
            if card.check().name != name:
                raise ConfigurationError(f"the roster names {name!r}, its card {card.name!r}")
            if card.key in self.revoked:
                raise ConfigurationError(f"the roster names the revoked key of {name!r}")
        if self.format != FORMAT or self.version < 1:
            raise ConfigurationError(f"a roster of format {self.format}, version {self.version}")
        if not verifies(self.server, self.signature, self._signed()):
            raise ConfigurationError(
                f"version {self.version} of the roster is not signed by the server's key that it "
                "names; take it from the server's operator again"
            )
        _ = self.roster  # two names with one key are refused here
        _ = self.head_groups(1)  # and label sets in two orders
        return self

    def head_groups(self, least: int) -> tuple[HeadGroup, ...]:
        """Say which sites declare one label set, so that they may share a head.

        Args:
            least: Members of the smallest group.
        """
        declared = {name: card.labels for name, card in self.clients.items() if card.labels}
        return head_groups(declared, least)

    def terms(self, job: Job, run: str) -> Terms:
        """Return what all parties of a run pin; each computes it from its own copies."""
        heads = self.head_groups(job.masking.min_group) if job.head == "group" else ()
        return Terms(job, self.roster, self.server_key, run, heads, shared_part(job))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        found["clients"] = {name: card.to_dict() for name, card in self.clients.items()}
        return found

    def _signed(self) -> bytes:
        content = self.to_dict()
        del content["signature"]
        return _TAG + rfc8785.dumps(content)

    def write(self, path: Path) -> None:
        """Write the roster as JSON."""
        write_json(path, self.to_dict())


def read_roster(path: Path) -> RosterFile:
    """Read and check a roster; `ConfigurationError` says what is wrong with it."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RosterFile)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(
            f"the roster {path} cannot be read ({error}); `fedtree-secure keys roster` makes one"
        ) from None
    return found.check()


def make_roster(
    name: str, server: Identity, cards: list[Card], previous: RosterFile | None = None
) -> RosterFile:
    """Return the first or the next version of a roster.

    Args:
        name: Of the federation.
        server: Its key pair.
        cards: Of sites that are new, or whose key is another now.
        previous: The version before; its other sites stay.

    Raises:
        ConfigurationError: A card is given twice, revoked, or takes a name's place without the
            signature of the key that it replaces.
    """
    clients = {} if previous is None else dict(previous.clients)
    revoked = () if previous is None else previous.revoked
    if previous is not None:
        _check_keeper(previous, name, server)
    given = [card.check().name for card in cards]
    if twice := {one for one in given if given.count(one) > 1}:
        raise ConfigurationError(f"two cards name {min(twice)!r}; give one of them")
    for card in cards:
        before = clients.get(card.name)
        if before is not None and card.key != before.key:
            if card.succeeds != before.key:
                raise ConfigurationError(
                    f"the card of {card.name!r} has another key than version "
                    f"{previous.version if previous else 0} of the roster, and that key did not "
                    "sign it; rotate the key with `keys rotate`, or revoke it first"
                )
            revoked = (*revoked, before.key)
        clients[card.name] = card
    return _signed_by(server, name, previous, clients, revoked)


def revoke(previous: RosterFile, server: Identity, client: str) -> RosterFile:
    """Return the next version, in which a site is not named and its key never may be again.

    Raises:
        ConfigurationError: No such site, or another server's roster.
    """
    _check_keeper(previous, previous.name, server)
    if client not in previous.clients:
        raise ConfigurationError(
            f"the roster names no {client!r}{suggest(client, previous.clients)}"
        )
    clients = {name: card for name, card in previous.clients.items() if name != client}
    revoked = (*previous.revoked, previous.clients[client].key)
    return _signed_by(server, previous.name, previous, clients, revoked)


def _check_keeper(previous: RosterFile, name: str, server: Identity) -> None:
    if (previous.server, previous.name) != (server.public_bytes.hex(), name):
        raise ConfigurationError(
            f"the roster before is that of {previous.name!r} with another server's key; only the "
            "same server makes its next version"
        )


def _signed_by(
    server: Identity,
    name: str,
    previous: RosterFile | None,
    clients: dict[str, Card],
    revoked: tuple[str, ...],
) -> RosterFile:
    content: dict[str, Any] = {
        "name": check_name("the federation's name", name),
        "version": 1 if previous is None else previous.version + 1,
        "server": server.public_bytes.hex(),
        "clients": dict(sorted(clients.items())),
        "revoked": tuple(sorted(set(revoked))),
        "previous": "" if previous is None else previous.digest,
    }
    unsigned = RosterFile(**content)
    signature = server.sign(unsigned._signed()).hex()
    return RosterFile(**content, signature=signature).check()
