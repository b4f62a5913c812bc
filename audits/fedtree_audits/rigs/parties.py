"""Real participants and their server on a small model, with stores of their own, for audits to talk
to.

Everything is the product's: terms, signed requests, stores, engine, masking. What an audit replaces
it replaces in `Workings`, in the class of the participants, or in the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from fedtree_dp import Event, Ledger, NoiseSource, PrivacyBudget
from fedtree_secagg import Identity, Roster
from fedtree_secure.testing import (
    Backbone,
    Client,
    ClientState,
    Job,
    Member,
    NoisePlan,
    Participant,
    SecretBox,
    Store,
    Terms,
    Tree,
    Workings,
    Writing,
    initial_state,
    part_of,
    prepare,
)

RUN = "audit"
ROOM = 2**28  # bytes


class SeededWriting(Writing):
    """A transaction whose charges have the seeds that follow from the store's key."""

    key: bytes

    def charge(self, purpose: str, event: Event, *, repeatable: bool) -> bytes:
        """Charge as the product does; return another seed for each release of a purpose."""
        super().charge(purpose, event, repeatable=repeatable)
        release = f"{purpose}/{self.record.releases[purpose]}"
        return hashlib.sha256(self.key + release.encode()).digest()


class SeededStore(Store):
    """The product's store, with seeds from a key in place of the system's randomness."""

    writes: type[SeededWriting] = SeededWriting

    def __init__(
        self, ledger: Ledger, run: str, secrets: SecretBox, initial: ClientState, key: bytes
    ) -> None:
        super().__init__(ledger, run, secrets, initial)
        self._key = key

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """See `Store.writing`."""
        with super().writing() as noted:
            noted.__class__ = self.writes
            noted.key = self._key  # type: ignore[attr-defined]
            yield noted


@dataclass(frozen=True)
class Parties:
    """The sides of one run, all in this process.

    Attributes:
        terms: What all of them pinned.
        server: The server's key pair: whoever has it can ask for anything.
        participants: By client id.
        backbone: The model that all of them hold.
    """

    terms: Terms
    server: Identity
    participants: Mapping[str, Participant]
    backbone: Backbone

    def give_tree(self, tree: Tree, only: str | None = None) -> None:
        """Write a tree into the clients' records, as if they had adopted it.

        Args:
            tree: Its members are the clients.
            only: The one client that adopts it; all of them if None.
        """
        for name, participant in self.participants.items():
            if only in (None, name):
                with participant.party.store.writing() as noted:
                    noted.record.tree = tree.labels


@dataclass(frozen=True, kw_only=True)
class Casting:
    """How the participants of a run are made.

    Attributes:
        rows: Of each client, by id.
        noise: Of each client's stages.
        key: 32 bytes that keys and the randomness of masking come from.
        workings: Makes engine and randomness of a client from its id and its randomness.
        participant: Class of the participants; a broken one in a self-test.
        store: Class of their stores, which keep what the product keeps but take the seeds of
            charges from the key, so that an audit can be repeated.
    """

    rows: Mapping[str, Dataset]
    noise: NoisePlan
    key: bytes
    workings: Callable[[str, Callable[[int], bytes]], Workings] = lambda _, randomness: Workings(
        randomness=randomness
    )
    participant: type[Participant] = Participant
    store: type[SeededStore] = SeededStore


def open_parties(
    stack: contextlib.ExitStack, job: Job, backbone: Backbone, folder: Path, casting: Casting
) -> Parties:
    """Make server and participants, each with an empty store of its own.

    Args:
        stack: Closes the stores.
        job, backbone: Settings and model, which must fit each other.
        folder: Where the stores are kept; made if it is not there.
        casting: See `Casting`.
    """
    fresh = _keys(casting.key)
    folder.mkdir(parents=True, exist_ok=True)
    server = Identity.generate(next(fresh))
    identities = {name: Identity.generate(next(fresh)) for name in casting.rows}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    part = part_of(job, casting.noise.rounds) if job.noise == "shared" else None
    terms = Terms(job, roster, server.public_bytes, RUN, shared_noise=part)
    participants = {}
    for name, rows in casting.rows.items():
        client = Client(name, train=rows)
        data = prepare(client, job, backbone.tokenizer)
        ledger = stack.enter_context(
            Ledger.open(folder / f"{name}.sqlite", dataset=name, budget=job.privacy)
        )
        initial = initial_state(backbone, len(data.label_set))
        participants[name] = casting.participant(
            terms,
            Member(client, data, identities[name], casting.noise),
            backbone,
            casting.store(ledger, RUN, SecretBox(None), initial, next(fresh)),
            workings=casting.workings(name, NoiseSource(next(fresh)).bytes),
        )
    return Parties(terms, server, participants, backbone)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder for stores that nobody needs later; in memory where there is room, since
    every message waits for the disk.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a folder of random name is made in it
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as place:
        yield Path(place)


def ample(delta: float, *, shared: bool = False) -> PrivacyBudget:
    """Return a budget that no audit of no texts exhausts; the claim is computed from what is
    charged. With ``shared``, one for noise that is shared.
    """
    return PrivacyBudget(epsilon=1e4, delta=delta, own_epsilon=1e5 if shared else None)


def _keys(key: bytes) -> Iterator[bytes]:
    return (
        hashlib.sha256(b"federated" + key + number.to_bytes(8, "big")).digest()
        for number in itertools.count()
    )
