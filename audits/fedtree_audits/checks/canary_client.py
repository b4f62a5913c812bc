"""Audit `canary_client`: what another participant learns from what it is sent.

A federation of the installed code runs on a small model (`federated`): two clusters that share a
trunk. One participant keeps everything that it is told in every round. Canaries are records of
other clients whose gradient is a random Gaussian direction (Andrew et al. 2302.03098): in d
dimensions such directions are nearly orthogonal to each other and to everything else, and the
cosine of a direction with what was released is normal with variance 1/d unless the canary was in.
One set of canaries stands in each of three views: the trunk, the onlooker's own cluster, the
external expert.

Of its own nodes, trunk and cluster, the onlooker is told the opened sums themselves. Of others it
is sent the external expert: values that Adam moved. Learning rate and decays are public, so the
onlooker takes the momentum away from the moves; what is left is the round's sum up to a scale for
each coordinate (`sums_behind`).

Two claims are tested. The client's own: epsilon at its noise multiplier, against everybody. And
that of masking: no sum over fewer than `min_group` clients is opened, so that beside the onlooker's
own noise, which it knows, that of at least min_group - 1 others is in everything it is sent: a
noise multiplier of sqrt(min_group - 1) times a client's. Where noise is shared the second one is
what the run claims, and the first what holds whatever others do. Two methods, pooled over rounds
and one-run f-DP, in three views share the error of 5% (Bonferroni).
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import norm

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs.broken import BUILDS, any_group_opens
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.federated import Attack, Held, Planted, run_federation, two_clusters
from fedtree_audits.rigs.parties import ample, scratch
from fedtree_audits.rigs.shared_sums import parts_of_nothing, split_over_ten
from fedtree_audits.rigs.tiny import write_model
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics import estimators as est
from fedtree_audits.statistics.scores import Bools, Floats
from fedtree_audits.statistics.verdict import POWER, Check, Power, Result
from fedtree_dp import NoiseSource, PoissonGaussian, epsilon_of
from fedtree_secure.testing import Backbone, Job, Masking, Training, part_of

QUESTION = "What does another participant learn from what it is sent?"
VIEWS = ("trunk", "own cluster", "external expert")
ROUNDS, CANARIES, MOST_CANARIES = 10, 1600, 2400
FEW = 400  # are enough where a third of the noise is there
METHODS = 2
CONFIDENCE = 1 - 0.05 / (METHODS * len(VIEWS))
GUESSED = 0.2  # share of canaries that are guessed about, fixed here
LAYERS, TRUNK, WIDTH = 2, 1, 256
RECORDS = 200
BETA = 0.9  # of the Adam that moves nodes


@dataclass(frozen=True)
class Setup:
    """What is put together for a federation.

    Attributes:
        build: engine and sampler.
        alone: whether the other cluster is one client.
        shared: whether the clients share their noise: the event's is then each one's part.
        opening: entered around the run; a self-test removes a guard here.
    """

    build: Build = field(default_factory=Build)
    alone: bool = False
    shared: bool = False
    opening: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


@dataclass(frozen=True)
class View:
    """What one view showed.

    Attributes:
        scores: of each round, larger for canaries that were in its sum, shape (rounds, canaries).
            The first round of the external expert is left out: Adam's first move is a sign.
        included: the coins, shape (canaries,).
        drawn: whether the client's batch held the canary, shape of the scores.
    """

    scores: Floats
    included: Bools
    drawn: Bools


def sums_behind(values: Floats, learning_rate: float) -> Floats:
    """Return what Adam was given, up to a scale for each coordinate, from the values that it moved.

    Args:
        values: shape (rounds + 1, coordinates), the first row before the first round.
        learning_rate: of Adam (Kingma and Ba 2015, algorithm 1); the decays are torch's defaults.

    Returns:
        Shape (rounds, coordinates), each coordinate with a root mean square of 1. A move is the
        debiased momentum over the root of the debiased second moment. That root is taken as
        constant over the rounds: it is an average over all of them, and iterating the exact
        equations gained nothing.
    """
    moves = np.diff(values, axis=0) / -learning_rate
    momentum = moves * (1 - BETA ** np.arange(1, len(moves) + 1))[:, None]
    before = np.vstack([np.zeros_like(momentum[:1]), momentum[:-1]])
    given = (momentum - BETA * before) / (1 - BETA)
    return np.asarray(given / np.sqrt((given**2).mean(axis=0)).clip(min=1e-30))


def look(
    setup: Setup, event: PoissonGaussian, min_group: int, key: bytes, canaries: int
) -> dict[str, View]:
    """Run a federation and return what each view showed the onlooker.

    Args:
        setup: what is audited.
        event: rate and noise multiplier of a client's steps; the number of rounds is `ROUNDS`.
        min_group: of the masking; each cluster has as many clients.
        key: 32 bytes that all randomness comes from.
        canaries: coins tossed in each view.
    """
    names = tuple(f"c{i:03}" for i in range(2 * min_group))
    first = len(names) - 1 if setup.alone else min_group
    tree = two_clusters(names, TRUNK, LAYERS, first, 1 if setup.alone else min_group)
    with scratch() as place:
        job = Job(
            backbone=str(write_model(place / "model", "llama", layers=LAYERS, hidden=WIDTH)),
            privacy=ample(1e-6, shared=setup.shared),
            noise="shared" if setup.shared else "own",
            rounds=ROUNDS,
            task="causal-lm",
            masking=Masking(min_group=min_group, colluders=1),
            training=Training(records=RECORDS, sample_rate=event.sample_rate, max_length=16),
        )
        backbone = Backbone(job, device="cpu")
        noise = event.noise_multiplier  # the noise plan speaks of the honest members' together
        noise *= math.sqrt(job.masking.honest) if setup.shared else 1.0
        layout = backbone.layout()
        cut = layout.layers[TRUNK][0]
        places = dict(
            zip(
                VIEWS,
                (slice(0, cut), slice(cut, layout.length), slice(cut, layout.length)),
                strict=True,
            )
        )
        hosts = dict(zip(VIEWS, (names[1], names[2], names[-1]), strict=True))
        planted = {
            hosts[view]: _plant(
                setup.build,
                event.sample_rate,
                places[view],
                layout.length,
                canaries,
                key + bytes([i]),
            )
            for i, view in enumerate(VIEWS)
        }
        with setup.opening():
            held = run_federation(
                job,
                backbone,
                tree,
                place / "run",
                key,
                Attack(noise, planted, setup.build, names[0]),
            )
    return {
        view: _view(held, view, planted[hosts[view]], places[view], job.training.learning_rate)
        for view in VIEWS
    }


@dataclass(frozen=True)
class Evidence:
    """What of the run itself goes into a report.

    Attributes:
        hashes: of the files the settings came from.
        checks: made on the run's own files.
    """

    hashes: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


NOTHING = Evidence()


def audit_setup(
    setup: Setup,
    event: PoissonGaussian,
    delta: float,
    min_group: int,
    key: bytes,
    *,
    canaries: int = CANARIES,
    control: bool = True,
    evidence: Evidence = NOTHING,
) -> Result:
    """Audit one federation against an event.

    Args:
        setup: what is attacked.
        event: what was accounted for at each client.
        delta: of the claim.
        min_group: smallest group whose sum may be opened.
        key: 32 bytes that all randomness comes from.
        canaries: coins tossed in each view.
        control: whether a federation without noise is attacked as well, which must be caught.
        evidence: found elsewhere, to be reported as well.
    """
    masked = replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(min_group - 1))
    claims = {"masked": epsilon_of([masked], delta), "own": epsilon_of([event], delta)}
    seen = look(setup, event, min_group, key, canaries)
    found, figures = _attack(seen, event, masked, delta, claims)
    controls = {}
    if control:
        bare = look(_without_noise(setup), event, min_group, key, canaries)
        controls["clients without noise"] = not all(
            c.holds for c in _attack(bare, event, masked, delta, claims)[0]
        )
    coins = b"".join(seen[view].included.tobytes() for view in VIEWS)
    commitment = hashlib.sha256(hashlib.sha256(b"salt" + key).digest() + coins).hexdigest()
    return Result(
        audit="canary_client",
        question=QUESTION,
        claim=f"epsilon {claims['masked']:.4g} at delta {delta:g} over {event.steps} steps for "
        f"another participant, who sees sums over {min_group} clients or more; {claims['own']:.4g} "
        "if it saw one client alone",
        adversary=(
            "a participant that keeps every sum and expert that it is told, and knows every canary "
            "and when it was drawn"
        ),
        assumptions=(
            (
                "the code attacked here is the one installed where the run took place, on a small "
                "model and a given tree"
            ),
            "one local step a round; more steps between two releases show less of each",
            (
                "per round: equal noise in all rounds, Poisson batches (tested by the components "
                "audit)"
            ),
            (
                "the onlooker works alone: c colluders know c clients' noise, so min_group - c "
                "would take its place"
            ),
        ),
        checks=(*evidence.checks, *found),
        power=_power(seen, masked, delta, claims["masked"]),
        controls=controls,
        hashes={"coins commitment": commitment} | dict(evidence.hashes),
        figures=figures | {"claims": claims, "canaries": canaries, "rounds": ROUNDS},
    )


def _without_noise(setup: Setup) -> Setup:
    """Return what must be caught: clients that add nothing."""
    if setup.shared:
        return Setup(shared=True, opening=parts_of_nothing)
    return Setup(BUILDS["no noise"])


def audit_run(run: RunFolder) -> Result:
    """Attack a federation with the run's settings, and look at the groups that the run
    itself opened.
    """
    job = run.job
    shared = job.noise == "shared"
    plans = map(run.noise_written if shared else run.noise_plan, sorted(run.clients))
    noise = [part_of(job, p.rounds) if shared else p.rounds for p in plans if p.rounds]
    if not noise:
        raise MissingEvidence(
            f"the noise plans in {run.path} have no rounds: participants were sent no sum"
        )
    smallest, least = opened_groups(run), job.masking.min_group
    event = PoissonGaussian(
        min(noise), job.training.sample_rate, job.rounds * job.training.local_steps
    )
    return audit_setup(
        Setup(shared=shared),
        event,
        job.privacy.delta,
        least,
        os.urandom(32),
        canaries=_enough(event, least),
        evidence=Evidence(run.hashes("job.json", "summary.json"), (smallest,)),
    )


def opened_groups(run: RunFolder) -> Check:
    """Check that no sum that the run opened is over fewer than `min_group` clients.

    Raises:
        MissingEvidence: the summary lists no opened sum.
    """
    records, least = run.summary.get("rounds", []), run.job.masking.min_group
    opened = [len(names) for record in records for names in record.get("opened", {}).values()]
    if not opened:
        raise MissingEvidence(
            f"{run.path / 'summary.json'} lists no sum that was opened: participants were sent none"
        )
    return Check(
        "groups of the run",
        min(opened) >= least,
        f"the smallest opened one has {min(opened)} clients",
    )


def _plant(
    build: Build, rate: float, place: slice, length: int, canaries: int, key: bytes
) -> Planted:
    """Toss coins and draw directions that are zero outside `place`."""
    source = NoiseSource(hashlib.sha256(b"canaries" + key).digest())
    directions = np.zeros((canaries, length), dtype=np.float32)
    directions[:, place] = source.normal((canaries, place.stop - place.start)).numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    included = source.uniform(canaries) < 0.5
    return Planted(directions, included, build.sampler(int(included.sum()), rate, source))


def _view(held: Held, view: str, planted: Planted, place: slice, learning_rate: float) -> View:
    if view == VIEWS[2]:
        given, first = sums_behind(held.external[:, place], learning_rate), 1
    else:  # uploads are steps against the gradient
        given, first = -held.sums[:, place], 0
    scores = given @ planted.directions[:, place].astype(np.float64).T
    return View(scores[first:], planted.included, np.array(planted.drawn)[first:])


def _attack(
    seen: Mapping[str, View],
    event: PoissonGaussian,
    masked: PoissonGaussian,
    delta: float,
    claims: Mapping[str, float],
) -> tuple[list[Check], dict[str, Any]]:
    """Two bounds in each view; the one-run profile is that of the twin's own rounds, the
    other one of the run's.
    """
    twin = replace(masked, steps=ROUNDS)
    allowed = epsilon_of([twin], delta)
    inverse = est.profile_inverse(
        est.accountant_points([twin], list(np.linspace(0, 2 * allowed + 2, 81)))
    )
    checks, figures = [], {}
    for view, found in seen.items():
        summed = est.scores(found.scores.sum(axis=0), found.included)
        made = max(20, round(GUESSED * len(found.included)))
        outcome = est.guess(summed, made, order=np.random.default_rng(0))
        one_run = est.one_run_epsilon(outcome, delta, confidence=CONFIDENCE)
        refuted = est.refutes(outcome, inverse, confidence=CONFIDENCE)
        pooled = est.per_step_epsilon(
            est.scores(found.scores.ravel(), found.drawn.ravel()),
            event,
            delta,
            confidence=CONFIDENCE,
        )
        right = f"{outcome.correct} of {outcome.made} guesses right"
        checks += [
            Check(
                f"{view}: sum of a group",
                pooled <= claims["masked"],
                f"epsilon is at least {pooled:.4g}; {claims['masked']:.4g} with the noise of a "
                "group",
            ),
            Check(
                f"{view}: own noise",
                pooled <= claims["own"],
                f"at least {pooled:.4g}; claimed {claims['own']:.4g}",
            ),
            Check(
                f"{view}: one run, f-DP",
                not refuted,
                f"profile {'' if refuted else 'not '}refuted; {right}",
            ),
        ]
        figures[view] = {
            "per_round": pooled,
            "over_claim": pooled / claims["masked"],
            "one_run": one_run,
        }
    return checks, {"views": figures}


def _power(seen: Mapping[str, View], masked: PoissonGaussian, delta: float, claim: float) -> Power:
    """Of the pooled method in the view with the fewest draws: the noise noticed in nine of
    ten runs.
    """
    noise = math.inf
    for found in seen.values():
        first = max(2, int(found.drawn.sum()))
        second = max(2, found.drawn.size - first)
        error = math.sqrt(1 / first + 1 / second) * float(norm.ppf(CONFIDENCE) + norm.ppf(POWER))
        noise = min(noise, 1 / (1 / masked.noise_multiplier + error))
    detected = epsilon_of([replace(masked, noise_multiplier=noise)], delta)
    return Power(
        claim,
        detected,
        f"per round: noise of {noise:.3f} clipping norms, {masked.noise_multiplier:.3f} due",
    )


def _enough(event: PoissonGaussian, min_group: int) -> int:
    """Canaries whose pooled error is a quarter of the shift that the claim allows, within
    memory and time.
    """
    shift = 1 / (event.noise_multiplier * math.sqrt(min_group - 1))
    draws = (4 * (norm.ppf(CONFIDENCE) + norm.ppf(POWER)) / shift) ** 2
    return int(min(MOST_CANARIES, max(CANARIES, 2 * draws / (event.sample_rate * (ROUNDS - 1)))))


def _variant(setup: Setup, canaries: int = CANARIES) -> Variant:
    event = PoissonGaussian(1.0, 0.25, ROUNDS)

    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"canary_client/{seed}".encode()).digest()
        return audit_setup(
            setup, event, 1e-5, 3, key, canaries=canaries, control=False
        )  # the control is a variant of its own here

    return variant


AUDIT = Audit(
    name="canary_client",
    question=QUESTION,
    on_run=audit_run,
    correct=lambda seed: _variant(Setup(shared=seed % 3 == 2))(seed),
    parties=frozenset(),
    mutants={
        "a group of one": _variant(Setup(alone=True, opening=any_group_opens)),
        "no noise": _variant(Setup(BUILDS["no noise"])),
        "half the noise": _variant(Setup(BUILDS["half the noise"])),
        "shared noise split over too many": _variant(
            Setup(shared=True, opening=split_over_ten), canaries=FEW
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
