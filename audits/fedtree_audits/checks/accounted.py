"""Audit `accounted`: whether a trained value is kept, uploaded or delivered that no charged step
accounts for.

Clients of the installed code run a whole small job, from their heads to their adapters. The engine
records every value before and after each step. Afterwards a second bookkeeping (`accounts`) says
what each client must hold: public initial values, what follows from opened sums, and what the
engine's steps left behind. Everything a client keeps or delivers must be equal to that, bit for
bit, folding and grid included; steps that were taken must have been charged; and an opened sum must
be the sum of what the engine changed, up to the grid's rounding.

The tree is given, so that one job has layers that all share, layers of two groups with an external
expert and a trained mixing weight, and layers that clients keep to themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from safetensors.torch import load_file

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs import accounts, broken_client
from fedtree_audits.rigs.accounts import Account
from fedtree_audits.rigs.broken import replaced
from fedtree_audits.rigs.parties import Casting, Parties, ample, open_parties, scratch
from fedtree_audits.rigs.recorder import Log, Opening, recording
from fedtree_audits.rigs.tiny import texts, write_model
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_dp import PoissonGaussian
from fedtree_secure.testing import (
    Backbone,
    Coordinator,
    InProcess,
    Job,
    Lora,
    Masking,
    NoisePlan,
    Purpose,
    Training,
    Transcript,
    Tree,
    Workings,
    initial_state,
    inside,
    nodes_of,
    purpose_of,
    save_adapter,
)

QUESTION = "Is there a trained value that no charged step accounts for?"
NAMES = ("c0", "c1", "c2", "c3", "c4", "c5")
LABELS = ((0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1), (0, 1, 2, 3, 3, 3))
ROUNDS, RECORDS, HEAD_STEPS = 3, 12, 5
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "fedtree.json"}
SHOWN = 4
Deliver = Callable[[Backbone, Path, tuple[Any, ...]], None]


@dataclass(frozen=True)
class Setup:
    """What a build consists of.

    Attributes:
        deliver: Writes a client's adapter.
        opening: Entered around the job; a self-test puts a broken part in here.
    """

    deliver: Deliver = save_adapter
    opening: Callable[[], contextlib.AbstractContextManager[None]] = field(
        default=contextlib.nullcontext
    )


@dataclass(frozen=True)
class Finished:
    """A job that is over.

    Attributes:
        parties, coordinator: Its sides.
        log: Every trainer that took a step, in order.
        folder: With each client's adapter in a folder of its name.
        untouched: What no client may change in the model, before the job.
    """

    parties: Parties
    coordinator: Coordinator
    log: Sequence[Opening]
    folder: Path
    untouched: Mapping[str, Any]


def audit_setup(setup: Setup, key: bytes, hashes: Mapping[str, str] | None = None) -> Result:
    """Audit one build.

    Args:
        setup: What is audited.
        key: 32 bytes that all randomness comes from; its hash is reported.
        hashes: Of files that were read.
    """
    with scratch() as place, contextlib.ExitStack() as stack:
        finished = _run(stack, setup, place, key)
        books = {name: _keep_books(finished, name) for name in NAMES}
        checks = [
            *(check for name in NAMES for check in _client(finished, name, books[name])),
            _uploads(finished, books),
            _untouched(finished),
        ]
        steps = sum(len(opening.after) for opening in finished.log)
    return Result(
        audit="accounted",
        question=QUESTION,
        claim=(
            "what a client keeps, uploads and delivers is public, follows from opened sums, or is "
            "what a charged step of the engine left behind"
        ),
        adversary="none: an auditor inside the clients follows every value",
        assumptions=(
            "the code audited here is the one installed where the run took place, on a tiny model",
            "the engine's steps are what was charged (the components and replay audits)",
            "a warm-up (topology.source lora_b) and a shared head are not part of this job",
        ),
        checks=checks,
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | dict(hashes or {}),
        figures={"steps": steps, "clients": len(NAMES), "rounds": ROUNDS},
    )


def audit_run(run: RunFolder) -> Result:
    """Follow the installed code; a run adds no evidence but its settings' hash."""
    run.require_own_noise()
    return audit_setup(Setup(), os.urandom(32), run.hashes("job.json"))


# --- a whole small job ----------------------------------------------------------------------------


def _run(stack: contextlib.ExitStack, setup: Setup, place: Path, key: bytes) -> Finished:
    job = Job(
        backbone=str(write_model(place / "model", "llama", layers=len(LABELS), hidden=32)),
        privacy=ample(1e-6),
        rounds=ROUNDS,
        lora=Lora(r=2, alpha=4.0),
        masking=Masking(min_group=3, colluders=1),
        training=Training(
            records=RECORDS,
            sample_rate=0.5,
            max_length=16,
            head="local",
            head_steps=HEAD_STEPS,
            head_sample_rate=0.5,
        ),
    )
    backbone = Backbone(job, device="cpu")
    untouched, log = accounts.frozen(backbone), Log(backbone)
    engine = recording(log)
    casting = Casting(
        rows={name: _rows(number) for number, name in enumerate(NAMES)},
        noise=NoisePlan(head=2.0, rounds=1.0),
        key=key,
        workings=lambda _, randomness: Workings(randomness=randomness, engine=engine),
    )
    tree = Tree(NAMES, LABELS, job.masking.min_group)
    parties = open_parties(stack, job, backbone, place / "stores", casting)
    parties.give_tree(tree)
    transcript = Transcript(place / "transcript.txt")
    stack.callback(transcript.close)
    handlers = {name: log.turn(name, p.handle) for name, p in parties.participants.items()}
    embedded = InProcess(handlers, transcript)
    facts = backbone.facts(parties.terms.outputs_of_heads)
    coordinator = Coordinator(parties.terms, parties.server, facts, embedded, place / "server")
    coordinator.adopt(tree)
    with replaced((inside.head, "DPSGD", engine)), setup.opening():
        coordinator.run()
        for name, participant in parties.participants.items():
            with participant.at_backbone():
                setup.deliver(backbone, place / name, participant.party.member.data.label_set)
    if embedded.failures:
        raise RuntimeError(f"the audited job failed: {embedded.failures[0]}")
    return Finished(parties, coordinator, log.openings, place, untouched)


