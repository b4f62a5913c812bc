"""Audit `reconstruct`: whether texts can be recovered from what the server sees.

Clients of the installed code, each with one text in its batch (the worst case: nothing else in the
batch hides it), compute the update that they would upload. The server knows the model and asks of
every word of the vocabulary whether it was there (`token_presence`). Three views: one client's
plain update, which masking must hide; the plain sum over the smallest group, which is all that
masking gives; and the sum with every client's DP noise, which is what opens.

What DP allows: exchanging a word of a text for one that is not there replaces one record, which
moves the sum by two clipping norms at most against noise of sigma sqrt(m). An attack that finds the
present word of such a pair with probability AUC tells the two data sets apart with that accuracy,
which for mu-GDP is at most Phi(mu / 2) (Dong, Roth and Su 1905.02383): AUC <= Phi(1 / (sigma
sqrt(m))). A check fails where an interval lies above that. The plain update
is the control: with A trained its AUC must be near 1, or the attack itself is broken and the audit
says nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import norm

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs.broken import BUILDS
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.federated import planting
from fedtree_audits.rigs.parties import ample
from fedtree_audits.rigs.tiny import WORDS, write_model
from fedtree_audits.rigs.token_presence import (
    candidates,
    first_layer,
    intervals,
    presence,
    token_auc,
)
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import POWER, Check, Power, Result
from fedtree_secagg import Quantiser
from fedtree_secure.testing import (
    Backbone,
    Client,
    Job,
    LocalModel,
    Lora,
    Mechanism,
    RoundTrainer,
    Training,
    initial_state,
    largest_change,
    prepare,
)

QUESTION = "Can texts be recovered?"
TRIALS, LENGTH, LARGE_RANK = 12, 6, 16
MOST_CLIENTS = 12  # whose words are all different; a larger group only hides more
CONTROL = 0.95  # what the plain update's AUC must reach
ONE, SUM, PRIVATE = "one plain update", "plain sum", "sum with DP"
MOVED = 0.05  # B after some rounds: at its initial zero the gradient of A is zero as well


@dataclass(frozen=True)
class Setup:
    """What the server gets to see.

    Attributes:
        build: of the engines whose noisy updates are summed.
        masked: False where single updates reach the server.
    """

    build: Build = field(default_factory=Build)
    masked: bool = True


@dataclass(frozen=True)
class Shape:
    """LoRA factors that are trained: their rank, and whether A is frozen."""

    rank: int
    freeze_a: bool

    @property
    def name(self) -> str:
        """For the report."""
        return f"{'A frozen' if self.freeze_a else 'A trained'}, rank {self.rank}"


def updates(
    backbone: Backbone, text: str, noise_multiplier: float, build: Build, key: bytes
) -> Floats:
    """Return what a client with one text uploads, as the server decodes it: the (noisy) clipped
    gradient.

    Args:
        backbone: model; its job trains in every batch with all rows.
        text: the client's only record.
        noise_multiplier: of its step.
        build: what its engine is put together from.
        key: 32 bytes for noise and rounding.
    """
    job, depth = backbone.job, backbone.experts.depth
    data = prepare(
        Client("client", train=Dataset.from_dict({"text": [text]})), job, backbone.tokenizer
    )
    mine = initial_state(backbone, 0)
    mine.own = mine.own + _moved(backbone)
    change = RoundTrainer(backbone, job, engine=planting(build, None)).train(
        data,
        mine,
        LocalModel(0, (True,) * depth, np.zeros(depth, dtype=bool)),
        Mechanism(noise_multiplier, records=1, steps=1),
        build.source(key, 0),
        upload_gradient=True,
    )
    grid = Quantiser(
        clip=largest_change(job, max(noise_multiplier, 1.0), 1, merge=False), bits=24, saturate=True
    )
    return grid.decode(grid.quantise(change.astype(np.float64), key).astype(np.int64))


def attack(
    setup: Setup, shape: Shape, noise_multiplier: float, group: int, key: bytes
) -> dict[str, list[float]]:
    """Return the AUC of each trial for the three views.

    Args:
        setup: what is audited.
        shape: what is trained.
        noise_multiplier: of every client.
        group: clients in the sum.
        key: 32 bytes that texts and noise come from.
    """
    found: dict[str, list[float]] = {ONE: [], SUM: [], PRIVATE: []}
    with tempfile.TemporaryDirectory() as place:
        job = Job(
            backbone=str(write_model(Path(place) / "model", "llama", layers=1)),
            privacy=ample(1e-6),
            task="causal-lm",
            lora=Lora(r=shape.rank, alpha=2.0 * shape.rank, freeze_a=shape.freeze_a),
            training=Training(records=1, sample_rate=1.0),
        )
        backbone = Backbone(job, device="cpu")
        vocabulary = [int(i) for i in backbone.tokenizer.convert_tokens_to_ids(list(WORDS))]
        inputs = candidates(backbone, vocabulary)
        for trial in range(TRIALS):
            fresh = hashlib.sha256(key + shape.name.encode() + trial.to_bytes(4, "big")).digest()
            chosen = _texts(group, fresh)
            sent = [
                {
                    kind: updates(
                        backbone, text, noise, build, hashlib.sha256(fresh + bytes([i])).digest()
                    )
                    for kind, noise, build in (
                        (SUM, 0.0, Build()),
                        (PRIVATE, noise_multiplier, setup.build),
                    )
                }
                for i, text in enumerate(chosen)
            ]
            views = {
                ONE: [sent[0][SUM]],
                SUM: [each[SUM] for each in sent],
                PRIVATE: [each[PRIVATE] for each in sent],
            }
            if not setup.masked:
                views[PRIVATE] = views[ONE]
            for view, parts in views.items():
                there = set(backbone.tokenizer(" ".join(chosen[: len(parts)]))["input_ids"])
                scores = presence(first_layer(backbone, np.sum(parts, axis=0)), inputs)
                found[view].append(token_auc(scores, vocabulary, there))
    return found


def audit_setup(
    setup: Setup,
    noise_multiplier: float,
    group: int,
    shapes: tuple[Shape, ...],
    key: bytes,
    *,
    hashes: Mapping[str, str] | None = None,
) -> Result:
    """Audit what the server sees of clients with one text each.

    Args:
        setup: what is attacked.
        noise_multiplier: of every client's step.
        group: clients in a sum.
        shapes: factors that are trained; the first one is that of the control.
        key: 32 bytes that all randomness comes from.
        hashes: of the files the settings came from.
    """
    allowed = float(norm.cdf(1 / (noise_multiplier * math.sqrt(group))))
    level = 1 - 0.05 / len(shapes)
    checks: list[Check] = []
    figures: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, list[float]] = {}
    widest = 0.0
    for shape in shapes:
        found = intervals(attack(setup, shape, noise_multiplier, group, key), level)
        figures[shape.name] = {view: list(value) for view, value in found.items()}
        shown |= {f"{view}\n{shape.name}": list(value) for view, value in found.items()}
        mean, low, high = found[PRIVATE]
        detail = f"AUC {mean:.3f}, {low:.3f} to {high:.3f}; DP allows up to {allowed:.3f}"
        checks.append(Check(f"{PRIVATE}: {shape.name}", low <= allowed, detail))
        widest = max(widest, (high - low) / 2)
    control = figures[shapes[0].name][ONE]
    panel = {"title": "is this word in the texts?", "x": "AUC", "line": 0.5, "intervals": shown}
    return Result(
        audit="reconstruct",
        question=QUESTION,
        claim=(
            f"a word of a text in a sum of {group} is told from one that is not with AUC "
            f"{allowed:.3f} at most"
        ),
        adversary=(
            "server: knows the model and the vocabulary, sees what opens (and, as controls, what "
            "must not)"
        ),
        assumptions=(
            (
                "the code attacked here is the one installed where the run took place, on a small "
                "model; one text a client"
            ),
            "the span check is one attack; that it finds nothing does not show that no attack does",
            _frozen(figures),
        ),
        checks=checks,
        power=_power(allowed, widest, control[0]),
        controls={"one plain update": control[1] >= CONTROL},
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | dict(hashes or {}),
        figures={
            "auc": figures,
            "allowed": allowed,
            "group": group,
            "trials": TRIALS,
            "curves": [panel],
        },
    )


def audit_run(run: RunFolder) -> Result:
    """Attack sums over the run's smallest group with its least noise and its factors; and, as
    control, a trained A.
    """
    job = run.job
    noise = [plan.rounds for plan in map(run.noise_plan, sorted(run.clients)) if plan.rounds]
    if not noise:
        raise MissingEvidence(
            f"the noise plans in {run.path} have no rounds: the server was sent no update"
        )
    own = Shape(job.lora.r, job.lora.freeze_a)
    shapes = dict.fromkeys(
        (Shape(LARGE_RANK, freeze_a=False), Shape(LARGE_RANK, freeze_a=True), own)
    )
    return audit_setup(
        Setup(),
        min(noise),
        min(MOST_CLIENTS, job.masking.min_group),
        tuple(shapes),
        os.urandom(32),
        hashes=run.hashes("job.json"),
    )


def _texts(count: int, key: bytes) -> list[str]:
    """Texts that have no word in common, so that one word is about one record."""
    words = np.random.default_rng(list(key)).permutation(WORDS)[: count * LENGTH]
    return [" ".join(part) for part in words.reshape(count, LENGTH)]


def _moved(backbone: Backbone) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A public state after some rounds: values added to B, none to A."""
    parts = []
    for layer in range(backbone.experts.depth):
        for place, factor in enumerate(backbone.experts.factors("cluster", layer)):
            is_b = backbone.experts.lora.freeze_a or place % 2 == 1
            rng = np.random.default_rng([layer, place])
            parts.append(rng.normal(scale=MOVED if is_b else 0.0, size=factor.numel()))
    return np.concatenate(parts).astype(np.float32)


