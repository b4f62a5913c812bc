"""Attacks of a lying server on one record: shown by a reply, or by its share of the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedtree_audits.rigs import needle
from fedtree_audits.rigs.hostile import (
    ABSURD,
    GROUP,
    NAMES,
    REFUSED,
    VICTIM,
    Stage,
    base_job,
    halves,
    said,
)
from fedtree_audits.rigs.liar import Floats32, Liar
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import Check
from fedtree_dp import DPSGD
from fedtree_secure.testing import (
    Backbone,
    Job,
    NodeBook,
    NoisePlan,
    initial_state,
    messages,
    reach,
    seal,
)

ROUNDING = 1e-4  # of float32 sums, relative to the clipping norm
STRANGE = 1e-3  # the same of a sum, against one that is computed in float64


def replies(stage: Stage, model: Path, rounds: int) -> list[Check]:
    """Weights under which a record breaks: replies and charges with it and without it."""
    fragile = needle.fragile(stage.setup.engine, stage.backbone)
    attacks: Sequence[tuple[str, int | None, type[DPSGD] | None]] = (
        ("one record breaks", needle.ONLY_NEEDLE, None),
        ("all others break", needle.ONLY_WORDS, None),
        ("a step that breaks down", None, fragile),
    )
    each = max(2, -(-rounds // len(attacks)))
    # Coins as ever, but a target that no round draws would show nothing: here once in a million.
    job = base_job(model, "fingerprint", each + 1, learning_rate=ABSURD, sample_rate=0.999)
    checks = []
    for name, coordinate, engine in attacks:
        without, with_it = (
            pattern(stage, job, coordinate, engine, target=target) for target in (False, True)
        )
        differing = sum(a != b for a, b in zip(without, with_it, strict=True))
        told = f"{each} rounds without the target, {each} with it"
        last = " ".join(without[-1][0])
        detail = f"{told}; {differing} differ in replies or charges ({last})"
        checks.append(Check(f"replies: {name}", differing == 0, detail))
    return checks


def pattern(
    stage: Stage, job: Job, coordinate: int | None, engine: type[DPSGD] | None, *, target: bool
) -> list[tuple[tuple[str, ...], tuple[str | None, ...]]]:
    """What the victim answered in each round, and what its ledger held after it."""
    found = []
    tree = halves(stage)
    with stage.liar(job, names=NAMES, target=target, engine=engine, tree=tree) as liar:
        if coordinate is not None:
            liar.lie(GROUP, needle.breaking(stage.backbone, coordinate))
        ledger = liar.parties.participants[VICTIM].party.store.ledger
        for number in range(2, job.rounds + 1):
            before = len(liar.line.answers)
            liar.round(number)
            answers = [kind for _, name, kind in liar.line.answers[before:] if name == VICTIM]
            found.append((tuple(answers), tuple(entry.purpose for entry in ledger.entries())))
    return found


def out_of_reach(stage: Stage, model: Path, _rounds: int) -> list[Check]:
    """Values that the public optimiser cannot have reached, in messages that fit together."""
    job = base_job(model, "fingerprint", 3)
    with stage.liar(job, names=NAMES, tree=halves(stage)) as liar:
        party = liar.parties.participants[VICTIM].party
        initial = party.facts.initial
        answers = {}
        for name, distance in (("beyond", 2.0), ("nan", np.nan), ("within", 0.5)):
            moved = (initial + np.float32(distance * reach(job, 2))).astype(np.float32)
            liar.lie(GROUP, moved)
            answers[name] = liar.ask({VICTIM: liar.begin(VICTIM, 2)})[VICTIM]
            if name == "nan":
                answers["sum"] = _impossible_sum(liar)
        charged = len(party.store.ledger.events())
    wanted = {"within": "protocol", "beyond": REFUSED, "nan": "WireError", "sum": "WireError"}
    return [
        Check(
            "replies: out of reach",
            answers == wanted and not charged,
            f"{said(answers)}; {charged} charges",
        )
    ]


def _impossible_sum(liar: Liar) -> str:
    """The answer to a sum that its survivors cannot reach."""
    elsewhere = NodeBook(liar.job, liar.facts, liar.tree)
    liar.invent(np.ones(liar.facts.layout.length, dtype=np.float32), 1, elsewhere)
    too_much = np.full(liar.facts.layout.length, 2**30, dtype="<i4").tobytes()
    (entry,) = elsewhere.told(VICTIM, -1).opened
    forged = msgspec.structs.replace(entry, total=too_much)
    lie = msgspec.structs.replace(elsewhere.told(VICTIM, -1), opened=(forged,))
    return liar.ask({VICTIM: liar.begin(VICTIM, 2, lie)})[VICTIM]


def counters(stage: Stage, model: Path, _rounds: int) -> list[Check]:
    """A signed request that comes again, late, or to a client that was set back."""
    with stage.liar(base_job(model, "one_group", 2)) as liar:
        terms, server = liar.parties.terms, liar.parties.server
        join = messages.encode(messages.Join(terms.digest, liar.facts.digest))
        answers = {}
        for name, counter, answered in (
            ("first", 5, 0),
            ("again", 5, 0),
            ("late", 4, 0),
            ("after another", 9, 8),
        ):
            sealed = seal(server, terms.run, VICTIM, counter, answered, join)
            liar.line.exchange(name, {VICTIM: sealed})
            answers[name] = liar.line.answers[-1][2]
    wanted = {
        "first": "joined",
        "again": "WireError",
        "late": "WireError",
        "after another": "refused: set-back",
    }
    return [Check("replies: a request twice", answers == wanted, said(answers))]


def shares(stage: Stage, model: Path, _rounds: int) -> list[Check]:
    """How far one record moves the clipped sum, and others' gradients, under any weights."""
    job = base_job(model, "one_group", 2, sample_rate=1.0)
    without, with_it = (sums(stage, job, target=target) for target in (False, True))
    checks = []
    for name, (total, rows) in without.items():
        more, others = with_it[name]
        clip = job.training.max_grad_norm
        moved = float(np.linalg.norm(more - total)) / clip
        strange = max(
            float(np.linalg.norm(found - _clipped(seen, clip))) / clip
            for found, seen in ((total, rows), (more, others))
        )
        changed = sum(others.get(tokens) != gradient for tokens, gradient in rows.items())
        checks += [
            Check(
                f"sum: {name}",
                moved <= 1 + ROUNDING and strange <= STRANGE,
                f"one record moves it by {moved:.5g} clipping norms; it is {strange:.2g} from the "
                "sum of its records' own clipped gradients",
            ),
            Check(
                f"other records: {name}",
                changed == 0,
                f"{changed} of {len(rows)} have another gradient beside one record more",
            ),
        ]
    return checks


