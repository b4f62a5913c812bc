"""Every mechanism that reads rows, without noise: what a whole unit moves, against a loop over
units.
"""

import dataclasses

import numpy as np
import pytest
import torch
from small_jobs import make_job
from unit_rows import UNIT, unit_clients, unit_job, without

from fedtree_dp import NoiseSource
from fedtree_secure import ConfigurationError, Training
from fedtree_secure.client.data import prepare
from fedtree_secure.client.fingerprint import fingerprint
from fedtree_secure.client.head import train_head
from fedtree_secure.client.mechanism import Mechanism
from fedtree_secure.client.parts import LocalModel
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.client.training import RoundTrainer
from fedtree_secure.model.backbone import Backbone

NAME = "patient 3"
CLIP = 0.5


@pytest.fixture(scope="module", params=["bert", "llama"])
def setting(request, tiny_bert, tiny_llama):
    """A backbone, a client's rows, and the rows without one patient."""
    causal = request.param == "llama"
    job = unit_job(
        tiny_llama if causal else tiny_bert,
        task="causal-lm" if causal else "classification",
        training=Training(records=20, head_steps=4, max_length=16, max_grad_norm=CLIP),
    )
    backbone, (client, *_) = Backbone(job, device="cpu"), unit_clients()
    assert client.train["patient_id"].count(NAME) > 1
    whole, less = (prepare(c, job, backbone.tokenizer) for c in (client, without(client, NAME)))
    assert len(whole.train) < 60  # somebody has more rows than four
    return backbone, whole, less


def change(backbone, data, **settings):
    """The sum that a round's step is made of: its mean gradient, times the divisor."""
    depth, outputs = backbone.experts.depth, len(data.label_set)
    model = LocalModel(outputs, (True,) * depth, np.zeros(depth, dtype=bool))
    state = initial_state(backbone, outputs)
    job = dataclasses.replace(backbone.job, **settings)
    found = RoundTrainer(backbone, job).train(
        data,
        state,
        model,
        Mechanism(0.0, records=20, steps=1),
        NoiseSource.from_os(),
        upload_gradient=True,
    )
    return 20.0 * found.astype(np.float64)


def test_units_move_a_round_s_step_by_at_most_one_clip(setting):
    backbone, whole, less = setting
    moved = np.linalg.norm(change(backbone, whole) - change(backbone, less))
    assert 0.1 * CLIP < moved <= CLIP * (1 + 1e-5)


def test_units_of_a_round_s_step_are_a_loop_over_units(setting):
    """One unit after the other, each in a step of its own, against all in one."""
    backbone, whole, _ = setting
    total = np.zeros_like(change(backbone, whole))
    for rows in whole.train.members[:6]:
        table = dataclasses.replace(
            whole.train,
            tokens=tuple(whole.train.tokens[i] for i in rows),
            labels=None if whole.train.labels is None else whole.train.labels[list(rows)],
            units=np.zeros(len(rows), dtype=np.int64),
        )
        alone = change(backbone, dataclasses.replace(whole, train=table))
        assert np.linalg.norm(alone) <= CLIP * (1 + 1e-5)
        total += alone
    first = [i for rows in whole.train.members[:6] for i in rows]
    table = dataclasses.replace(
        whole.train,
        tokens=tuple(whole.train.tokens[i] for i in first),
        labels=None if whole.train.labels is None else whole.train.labels[first],
        units=np.repeat(np.arange(6), [len(rows) for rows in whole.train.members[:6]]),
    )
    together = change(backbone, dataclasses.replace(whole, train=table))
    assert np.linalg.norm(together - total) < 1e-5 * np.linalg.norm(total)


def test_units_are_drawn_together(setting, monkeypatch):
    """A coin falls for a patient, never for a row."""
    backbone, whole, _ = setting
    seen, shipped = [], type(whole.train).batch

    def batch(self, indices, *given, **more):
        seen.extend(int(i) for i in indices if i >= 0)
        return shipped(self, indices, *given, **more)

    monkeypatch.setattr(type(whole.train), "batch", batch)
    settings = dataclasses.replace(backbone.job.training, sample_rate=0.5)
    change(backbone, whole, training=settings)
    assert 0 < len(seen) < len(whole.train)
    assert len(set(seen)) == len(seen)
    for rows in whole.train.members:
        assert set(rows) <= set(seen) or not set(rows) & set(seen)


