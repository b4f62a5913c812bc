"""Clients that are broken on purpose, for self-tests alone: each lacks one rule against a server
that lies, or keeps a value that no charged step accounts for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from fedtree_audits.rigs.broken import replaced
from fedtree_dp import DPSGD
from fedtree_dp.sgd import guards
from fedtree_dp.sgd.shapes import Buckets, PhysicalBatch, plan_slots
from fedtree_secure.testing import (
    Backbone,
    Opened,
    Participant,
    Party,
    Received,
    RoundTrainer,
    Terms,
    inside,
    messages,
    save_adapter,
)


class GuardsOnRows(DPSGD):
    """Refuses private batches that cannot be trained on, as if they were public ones."""

    def _sum(self, batch: Any) -> Any:
        parts, failed = super()._sum(batch)
        guards.check_usable(sum(clipped.dropped for clipped, _ in parts))
        return parts, failed


class Recounting(Participant):
    """Looks at no counter."""

    def _check_counter(self, request: Opened) -> None:
        """Check nothing."""


@contextlib.contextmanager
def no_reply_after_an_error() -> Iterator[None]:
    """Let an error leave a step that was charged."""

    def strict(party: Party, compute: Callable[[], Any], without_rows: Any) -> Any:
        del party, without_rows
        return compute()

    with replaced((Party, "_answered", strict)):
        yield


@contextlib.contextmanager
def padded_to_the_longest() -> Iterator[None]:
    """Let the longest record of a batch decide how wide all others are."""

    def coupled(lengths: Any, drawn: Any, buckets: Buckets, *rest: Any) -> list[PhysicalBatch]:
        del buckets
        longest = max((lengths[int(i)] for i in drawn), default=1)
        return plan_slots(lengths, drawn, Buckets((longest,)), *rest)

    with replaced((inside.training, "plan_slots", coupled)):
        yield


@contextlib.contextmanager
def any_reach() -> Iterator[None]:
    """Take external experts from anywhere."""
    with replaced((inside.received, "within_reach", lambda *_: True)):
        yield


class _Alike:
    """Equal to everything."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@contextlib.contextmanager
def digests_unread() -> Iterator[None]:
    """Compare no digest with what a client holds itself."""
    with replaced((inside.received, "node_digest", lambda *_: _Alike())):
        yield


@contextlib.contextmanager
def digests_outside_the_plan() -> Iterator[None]:
    """Leave what members hold out of what their masks depend on, whether they hear of it before
    their keys are made or with the inbox.
    """
    shipped, plan = inside.round_plan._context, inside.round_plan.plan_of_round
    late = inside.ahead_requests.late_context

    def context(terms: Any, facts: Any, tree: Any, evidence: Any, _: Any, **how: Any) -> bytes:
        found: bytes = shipped(terms, facts, tree, evidence, (), **how)
        return found

    plan.cache_clear()
    try:
        with replaced(
            (inside.round_plan, "_context", context),
            (inside.ahead_requests, "late_context", lambda terms, _: late(terms, ())),
        ):
            yield
    finally:
        plan.cache_clear()


@contextlib.contextmanager
def last_values_as_sent() -> Iterator[None]:
    """Take whatever comes with the last request."""
    shipped = inside.round_requests.receive

    def receive(party: Party, experts: messages.Experts, before: int) -> Received:
        if before <= party.job.rounds:
            found: Received = shipped(party, experts, before)
            return found
        sent = messages.unpack(experts.external, party.facts.layout.length)
        held = party.store.state.nodes
        for node in party.nodes():
            if node.name in held:
                held[node.name].values = np.asarray(node.gather(sent))
        return Received(held, sent, before - 1, experts.digests, head_merged=False)

    with replaced((inside.round_requests, "receive", receive)):
        yield


@contextlib.contextmanager
def one_is_a_quorum() -> Iterator[None]:
    """Let one signature put a tree into force."""
    with replaced((Terms, "quorum", property(lambda _: 1))):
        yield


@contextlib.contextmanager
def trees_of_strangers() -> Iterator[None]:
    """Sign a tree whatever it was computed from."""
    handlers = inside.participant.HANDLERS
    shipped = handlers[messages.ProposeTree]

    def propose(party: Party, session: Any, message: messages.ProposeTree) -> Any:
        record = party.store.record
        attempt, record.sketched_attempt = record.sketched_attempt, message.attempt
        try:
            return shipped(party, session, message)
        finally:
            record.sketched_attempt = attempt

    changed = {**handlers, messages.ProposeTree: propose}
    with replaced((inside.participant, "HANDLERS", changed)):
        yield


# --- values that no charged step accounts for -----------------------------------------------------


@contextlib.contextmanager
def mixing_outside() -> Iterator[None]:
    """Move mixing weights by something read from the rows, after a round's steps."""
    shipped = Party.round_change

    def change(party: Party, seed: bytes) -> Any:
        found = shipped(party, seed)
        party.store.state.mixing_logits += np.float32(1e-3 * _of_rows(party))
        return found

    with replaced((Party, "round_change", change)):
        yield


@contextlib.contextmanager
def head_outside() -> Iterator[None]:
    """Tune the head on the rows, after its own steps."""
    shipped = Party.train_head

    def train(party: Party, seed: bytes) -> None:
        shipped(party, seed)
        head = party.store.state.head
        head |= {k: v + np.float32(1e-3 * _of_rows(party)) for k, v in head.items()}

    with replaced((Party, "train_head", train)):
        yield


@contextlib.contextmanager
def upload_outside() -> Iterator[None]:
    """Add something read from the rows to what the engine gave."""
    shipped = Party.round_change

    def change(party: Party, seed: bytes) -> Any:
        found = shipped(party, seed)
        return found + np.float32(1e-2 * _of_rows(party)) * (found != 0)

    with replaced((Party, "round_change", change)):
        yield


@contextlib.contextmanager
def one_more_step() -> Iterator[None]:
    """Take a step more than was charged in every round."""
    shipped: Any = RoundTrainer.train

    def train(trainer: RoundTrainer, *given: Any, **how: Any) -> Any:
        *first, mechanism, noise = given
        more = dataclasses.replace(mechanism, steps=mechanism.steps + 1)
        return shipped(trainer, *first, more, noise, **how)

    with replaced((RoundTrainer, "train", train)):
        yield


def deliver_tuned_head(backbone: Backbone, folder: Path, labels: Any) -> None:
    """Move the head a last time before it is written."""
    with torch.no_grad():
        backbone.projection.weight.add_(1e-3)
    save_adapter(backbone, folder, labels)


def deliver_one_more(backbone: Backbone, folder: Path, labels: Any) -> None:
    """Write one tensor more."""
    save_adapter(backbone, folder, labels)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | {"base_model.model.counts": torch.ones(2)}
    save_file(tensors, path, metadata={"format": "pt"})


def _of_rows(party: Party) -> float:
    """Something that only the rows tell: their mean length."""
    return float(np.mean([len(row) for row in party.member.data.train.tokens]))
