"""A small federation run as it ships, with canaries planted in clients' training and one
participant looking on.

Coordinator, participants, engine, ledger, masking and messages are the product's own; bytes go
through its transport. Three things are the auditor's: canaries (gradients that join a client's
batch before clipping, each in random batches), keys that can be repeated, and a given tree, so that
a trunk and two clusters exist whatever the texts are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.parties import Casting, Parties, open_parties
from fedtree_audits.rigs.tiny import text_rows
from fedtree_audits.statistics.scores import Bools, Floats
from fedtree_dp import DPSGD, PoissonSampler
from fedtree_dp.sgd.engine import StepReport
from fedtree_dp.sgd.guards import Batch
from fedtree_secure.testing import (
    Backbone,
    ClientState,
    Coordinator,
    InProcess,
    Job,
    NoisePlan,
    Participant,
    Transcript,
    Tree,
    Workings,
    inside,
    messages,
    nodes_of,
    open_request,
    take_over,
)

SIZE = 3.0  # norm of a canary's gradient, in clipping norms
ROWS = 6  # texts of a client beside its canaries


@dataclass
class Planted:
    """Canaries of one client.

    Attributes:
        directions: shape (canaries, values of an update), each of norm 1.
        included: the coins, shape (canaries,).
        sampler: draws from the included ones.
        drawn: whether a step's batch held the canary; one row of shape (canaries,) for each step so
            far.
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
class Held:
    """What the onlooker holds in the end: what it was sent, and what it computed from that.

    Attributes:
        own, external: its experts at the start of every round and at the end, shape
            (rounds + 1, values).
        sums: the opened sums of its nodes at their places, in the units of an upload, shape
            (rounds, values); nan where it was told none.
    """

    own: Floats
    external: Floats
    sums: Floats


class _Onlooker:
    """Carries messages, and keeps what one client holds after each that brings experts."""

    def __init__(self, inner: InProcess, parties: Parties, name: str) -> None:
        self._inner, self._parties, self._name = inner, parties, name
        self.states: list[tuple[Floats, Floats]] = []
        self.opened: dict[tuple[int, str], messages.OpenedSum] = {}

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        message = self._read(requests[self._name]) if self._name in requests else None
        if isinstance(message, messages.Mask) and message.experts is not None:
            number = int(stage.partition("/")[0].removeprefix("round-"))
            self._before(message.experts, number)
        replies = self._inner.exchange(stage, requests)
        if isinstance(message, messages.Begin | messages.Deliver):
            self._keep(self._parties.participants[self._name].party.store.state)
        experts = getattr(message, "experts", None)
        if experts is not None:
            self.opened |= {(entry.round, entry.node): entry for entry in experts.opened}
        return replies

    def _read(self, request: bytes) -> Any:
        terms = self._parties.terms
        return open_request(request, terms.server_key, terms.run, self._name).message

    def _before(self, experts: messages.Experts, number: int) -> None:
        """Keep what the client is about to train on, where it hears of it with its inbox."""
        party = self._parties.participants[self._name].party
        state = ClientState.from_bytes(party.store.state.to_bytes())
        take_over(party, state, inside.received.receive(party, experts, number))
        self._keep(state)

    def _keep(self, state: ClientState) -> None:
        self.states.append((state.own.astype(np.float64), state.external.astype(np.float64)))


@dataclass(frozen=True)
class Attack:
    """What is measured in a federation.

    Attributes:
        noise_multiplier: of every client's steps.
        planted: canaries by client.
        build: what the engine and its randomness are put together from.
        onlooker: who looks on.
    """

    noise_multiplier: float
    planted: Mapping[str, Planted]
    build: Build
    onlooker: str


def run_federation(
    job: Job,
    backbone: Backbone,
    tree: Tree,
    folder: Path,
    key: bytes,
    attack: Attack,
) -> Held:
    """Run every round of the job and return what one client holds.

    Args:
        job, backbone: settings (one local step a round) and the model; they must fit each other.
        tree: who shares which layer; its members are the clients.
        folder: empty; states and ledgers are written there.
        key: 32 bytes that all randomness comes from.
        attack: what is planted, and who looks on.

    Raises:
        RuntimeError: a client failed, or a round opened nothing: then nothing was measured.
    """
    casting = Casting(
        rows={name: text_rows(ROWS, number) for number, name in enumerate(tree.members)},
        noise=NoisePlan(rounds=attack.noise_multiplier),
        key=key,
        workings=lambda name, randomness: Workings(
            randomness=randomness, engine=planting(attack.build, attack.planted.get(name))
        ),
    )
    with contextlib.ExitStack() as stack:
        parties = open_parties(stack, job, backbone, folder, casting)
        parties.give_tree(tree)
        transcript = Transcript(folder / "transcript.txt")
        stack.callback(transcript.close)
        handlers = {name: p.handle for name, p in parties.participants.items()}
        embedded = InProcess(handlers, transcript)
        carrier = _Onlooker(embedded, parties, attack.onlooker)
        coordinator = Coordinator(
            parties.terms, parties.server, backbone.facts(), carrier, folder / "server"
        )
        coordinator.adopt(tree)
        coordinator.run()
        closed = [record for record in coordinator.records if record.error or record.closed]
        if embedded.failures or closed:
            failed = embedded.failures[:1] or closed[:1]
            raise RuntimeError(f"the audited federation failed: {failed}")
        own, external = (np.stack(column) for column in zip(*carrier.states, strict=True))
        return Held(
            own, external, _sums(parties.participants[attack.onlooker], carrier.opened, job)
        )


def _sums(
    participant: Participant, opened: Mapping[tuple[int, str], messages.OpenedSum], job: Job
) -> Floats:
    """Decode opened sums as the client does, each at its place in an update."""
    party = participant.party
    by_name = {node.name: node for node in nodes_of(party.tree(), party.facts.layout)}
    found = np.full((job.rounds, party.facts.layout.length), np.nan)
    for (number, name), entry in opened.items():
        total = np.frombuffer(entry.total, dtype="<i4").astype(np.int64)
        decoded = party.quantiser(entry.clip, merge=False).decode(total)
        by_name[name].scatter(decoded, found[number - 1])
    return found


def two_clusters(
    members: Sequence[str], trunk: int, depth: int, first: int, min_group: int
) -> Tree:
    """Return a tree whose first layers are shared by all, the others by the first ``first`` members
    and by the rest.
    """
    split = tuple(int(i >= first) for i in range(len(members)))
    labels = ((0,) * len(members),) * trunk + (split,) * (depth - trunk)
    return Tree(tuple(members), labels, min_group)


def planting(build: Build, planted: Planted | None) -> Callable[..., DPSGD]:
    """Return what makes a client's engine: the shipped one, put together from a build's pieces."""

    def make(*given: Any, **settings: Any) -> DPSGD:
        return PlantedEngine(*given, build=build, planted=planted, **settings)

    return make