def _clipped(rows: Mapping[bytes, bytes], clip: float) -> Floats:
    """The sum that these gradients should give; one that is not finite counts nothing."""
    total: Floats = np.zeros(1)
    for gradient in rows.values():
        flat = np.frombuffer(gradient, dtype=np.float32).astype(np.float64)
        norm = float(np.linalg.norm(flat))
        if math.isfinite(norm):
            total = total + flat * min(1.0, clip / norm if norm else 1.0)
    return total


def sums(stage: Stage, job: Job, *, target: bool) -> dict[str, tuple[Floats, dict[bytes, bytes]]]:
    """The clipped sum and each record's gradient under weights of any scale, without noise."""
    seen: dict[bytes, bytes] = {}
    found = {}
    engine = needle.watched(stage.setup.engine, seen)
    with stage.liar(job, target=target, noise=NoisePlan(), engine=engine) as liar:
        party = liar.parties.participants[VICTIM].party
        for name, own in _weights(stage.backbone, job).items():
            seen.clear()
            party.store.state = initial_state(stage.backbone, 0)
            party.store.state.own = own.copy()
            party.round_change(stage.key)
            total = np.frombuffer(seen.pop(needle.SUM, b""), dtype=np.float32).astype(np.float64)
            found[name] = (total if len(total) else np.zeros(len(own)), dict(seen))
    return found


def _weights(backbone: Backbone, job: Job) -> dict[str, Floats32]:
    """Own experts: the initial one, one within reach, and some that are far outside."""
    initial = backbone.initial_expert
    random = np.random.default_rng(0).choice([-1.0, 1.0], size=len(initial))
    found: dict[str, Any] = {"initial values": initial}
    found["values within reach"] = initial + random * reach(job, 20)
    found |= {f"values of {size:g}": initial + random * size for size in (1e2, 1e4, 1e8)}
    for what, coordinate in (
        ("one record", needle.ONLY_NEEDLE),
        ("all others", needle.ONLY_WORDS),
        ("padding", needle.ONLY_PADDING),
    ):
        found[f"values that break {what}"] = needle.breaking(backbone, coordinate)
    return {name: own.astype(np.float32) for name, own in found.items()}
