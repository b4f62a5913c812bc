"""Audit `adapter_release`: what the shipped adapter leaks about single records.

A client of the installed code trains alone with the run's rate, noise and steps and saves its
adapter, which is all that the attack reads besides the public base model. Canaries are texts of a
token that nothing else holds ("new tokens", Panda et al. 2503.06808): no other record moves the
model in their direction, so that what noise hides of them it hides of any record. A fair coin says
whether a canary is in the data. Two attacks without shadow models:

- final weights: the adapter's move, as a mixture of the canaries' clipped gradients at the public
  initial weights; the shares are found by ridge regression, which removes what canaries have in
  common;
- black box: loss of a text under the base model less its loss under the adapted one, loaded with
  peft as users do.

Bounds: one-run f-DP (2410.22235) with the accountant's profile for both, and the noncentral-t
interval for the weights, where scores are projections of Gaussian noise. The three share the error
of 5% (Bonferroni). ROC, true positives at few false ones and exposure (`membership`) are reported
and decide nothing. The control is a twin trained without clipping and noise.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file
from scipy.stats import norm

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence, ScoresError
from fedtree_audits.rigs.broken import NoPrivacy
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.federated import planting
from fedtree_audits.rigs.parties import ample
from fedtree_audits.rigs.tiny import texts, write_model
from fedtree_audits.rigs.weight_attack import (
    BATCH,
    clipped_gradients,
    expected_shift,
    weight_scores,
)
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics import estimators as est
from fedtree_audits.statistics.scores import Bools, Floats, Scores
from fedtree_audits.statistics.verdict import POWER, Check, Power, Result
from fedtree_dp import NoiseSource, PoissonGaussian, PrivacyBudget, calibrate, epsilon_of
from fedtree_secure.testing import (
    Backbone,
    Client,
    Job,
    LocalModel,
    Lora,
    Mechanism,
    RoundTrainer,
    Table,
    Training,
    initial_state,
    loaded_into,
    prepare,
    save_adapter,
)

QUESTION = "What does the shipped adapter leak?"
CANARIES, FEWEST = 800, 400
# canaries without a coin, never in the data: with them even 0.1% of the non-members is somebody
NEVER = 680
ORDINARY = 64  # texts beside the canaries
# gradients of records that one training may cost: half a minute to a minute on two cores
PASSES = 30_000
REPEATED = 6  # how often a canary says its token
RECORDS, WIDTH, RANK = 1000, 128, 32
TARGETS = ("o_proj", "down_proj")
METHODS = 3
CONFIDENCE = 1 - 0.05 / METHODS
GUESSED = 0.3  # share of canaries that are guessed about, fixed here
RATES = (0.01, 0.001)


@dataclass(frozen=True)
class Released:
    """Scores of one shipped adapter; the first ``len(included)`` canaries had a coin.

    Attributes:
        weights, losses: by attack, shape (canaries + NEVER,).
        included: the coins, shape (canaries,).
        expected: how far apart, in standard deviations, members and others must lie by weights if
            the event holds.
    """

    weights: Floats
    losses: Floats
    included: Bools
    expected: float

    def tossed(self, name: str) -> Scores:
        """Return the scores of canaries whose membership a coin decided: what bounds are computed
        from.
        """
        return est.scores(getattr(self, name)[: len(self.included)], self.included)

    def everybody(self, name: str) -> Scores:
        """Return all scores, those that were never in the data among the non-members."""
        values = getattr(self, name)
        return est.scores(
            values, np.r_[self.included, np.zeros(len(values) - len(self.included), dtype=np.bool_)]
        )


def release(build: Build, event: PoissonGaussian, key: bytes, canaries: int) -> Released:
    """Train a client, let it save its adapter, and attack that.

    Args:
        build: what its engine is put together from.
        event: rate, noise multiplier and steps.
        key: 32 bytes that coins, noise and batches come from.
        canaries: coins tossed.
    """
    coins = NoiseSource(hashlib.sha256(b"coins" + key).digest())
    included = coins.uniform(canaries) < 0.5
    tokens = tuple(f"new{number}" for number in range(canaries + NEVER))
    planted = [" ".join([token] * REPEATED) for token in tokens]
    members = [text for text, coin in zip(planted, included, strict=False) if coin]
    with tempfile.TemporaryDirectory() as place:
        job = Job(
            backbone=str(
                write_model(Path(place) / "model", "llama", layers=1, hidden=WIDTH, more=tokens)
            ),
            privacy=ample(1e-6),
            task="causal-lm",
            lora=Lora(r=RANK, alpha=2.0 * RANK, targets=TARGETS),
            training=Training(
                records=RECORDS, sample_rate=event.sample_rate, physical_batch_size=BATCH
            ),
        )
        backbone = Backbone(job, device="cpu")
        data = prepare(
            Client("client", train=Dataset.from_dict({"text": texts(ORDINARY, 0) + members})),
            job,
            backbone.tokenizer,
        )
        table = prepare(
            Client("all", train=Dataset.from_dict({"text": planted})), job, backbone.tokenizer
        ).train
        mine, depth = initial_state(backbone, 0), backbone.experts.depth
        alone = LocalModel(0, (False,) * depth, np.zeros(depth, dtype=bool))
        directions = clipped_gradients(backbone, mine, table)
        RoundTrainer(backbone, job, engine=planting(build, None)).train(
            data,
            mine,
            alone,
            Mechanism(event.noise_multiplier, RECORDS, event.steps),
            build.source(key, 0),
            upload_gradient=False,
        )
        shipped = Path(place) / "adapter"
        with loaded_into(backbone, mine, 0, alone.mixing):
            save_adapter(backbone, shipped, data.label_set)
        return Released(
            weight_scores(
                load_file(shipped / "adapter_model.safetensors"),
                directions,
                event,
                rank=RANK,
                learning_rate=job.training.learning_rate,
            ),
            est.relative(_losses(backbone, table, None), _losses(backbone, table, shipped)),
            included,
            expected_shift(directions, event, canaries),
        )


def audit_build(
    build: Build,
    event: PoissonGaussian,
    delta: float,
    key: bytes,
    *,
    canaries: int = CANARIES,
    control: bool = True,
    hashes: Mapping[str, str] | None = None,
) -> Result:
    """Audit the adapter of one build against an event.

    Args:
        build: what is attacked.
        event: what was accounted for.
        delta: of the claim.
        key: 32 bytes that all randomness comes from.
        canaries: coins tossed.
        control: whether a twin without privacy is attacked as well, which must be caught.
        hashes: of the files the settings came from.
    """
    claim = epsilon_of([event], delta)
    seen = {"with DP": release(build, event, key, canaries)}
    checks, figures = _attack(seen["with DP"], event, delta, claim)
    controls = {}
    if control:
        seen["without DP"] = release(Build(optimizer=NoPrivacy), event, key, canaries)
        controls["twin trained without DP"] = not all(
            check.holds for check in _attack(seen["without DP"], event, delta, claim)[0]
        )
    coins = seen["with DP"].included.tobytes()
    commitment = hashlib.sha256(hashlib.sha256(b"salt" + key).digest() + coins).hexdigest()
    return Result(
        audit="adapter_release",
        question=QUESTION,
        claim=f"epsilon {claim:.4g} at delta {delta:g} over {event.steps} steps",
        adversary=(
            "whoever gets the adapter, knows the base model and asks about texts of its own choice"
        ),
        assumptions=(
            (
                "the code attacked here is the one installed where the run took place, with the "
                "run's rate and noise"
            ),
            (
                "a small language model whatever the run's task is: canaries are records that it "
                "can hardly confuse"
            ),
            (
                "final weights, noncentral t: scores of canaries are Gaussian, since the noise "
                "projected on them is"
            ),
        ),
        checks=checks,
        power=_power(seen["with DP"], delta, claim),
        controls=controls,
        hashes={"coins commitment": commitment} | dict(hashes or {}),
        figures=figures
        | {
            "claim": claim,
            "canaries": canaries,
            "membership": {name: _membership(r) for name, r in seen.items()},
        }
        | {"curves": [_panel(name, title, seen) for name, title in TITLES.items()]},
    )


TITLES = {"weights": "final weights", "losses": "black box: loss"}


def audit_run(run: RunFolder) -> Result:
    """Attack a twin with the settings of the run's least noisy client."""
    training = run.job.training
    noise = [plan.rounds for plan in map(run.noise_plan, sorted(run.clients)) if plan.rounds]
    if not noise:
        raise MissingEvidence(
            f"the noise plans in {run.path} have no rounds: no adapter was trained"
        )
    event = PoissonGaussian(min(noise), training.sample_rate, run.job.rounds * training.local_steps)
    canaries = int(np.clip(2 * PASSES / (event.steps * event.sample_rate), FEWEST, CANARIES))
    return audit_build(
        Build(),
        event,
        run.job.privacy.delta,
        os.urandom(32),
        canaries=canaries,
        hashes=run.hashes("job.json"),
    )