def test_units_move_a_fingerprint_by_one_contribution(setting):
    backbone, whole, less = setting
    with loaded_into(
        backbone,
        initial_state(backbone, len(whole.label_set)),
        len(whole.label_set),
        np.zeros(backbone.experts.depth, dtype=bool),
    ):
        means = backbone.observe(whole.train).means
        means_less = backbone.observe(less.train).means

    def released(values, units):
        return fingerprint(
            values,
            backbone.layer_reference,
            noise_multiplier=0.0,
            records=1,
            noise=NoiseSource.from_os(),
            units=units,
        )

    full = released(means, whole.train.units)
    moved = np.linalg.norm(full - released(means_less, less.train.units))
    assert moved == pytest.approx(1.0, abs=1e-4)
    # by rows, the same patient moves it by as many as it has
    by_rows = np.linalg.norm(released(means, None) - released(means_less, None))
    assert by_rows > 1.5
    centre, scale = backbone.layer_reference
    vectors = ((means - centre) / scale[:, None]).reshape(len(means), -1)
    loop = sum(
        (total := vectors[list(rows)].sum(axis=0)) / np.linalg.norm(total)
        for rows in whole.train.members
    )
    assert np.allclose(full.reshape(-1), loop, rtol=1e-6, atol=1e-6)
    broken = means.copy()
    broken[whole.train.members[3][0]] = np.nan
    assert np.isfinite(released(broken, whole.train.units)).all()


def test_units_of_the_head_are_clipped_together():
    rng = np.random.default_rng(3)
    features = torch.from_numpy(rng.normal(size=(14, 5))).float() * 3
    labels = rng.integers(3, size=14)
    members = ((0, 1, 2, 3), (4,), (5, 9), (6, 7, 8, 10, 11, 12, 13))
    job = make_job("b", training=Training(records=4, max_grad_norm=CLIP, head_steps=1), **UNIT)

    def stepped(members):
        head = torch.nn.Linear(5, 3)
        for p in head.parameters():
            torch.nn.init.zeros_(p)
        seen = []

        class Seen(torch.optim.Adam):
            def step(self, closure=None):
                given = [p.grad for group in self.param_groups for p in group["params"]]
                seen.append([g.clone() for g in given])
                return super().step(closure)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "Adam", Seen)
            train_head(
                *(features, labels, head, job, Mechanism(0.0, 4, 1), NoiseSource.from_os()),
                lambda: None,
                members,
            )
        return torch.cat([4.0 * g.flatten() for g in seen[-1]])

    expected = torch.zeros(18)
    for rows in members:
        head = torch.nn.Linear(5, 3)
        for p in head.parameters():
            torch.nn.init.zeros_(p)
        chosen, right = features[list(rows)], torch.from_numpy(labels[list(rows)])
        torch.nn.functional.cross_entropy(head(chosen), right, reduction="sum").backward()
        flat = torch.cat([p.grad.flatten() for p in head.parameters()])
        expected += flat * min(1.0, CLIP / float(flat.norm()))
    assert torch.allclose(stepped(members), expected, atol=1e-5)
    assert (stepped(members) - stepped(members[:3])).norm() <= CLIP * (1 + 1e-5)


def test_units_that_the_job_does_not_protect_are_refused_and_missing_ones_too(setting):
    backbone, whole, _ = setting
    bare = dataclasses.replace(whole, train=dataclasses.replace(whole.train, units=None))
    with pytest.raises(ConfigurationError, match="have no units; prepare them for this job"):
        change(backbone, bare)
    with pytest.raises(ConfigurationError, match="protects records, and the rows have"):
        change(backbone, whole, unit=None, max_per_unit=None)
    for job, members in ((make_job("b"), ((0,), (1,))), (make_job("b", **UNIT), None)):
        with pytest.raises(ConfigurationError, match="prepare them for this job"):
            train_head(
                *(torch.zeros(2, 3), np.zeros(2, dtype=np.int64), torch.nn.Linear(3, 2), job),
                *(Mechanism(0.0, 2, 1), NoiseSource.from_os(), lambda: None, members),
            )
