"""A small federation run as it ships, with canaries planted in clients' training and one
participant looking on.

Coordinator, participants, engine, ledger, masking and messages are the product's own; bytes go
through its transport. Three things are the auditor's: canaries (gradients that join a client's
batch before clipping, each in random batches), keys that can be repeated, and a given tree, so that
a trunk and two clusters exist whatever the texts are.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.tiny import text_rows
from fedtree_audits.statistics.scores import Bools, Floats
from fedtree_dp import DPSGD, Ledger, NoiseSource, PoissonSampler, PrivacyBudget
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.agreed.transport import InProcess, Transcript
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.data import Client, prepare
from fedtree_secure.client.participant import Participant
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.server.coordinator import Coordinator

SIZE = 3.0  # norm of a canary's gradient, in clipping norms
ROWS = 6  # texts of a client beside its canaries


@dataclass
class Planted:
    """Canaries of one client.

    Attributes: directions: shape (canaries, values of an update), each of norm 1. included: the
        coins, shape (canaries,). sampler: draws from the included ones. drawn: whether a step's
        batch held the canary; one row of shape (canaries,) for each step so far.
    """

    directions: npt.NDArray[np.float32]
    included: Bools
    sampler: PoissonSampler
    drawn: list[Bools] = field(default_factory=list)

    def draw(self) -> npt.NDArray[np.float32]:
        """Return the directions of the next batch, shape (drawn, values)."""
        chosen = np.flatnonzero(self.included)[self.sampler.draw()]
        row = np.zeros(len(self.included), dtype=np.bool_)
        row[chosen] = True
        self.drawn.append(row)
        return self.directions[chosen]


class PlantedEngine(DPSGD):
    """The shipped engine whose batches hold canaries: they are clipped, summed and noised like any
    record.
    """

    def __init__(self, *given: Any, build: Build, planted: Planted | None, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.optimizer.__class__ = build.optimizer
        self._planted = planted

    def step(self, batch: Batch | Iterable[Batch] | None) -> StepReport:
        """Add the drawn canaries to the step's sum, then take the step."""
        if self._planted is not None:
            rows = torch.from_numpy(self._planted.draw() * SIZE * self.optimizer.max_grad_norm)
            self.optimizer.accumulate(self._by_parameter(rows))
        return super().step(batch)

    def _by_parameter(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Cut (canaries, values) by parameter: what is uploaded comes first, what stays at home
        gets zeros.
        """
        cut, at = [], 0
        for p in self.optimizer.params:
            part = (
                rows[:, at : at + p.numel()]
                if at < rows.shape[1]
                else rows.new_zeros(len(rows), p.numel())
            )
            cut.append(part.reshape(len(rows), *p.shape).to(p.device))
            at += p.numel()
        return cut


@dataclass(frozen=True)
class Sent:
    """What the onlooker was sent.

    Attributes: cluster, external: its experts at the start of every round and at the end, shape
        (rounds + 1, values).
    """

    cluster: Floats
    external: Floats


class _Onlooker:
    """Carries messages and keeps the experts in those for one client."""

    def __init__(self, inner: InProcess, name: str) -> None:
        self._inner, self._name = inner, name
        self.seen: list[tuple[bytes, bytes]] = []

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        if self._name in requests:
            message = wire.decode_request(requests[self._name])
            if isinstance(message, wire.Begin | wire.Finish):
                self.seen.append((message.cluster, message.external))
        return self._inner.exchange(stage, requests)


def run_federation(
    job: Job,
    backbone: Backbone,
    tree: Tree,
    folder: Path,
    key: bytes,
    *,
    noise_multiplier: float,
    planted: Mapping[str, Planted],
    build: Build,
    onlooker: str,
) -> Sent:
    """Run every round of the job and return what one client was sent.

    Args:
        job, backbone: settings (one local step a round) and the model; they must fit each other.
        tree: who shares which layer; its members are the clients.
        folder: empty; states and ledgers are written there.
        key: 32 bytes that all randomness comes from.
        noise_multiplier: of every client's steps.
        planted: canaries by client.
        build: what the engine and its randomness are put together from.
        onlooker: whose messages are kept.

    Raises:
        RuntimeError: a client failed, or a round opened nothing: then nothing was measured.
    """
    fresh = _keys(key)
    folder.mkdir(parents=True, exist_ok=True)
    identities = {name: Identity.generate(next(fresh)) for name in tree.members}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    with contextlib.ExitStack() as stack:
        participants = {}
        for number, name in enumerate(tree.members):
            client = Client(name, train=text_rows(ROWS, number))
            ledger = Ledger.open(folder / f"{name}.sqlite", dataset=name, budget=job.privacy)
            participants[name] = Participant(
                client,
                prepare(client, job, backbone.tokenizer),
                job,
                roster,
                identities[name],
                backbone,
                stack.enter_context(ledger),
                NoisePlan(rounds=noise_multiplier),
                folder / name,
                job_id="audit",
                randomness=_randomness(next(fresh)),
                engine=_engine(build, planted.get(name)),
            )
            participants[name]._journal.tree = [list(row) for row in tree.labels]
        transcript = Transcript(folder / "transcript.txt")
        stack.callback(transcript.close)
        embedded = InProcess({name: p.handle for name, p in participants.items()}, transcript)
        carrier = _Onlooker(embedded, onlooker)
        coordinator = Coordinator(job, roster, backbone, carrier, folder / "server")
        coordinator._adopt(tree)
        coordinator.run()
    closed = [record for record in coordinator.records if record.error or record.closed]
    if embedded.failures or closed:
        raise RuntimeError(f"the audited federation failed: {embedded.failures[:1] or closed[:1]}")
    width = backbone.layout().length
    unpacked = [
        [wire.unpack(part, width).astype(np.float64) for part in pair] for pair in carrier.seen
    ]
    return Sent(np.stack([pair[0] for pair in unpacked]), np.stack([pair[1] for pair in unpacked]))


def two_clusters(
    members: Sequence[str], trunk: int, depth: int, first: int, min_group: int
) -> Tree:
    """Return a tree whose first layers are shared by all, the others by the first ``first`` members
    and by the rest.
    """
    split = tuple(int(i >= first) for i in range(len(members)))
    labels = ((0,) * len(members),) * trunk + (split,) * (depth - trunk)
    return Tree(tuple(members), labels, min_group)


def ample(delta: float) -> PrivacyBudget:
    """Return a budget that no audit of no texts exhausts; the claim is computed from what is
    charged.
    """
    return PrivacyBudget(epsilon=1e4, delta=delta)


def _engine(build: Build, planted: Planted | None) -> Callable[..., DPSGD]:
    def make(*given: Any, **settings: Any) -> DPSGD:
        return PlantedEngine(*given, build=build, planted=planted, **settings)

    return make


def _randomness(key: bytes) -> Callable[[int], bytes]:
    return NoiseSource(key).bytes


def _keys(key: bytes) -> Iterator[bytes]:
    return (
        hashlib.sha256(b"federated" + key + number.to_bytes(8, "big")).digest()
        for number in itertools.count()
    )
