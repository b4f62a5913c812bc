"""Heads from class sums: who chooses them, what they cost, and which head follows."""

import dataclasses
import os

import numpy as np
import pytest
from small_jobs import make_job

from fedtree_dp import Gaussian, PoissonGaussian, PrivacyBudget
from fedtree_secagg import Identity, Node, Roster
from fedtree_secure import ConfigurationError, Topology, Training
from fedtree_secure.agreed.class_sums import (
    ABSENT,
    COUNT_SHARE,
    LARGEST_SUM,
    LARGEST_VALUE,
    _likely,
    classes_in,
    head_of,
    take_sum,
    upload_of,
)
from fedtree_secure.agreed.head_release import (
    epsilon_of_head,
    head_release,
    head_stage,
)
from fedtree_secure.agreed.moves import start
from fedtree_secure.agreed.noise_plan import events_of, plan_noise, sums_noise
from fedtree_secure.agreed.round_plan import grid_bits, largest_change, reach_of_parts
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout

WIDTH, CLASSES = 5, 3
LAYOUT = Layout(((0, 10),), ((10, 10 + CLASSES * (WIDTH + 1)),))
FACTS = ModelFacts(b"", LAYOUT, WIDTH, 1, (0,), np.full(LAYOUT.length, 0.1, np.float32))
HEAD = Node("head-x", ("a", "b", "c"), LAYOUT.heads)


def job_of(*, epsilon=8.0, records=60, rounds=0, **training):
    settings = {"sample_rate": 1.0, "head_steps": 100, "max_length": 16, **training}
    return make_job(
        "m",
        privacy=PrivacyBudget(epsilon=epsilon, delta=1e-3),
        rounds=rounds,
        training=Training(records=records, **settings),
    )


SUMS = {"head_release": "class_sums"}


# --- who chooses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "way"),
    [
        (job_of(), "average"),
        (job_of(epsilon=0.1), "average"),
        (job_of(**SUMS), "class_sums"),
        (job_of(epsilon=0.1, head_release="average"), "average"),
        (job_of(epsilon=0.1, head="local"), "none"),
        (job_of(epsilon=0.1, head_steps=0), "none"),
    ],
)
def test_the_way_is_the_jobs_and_auto_is_the_average(job, way):
    assert head_release(job).way == way
    assert head_release(job).why


def test_the_reason_names_the_numbers_that_it_is_about():
    found = head_release(job_of(epsilon=0.5, records=700))
    assert "epsilon of the head is about 0.5 and 700 records are declared" in found.why
    assert "class sums were level with it on average (" in found.why
    assert "class sums were behind (" in head_release(job_of(epsilon=3)).why