def _frozen(figures: Mapping[str, Mapping[str, list[float]]]) -> str:
    found = [
        f"{name}: {views[ONE][0]:.2f}"
        for name, views in figures.items()
        if name.startswith("A frozen")
    ]
    return (
        "a frozen A is no protection by itself: the check on B's gradient finds words while a text "
        "has fewer tokens than the rank (AUC of one plain update: "
        f"{', '.join(found) or 'not measured'})"
    )


def _power(allowed: float, half: float, control: float) -> Power:
    """The AUC whose interval lies above what DP allows in nine of ten audits; enough if a plain
    update has more.
    """
    detected = float(min(1.0, allowed + half * (1 + norm.ppf(POWER) / 1.96)))
    how = f"interval of +-{half:.3f} over {TRIALS} trials; a plain update reaches {control:.3f}"
    return Power(allowed, detected, how, quantity="AUC of token presence", limit=control)


ATTACKED = Shape(LARGE_RANK, freeze_a=False)  # where words are found best, so faults show there
SHAPES = (ATTACKED, Shape(LARGE_RANK, freeze_a=True), Shape(4, freeze_a=True))


def _variant(setup: Setup, shapes: tuple[Shape, ...] = (ATTACKED,)) -> Variant:
    def variant(seed: int) -> Result:
        return audit_setup(
            setup, 1.0, 3, shapes, hashlib.sha256(f"reconstruct/{seed}".encode()).digest()
        )

    return variant


AUDIT = Audit(
    name="reconstruct",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Setup(), SHAPES),
    mutants={
        "the plain update": _variant(Setup(masked=False)),
        "a sum without noise": _variant(Setup(BUILDS["no noise"])),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