@torch.no_grad()
def _losses(backbone: Backbone, table: Table, adapter: Path | None) -> Floats:
    """Loss of each text under the base model, or with an adapter loaded as its README says."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(backbone.job.backbone).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    found = []
    for start in range(0, len(table), BATCH):
        rows = range(start, min(len(table), start + BATCH))
        found.append(backbone.loss(model, table.batch(rows, backbone.pad)).double().numpy())
    return np.concatenate(found)


def _attack(
    seen: Released, event: PoissonGaussian, delta: float, claim: float
) -> tuple[list[Check], dict[str, float]]:
    """The three bounds against the claim."""
    inverse = est.profile_inverse(
        est.accountant_points([event], list(np.linspace(0, 2 * claim + 2, 81)))
    )
    checks: list[Check] = []
    figures: dict[str, float] = {}
    for name, title in TITLES.items():
        tossed = seen.tossed(name)
        made = round(GUESSED * len(tossed.values))
        outcome = est.guess(tossed, made, order=np.random.default_rng(0))
        refuted = est.refutes(outcome, inverse, confidence=CONFIDENCE)
        bound = est.one_run_fdp_epsilon(outcome, delta, confidence=CONFIDENCE)
        right = (
            f"epsilon is at least {bound:.4g} if Gaussian; "
            f"{outcome.correct} of {made} guesses right"
        )
        checks.append(
            Check(
                f"{title}: one run, f-DP",
                not refuted,
                f"profile {'' if refuted else 'not '}refuted; {right}",
            )
        )
        figures |= {f"{name}_fdp": bound, f"{name}_fdp_over_claim": bound / claim}
    shift = est.gaussian_epsilon_bound(seen.tossed("weights"), delta, confidence=CONFIDENCE)
    detail = f"epsilon is at least {shift:.4g}; claimed {claim:.4g}"
    checks.append(Check("final weights: noncentral t", shift <= claim, detail))
    return checks, figures | {
        "weights_gaussian": shift,
        "weights_gaussian_over_claim": shift / claim,
    }


def _power(seen: Released, delta: float, claim: float) -> Power:
    """Of the noncentral-t bound: the leak whose visible part is above the claim in nine of ten
    runs.

    The attack sees part of what is there: Adam weighs steps unequally, canaries resemble each
    other, and a sum over steps says less than the steps (`expected_shift`).
    """
    given, allowed = seen.tossed("weights"), est.gaussian_mu(claim, delta)
    share = min(1.0, seen.expected / allowed)
    error = math.sqrt(1 / len(given.members) + 1 / len(given.others)) * float(
        norm.ppf(CONFIDENCE) + norm.ppf(POWER)
    )
    detected = est.gaussian_epsilon((allowed + error) / share, delta)
    return Power(
        claim,
        detected,
        f"final weights show {share:.2f} of the claimed shift, with an error of {error:.3f}",
    )


def _membership(seen: Released) -> dict[str, Any]:
    """Area, true positives at few false ones, exposure; by attack."""
    found: dict[str, Any] = {}
    for name in TITLES:
        given = seen.everybody(name)
        bits = est.exposure(given)
        rates = {f"tpr_at_{rate:g}": _tpr(given, rate) for rate in RATES}
        auc = est.area_interval(given)
        found[name] = {
            "auc": [auc.value, auc.low, auc.high],
            "exposure_mean": float(bits.mean()),
            "exposure_largest": float(bits.max()),
            **rates,
        }
    return found


def _tpr(given: Scores, rate: float) -> list[float] | str:
    try:
        found = est.tpr_at_fpr(given, rate)
    except ScoresError as error:
        return str(error)
    return [found.value, found.low, found.high]


def _panel(name: str, title: str, seen: Mapping[str, Released]) -> dict[str, Any]:
    curves = {label: est.roc(each.everybody(name)).thinned() for label, each in seen.items()}
    lines = {
        label: [c.false_positive.tolist(), c.true_positive.tolist()] for label, c in curves.items()
    }
    return {
        "title": title,
        "x": "false positives",
        "y": "true positives",
        "log": True,
        "lines": lines,
    }


def _variant(build: Build) -> Variant:
    def variant(seed: int) -> Result:
        (event,) = calibrate(
            (PoissonGaussian(1.0, 0.25, 60),), PrivacyBudget(epsilon=4, delta=1e-5)
        )
        assert isinstance(event, PoissonGaussian)
        key = hashlib.sha256(f"adapter_release/{seed}".encode()).digest()
        return audit_build(
            build, event, 1e-5, key, control=False
        )  # the control is a variant of its own here

    return variant


AUDIT = Audit(
    name="adapter_release",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Build()),
    mutants={"trained without DP": _variant(Build(optimizer=NoPrivacy))},
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