def test_rounds_leave_the_head_less():
    """As the noise that is calibrated says: epsilon of the head's charge alone is about that."""
    from fedtree_dp import epsilon_of

    job = job_of(rounds=20)
    plan = plan_noise(dataclasses.replace(job, topology=Topology(source="one_group")), job.privacy)
    alone = epsilon_of([PoissonGaussian(plan.head, 1.0, 100)], job.privacy.delta)
    assert epsilon_of_head(job) < epsilon_of_head(job_of()) == 8.0
    assert epsilon_of_head(job) == pytest.approx(alone, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_release": "sums"}, "allowed: auto, average, class_sums"),
        ({**SUMS, "head": "local"}, "unless heads are shared"),
        ({**SUMS, "head_steps": 0}, "head_steps above 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        Training(**changes)


def test_class_sums_of_a_job_without_heads_or_with_a_warm_up_are_refused():
    training = Training(**SUMS)
    with pytest.raises(ConfigurationError, match="for causal-lm, which has no head"):
        make_job("m", task="causal-lm", training=training)
    with pytest.raises(ConfigurationError, match="because its merge has"):
        make_job("m", training=training, topology=Topology(source="lora_b"))


# --- what is pinned, and what it costs ------------------------------------------------------------


def test_a_job_that_does_not_say_reads_and_hashes_as_before():
    assert "head_release" not in job_of().to_dict()["training"]
    assert job_of(**SUMS).to_dict()["training"]["head_release"] == "class_sums"
    assert job_of(**SUMS).digest() != job_of().digest()


def test_what_was_chosen_is_part_of_the_terms(monkeypatch):
    """Two versions whose rules differ compute nothing together, though their jobs are equal."""
    from fedtree_secure.agreed import terms as pinned

    roster = Roster({n: Identity.generate(os.urandom(32)).public_bytes for n in "abcd"})
    job = job_of(**SUMS)
    ours = Terms(job, roster, bytes(32), "run").digest
    monkeypatch.setattr(pinned, "sums_noise", lambda _: 2 * sums_noise(job))
    assert Terms(job, roster, bytes(32), "run").digest != ours
    monkeypatch.setattr(pinned, "sums_classes", lambda _: False)
    assert Terms(job, roster, bytes(32), "run").digest != ours


def test_the_rounds_have_the_noise_that_they_would_have_beside_steps():
    steps, sums = job_of(rounds=3), job_of(rounds=3, **SUMS)
    plans = [plan_noise(job, job.privacy) for job in (steps, sums)]
    assert plans[0].rounds == pytest.approx(plans[1].rounds, rel=2e-3)
    assert plans[1].head == pytest.approx(plans[0].head / 10, rel=2e-3)
    (charged,) = [e for e in events_of(sums, plans[1]) if isinstance(e, Gaussian)][-1:]
    assert charged == Gaussian(plans[1].head)
    sampled = job_of(head_sample_rate=0.5, **SUMS)
    assert head_stage(sampled) == Gaussian(2.0 / (0.5 * 10))


def test_noise_that_rounds_share_is_none_of_the_class_sums():
    """Every member's release has its own full noise: nobody counts on others for it."""
    job = dataclasses.replace(
        job_of(rounds=3, **SUMS),
        noise="shared",
        privacy=PrivacyBudget(epsilon=8, delta=1e-3, own_epsilon=16),
        topology=Topology(source="one_group"),
    )
    plan = plan_noise(job, job.privacy)
    head, rounds = events_of(job, plan)
    assert head == Gaussian(plan.head)
    assert rounds.mechanism == "shared_poisson_gaussian"
    assert plan.head >= 0.2 * plan.rounds * (1 - 1e-5)


def test_the_merge_has_room_for_the_sums_and_reaches_no_further_than_a_head():
    job = job_of(**SUMS)
    assert largest_change(job, 1.0, 60, merge=True) == LARGEST_SUM
    assert largest_change(job, 1.0, 180, merge=True) == 3 * LARGEST_SUM
    assert grid_bits(job, LARGEST_SUM, 5, merge=True) == 29
    bounds = reach_of_parts(job, LAYOUT, 1)
    assert (bounds[:10] == 0).all()
    assert (bounds[10:] == LARGEST_VALUE).all()


# --- the head -------------------------------------------------------------------------------------


def sums_of(means, counts):
    """Joint sums of classes with these means, as they stand in the layout."""
    vectors = np.sqrt(1 - COUNT_SHARE**2) * np.asarray(means) * np.asarray(counts)[:, None]
    return upload_of(np.c_[vectors, COUNT_SHARE * np.asarray(counts, dtype=float)], 60)


def scores(head, vector):
    weights, biases = head[:-CLASSES].reshape(CLASSES, WIDTH), head[-CLASSES:]
    return weights.astype(float) @ vector + biases


MEANS = 0.6 * np.eye(CLASSES, WIDTH)


def test_the_head_says_the_nearest_mean_whatever_the_sums_are_over():
    head = head_of(sums_of(MEANS, [40.0, 50.0, 30.0]), CLASSES, 0.0)
    assert head.dtype == np.float32
    assert [int(scores(head, 3 * mean).argmax()) for mean in MEANS] == [0, 1, 2]
    doubled = head_of(2 * sums_of(MEANS, [40.0, 50.0, 30.0]), CLASSES, 0.0)
    np.testing.assert_allclose(doubled, head, rtol=1e-6)


@pytest.mark.parametrize("deviation", [0.0, 0.02])
@pytest.mark.parametrize("count", [0.0, -9.0, 1.0])
def test_a_class_that_nobody_has_is_never_said(count, deviation):
    """Not even where noise has given it a long vector."""
    means = MEANS.copy()
    means[2] = [40.0, -9.0, 3.0, 9.0, 1.0]
    head = head_of(sums_of(means, [50.0, 40.0, count]), CLASSES, deviation)
    assert head[-1] == np.float32(ABSENT)
    assert not head[2 * WIDTH : 3 * WIDTH].any()
    for vector in 6 * np.random.default_rng(0).normal(size=(200, WIDTH)) / 5**0.5:
        assert scores(head, vector).argmax() != 2


def test_noise_is_taken_off_so_far_as_it_is_known_to_be_there():
    rng = np.random.default_rng(1)
    sums, deviation, gaps = sums_of(MEANS, [40.0, 50.0, 30.0]), 0.1, []
    true = head_of(sums, CLASSES, 0.0)[:-CLASSES]
    for _ in range(60):
        noise = rng.normal(scale=deviation, size=len(sums))
        noise[-CLASSES:] = 0.0  # all classes stay known
        heads = [head_of(sums + noise, CLASSES, d)[:-CLASSES] for d in (0.0, deviation)]
        gaps.append([np.linalg.norm(head - true) for head in heads])
    blind, knowing = np.mean(gaps, axis=0)
    assert knowing < 0.95 * blind


def test_numbers_are_drawn_to_their_mean_so_far_as_noise_spreads_them():
    raw = np.array([40.0, 50.0, 30.0])  # of variance 100
    assert np.array_equal(_likely(raw, 0.0), raw)
    np.testing.assert_allclose(_likely(raw, 5.0), [40.0, 47.5, 32.5])
    np.testing.assert_allclose(_likely(raw, 50.0), 40.0)


def test_no_mean_is_longer_than_those_of_unit_vectors_can_be():
    means = MEANS.copy()
    means[0] *= 50  # noise
    head = head_of(sums_of(means, [40.0, 40.0, 40.0]), CLASSES, 0.0)
    lengths = np.linalg.norm(head[: CLASSES * WIDTH].reshape(CLASSES, WIDTH), axis=1)
    assert lengths[0] / lengths[1] == pytest.approx(1 / 0.6, rel=1e-5)


@pytest.mark.parametrize(
    "mean",
    [np.zeros(18), np.full(18, -1.0), np.full(18, np.nan), np.full(18, np.inf), np.full(18, 1e300)],
)
def test_any_sum_makes_a_finite_head_within_reach(mean):
    with np.errstate(all="ignore"):
        head = head_of(mean, CLASSES, 0.01)
    assert np.isfinite(head).all()
    assert np.abs(head).max() <= LARGEST_VALUE


def test_only_a_merge_of_heads_makes_one():
    mean = sums_of(MEANS, [40.0, 50.0, 30.0])
    values = start(HEAD, FACTS.initial)
    job = job_of(**SUMS)
    take_sum(job, FACTS, HEAD, values, mean, survivors=4, merge=True)
    assert np.array_equal(values.values, head_of(mean, CLASSES, sums_noise(job) / (60 * 2)))
    values = start(HEAD, FACTS.initial)
    take_sum(job_of(), FACTS, HEAD, values, mean, survivors=4, merge=True)
    np.testing.assert_allclose(values.values, 0.1 + mean, rtol=1e-6)
    layer = Node("node-x", ("a", "b", "c"), LAYOUT.layers)
    values = start(layer, FACTS.initial)
    take_sum(job_of(**SUMS), FACTS, layer, values, np.ones(10), survivors=4, merge=False)
    assert values.steps == 1


def test_the_form_of_a_head_is_known_by_its_width():
    assert classes_in(HEAD.width, FACTS) == CLASSES
    assert classes_in(CLASSES * WIDTH, FACTS) == 0
