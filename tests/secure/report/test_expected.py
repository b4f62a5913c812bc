"""What is said of adapters before anything is spent: where public numbers say so, and nowhere
else.
"""

import json
import math
from dataclasses import replace

import pytest
from small_jobs import make_job, write_job_file

from fedtree_dp import PrivacyBudget
from fedtree_dp.account.planner import signal_ratio
from fedtree_secure import Masking, Topology, Training
from fedtree_secure.agreed.noise_plan import NoisePlan
from fedtree_secure.model.sizes import known_pooling
from fedtree_secure.report.advice import FEATURES, NOISE, PAYS
from fedtree_secure.report.expected import noise_to_clip, of_features, of_noise
from fedtree_secure.report.priced_plan import price_job_file

ROWS = 60


def job_of(model="somewhere", **changes):
    return make_job(model, **changes)


def test_features_that_an_encoder_was_trained_to_give_leave_nothing_to_adapters():
    found = of_features(job_of(), "mean")
    assert (found.key, found.public) == (FEATURES, True)
    assert "rounds = 0 gives it the whole budget" in found.text


@pytest.mark.parametrize("pooling", ["native", "first", "last", ""])
def test_of_other_features_nothing_is_said(pooling):
    assert of_features(job_of(), pooling) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"training": Training(head_steps=0)},
        {"training": Training(head="frozen")},
        {"task": "causal-lm", "training": Training(head="frozen")},
    ],
)
def test_without_a_choice_between_head_and_adapters_nothing_is_said(changes):
    assert of_features(job_of(**changes), "mean") is None


@pytest.mark.parametrize("clients", [1, 3, 12])
def test_noise_is_weighed_in_the_mean_of_all_clients(clients):
    most = PAYS * math.sqrt(clients)
    assert of_noise(job_of(), 0.999 * most, clients) is None
    found = of_noise(job_of(), 1.001 * most, clients)
    assert (found.key, found.public) == (NOISE, True)
    assert f"0.45 times the clipping norm even among {clients} clients" in found.text
    assert "or rounds = 0" in found.text
    assert of_noise(job_of(rounds=0), 10 * most, clients) is None
    headless = of_noise(job_of(training=Training(head_steps=0)), 10 * most, clients)
    assert "rounds = 0" not in headless.text


def test_the_ratio_is_the_planners_and_with_shared_noise_that_of_one_part():
    job, plan, values = job_of(topology=Topology(source="one_group")), NoisePlan(rounds=2.0), 512
    whole = signal_ratio(2.0, values, job.training.sample_rate * ROWS)
    assert noise_to_clip(job, plan, ROWS, values) == pytest.approx(whole, rel=1e-9)
    budget = PrivacyBudget(epsilon=8, delta=1e-3, own_epsilon=14)
    shared = replace(job, noise="shared", privacy=budget, masking=Masking(min_group=5, colluders=1))
    assert noise_to_clip(shared, plan, ROWS, values) == pytest.approx(whole / 2, rel=1e-9)


def test_pooling_is_known_without_weights_where_a_file_says_it(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert known_pooling(job_of(tmp_path)) == "mean"
    asked = job_of(tmp_path, training=Training(pooling="native"))
    assert known_pooling(asked) == "native"
    causal = job_of(tmp_path, task="causal-lm", training=Training(head="frozen"))
    assert known_pooling(causal) == ""
    path.unlink()
    assert known_pooling(job_of(tmp_path)) == ""


@pytest.mark.parametrize(
    ("epsilon", "pooling", "said"),
    [
        (0.2, "native", [NOISE]),
        (0.2, "mean", [FEATURES, NOISE]),
        (200, "mean", [FEATURES]),
        (200, "native", []),
    ],
)
def test_the_planner_says_it_of_a_job_file(tiny_bert, tmp_path, epsilon, pooling, said):
    path = write_job_file(tmp_path, tiny_bert, 4)
    text = path.read_text().replace("epsilon = 8", f"epsilon = {epsilon}")
    path.write_text(text.replace("[training]", f'[training]\npooling = "{pooling}"'))
    (priced,) = price_job_file(path)
    assert [found.key for found in priced.advice] == said
    assert all(f"Advice: {found.text}" in priced.table().caption for found in priced.advice)
    (blind,) = price_job_file(path, parameters=1)  # nothing of the model is read then
    assert FEATURES not in [found.key for found in blind.advice]