def _rows(seed: int) -> Dataset:
    labels = [f"class-{i % 2}" for i in range(RECORDS)]
    return Dataset.from_dict({"text": texts(RECORDS, seed), "label": labels})


# --- the second bookkeeping -----------------------------------------------------------------------


def _keep_books(finished: Finished, name: str) -> Account:
    """Go through the job again, from public values, recorded steps and opened sums."""
    party = finished.parties.participants[name].party
    account = Account(party, initial_state(finished.parties.backbone, party.outputs))
    assert finished.coordinator.book is not None
    opened = finished.coordinator.book.opened
    mine = [opening for opening in finished.log if opening.client == name]
    charged = [e.purpose for e in party.store.ledger.entries() if e.event is not None]
    if len(mine) != len(charged):
        account.strange.append(f"{len(mine)} trainers for {len(charged)} charges")
    by_purpose = dict(zip(charged, mine, strict=False))
    if Purpose.HEAD in by_purpose:
        account.train_head(by_purpose[Purpose.HEAD])
    for number in range(1, ROUNDS + 1):
        if purpose_of(number) in by_purpose:
            account.train_round(number, by_purpose[purpose_of(number)])
        account.move(entry for entry in opened if entry.round == number)
    return account


def _client(finished: Finished, name: str, account: Account) -> list[Check]:
    party = finished.parties.participants[name].party
    expected = account.expected()
    tensors = load_file(finished.folder / name / "adapter_model.safetensors")
    found = {path.name for path in (finished.folder / name).iterdir()}
    strange = accounts.differing(tensors, account.delivered(expected))
    strange += sorted(found ^ FILES)
    kept = account.compare(party.store.state)
    return [
        _check(f"{name}: between steps", account.strange, "each step began where the last ended"),
        _check(f"{name}: kept values", kept, "as its steps and the opened sums say"),
        _check(f"{name}: adapter", strange, f"{len(tensors)} tensors as folded by the auditor"),
        _charges(finished, name),
    ]


def _check(name: str, strange: Sequence[str], good: str) -> Check:
    more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    return Check(
        name,
        not strange,
        f"not accounted for: {', '.join(strange[:SHOWN])}{more}" if strange else good,
    )


def _charges(finished: Finished, name: str) -> Check:
    """Steps by noise multiplier and divisor, against the ledger's."""
    party = finished.parties.participants[name].party
    taken: Counter[tuple[float, float]] = Counter()
    for opening in finished.log:
        if opening.client == name:
            taken[opening.noise_multiplier, opening.divisor] += len(opening.after)
    charged: Counter[tuple[float, float]] = Counter()
    for event in party.store.ledger.events():
        if isinstance(event, PoissonGaussian):
            charged[event.noise_multiplier, event.sample_rate * party.records] += event.steps
    more = taken - charged
    detail = f"{taken.total()} steps taken, {charged.total()} charged"
    return Check(f"{name}: charges", not more, detail)


def _uploads(finished: Finished, books: Mapping[str, Account]) -> Check:
    """Each opened sum, against the sum of what the engines changed."""
    coordinator, party = finished.coordinator, finished.parties.participants[NAMES[0]].party
    assert coordinator.book is not None
    nodes = {node.name: node for node in nodes_of(party.tree(), party.facts.layout)}
    summed = {record.round: record.opened for record in coordinator.records}
    worst = 0.0
    for entry in coordinator.book.opened:
        node, members = nodes[entry.node], summed[entry.round][entry.node]
        grid = party.quantiser(entry.clip, merge=False)
        total = grid.decode(np.frombuffer(entry.total, dtype="<i4").astype(np.int64))
        changed = [
            np.clip(
                node.gather(books[name].changes[entry.round]).astype(np.float64),
                -grid.clip,
                grid.clip,
            )
            for name in members
        ]
        gap = np.abs(total - np.sum(changed, axis=0)).max() / (grid.step * len(members))
        worst = max(worst, float(gap))
    count = len(coordinator.book.opened)
    good = count == ROUNDS * len(nodes) and worst <= 1.0
    detail = f"{count} sums; a member's share is off by up to {worst:.2f} steps of the grid"
    return Check("opened sums", good, detail)


def _untouched(finished: Finished) -> Check:
    strange = accounts.differing(accounts.frozen(finished.parties.backbone), finished.untouched)
    return _check("frozen model", strange, f"{len(finished.untouched)} tensors as loaded")


# --- self-test ------------------------------------------------------------------------------------


def _variant(setup: Setup) -> Variant:
    return lambda seed: audit_setup(setup, hashlib.sha256(f"accounted/{seed}".encode()).digest())


AUDIT = Audit(
    name="accounted",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Setup()),
    mutants={
        name: _variant(setup)
        for name, setup in {
            "mixing weight trained outside": Setup(opening=broken_client.mixing_outside),
            "head tuned at delivery": Setup(deliver=broken_client.deliver_tuned_head),
            "head tuned after its steps": Setup(opening=broken_client.head_outside),
            "one more tensor delivered": Setup(deliver=broken_client.deliver_one_more),
            "a step not charged": Setup(opening=broken_client.one_more_step),
            "upload changed after the engine": Setup(opening=broken_client.upload_outside),
        }.items()
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
