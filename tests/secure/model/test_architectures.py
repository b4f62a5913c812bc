"""What docs/models.md calls tested: per-record gradients of adapters, head and lam are exact."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import (
    CAUSAL,
    CLASSIFICATION,
    DECODERS,
    ENCODERS,
    REFUSED,
    write_model,
    write_words,
)
from small_jobs import make_job

from fedtree_dp import DPSGD, NoiseSource
from fedtree_secure import BackboneError, Lora
from fedtree_secure.client.parts import LocalModel, trainables
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.lower import lower_layers

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"
TASKS = {**dict.fromkeys(ENCODERS, CLASSIFICATION), **dict.fromkeys(DECODERS, CAUSAL)}
CLIP = 0.05


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("words") / "tokenizer")


def filled(backbone, outputs):
    """A client's values away from their start, where half of the gradients are zero."""
    state, rng = initial_state(backbone, outputs), np.random.default_rng(0)
    state.own = rng.normal(scale=0.2, size=state.own.shape).astype(np.float32)
    state.external = rng.normal(scale=0.2, size=state.own.shape).astype(np.float32)
    return state


def records(backbone, outputs):
    rng = np.random.default_rng(1)
    ids = torch.from_numpy(rng.integers(5, len(backbone.tokenizer), size=(3, 9)))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    labels = torch.from_numpy(rng.integers(max(outputs, 1), size=3))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_definition(backbone, parameters, batch):
    """The clipped sum, one record at a time by plain autograd, flattened."""
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for i in range(len(batch["labels"])):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        gradients = torch.autograd.grad(backbone.loss(backbone.model, one).sum(), parameters)
        flat = torch.cat([g.reshape(-1) for g in gradients])
        total += flat * min(1.0, CLIP / float(flat.norm()))
    return total


def by_the_engine(backbone, parameters, batch):
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    with DPSGD(
        backbone.model,
        torch.optim.SGD(parameters, lr=1.0),
        backbone.loss,
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=1.0,
        noise=NoiseSource.from_os(),
        physical_batch_size=2,
    ) as engine:
        engine.rehearse(batch)
        engine.step(batch)
    return before - torch.cat([p.detach().reshape(-1) for p in parameters])


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_clipped_gradients_are_exact(kind, words, tmp_path):
    task = TASKS[kind]
    folder = write_model(kind, task, (ENCODERS | DECODERS)[kind], words, tmp_path)
    job = make_job(folder, lora=Lora(r=2), task=task)
    backbone, outputs = Backbone(job), 0 if task == CAUSAL else 3
    model = LocalModel(outputs, (True, True), np.array([False, True]))
    with loaded_into(backbone, filled(backbone, outputs), outputs, model.mixing):
        backbone.model.double()
        parameters = trainables(backbone, job, model).all()
        batch = records(backbone, outputs)
        wanted = by_definition(backbone, parameters, batch)
        got = by_the_engine(backbone, parameters, batch)
        second = backbone.experts.by_layer[1][0].place
        assert lower_layers(backbone.model, second, job.training.max_length) is not None
    assert backbone.experts.depth == 2
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("kind", REFUSED)
def test_other_architectures_are_refused_with_what_to_do(kind, words, tmp_path):
    task, settings, told = REFUSED[kind]
    folder = write_model(kind, task, settings, words, tmp_path)
    with pytest.raises(BackboneError, match=told) as refused:
        Backbone(make_job(folder, lora=Lora(r=2), task=task))
    assert "\n" not in str(refused.value)


def test_the_document_lists_what_is_tested():
    text = DOCUMENT.read_text("utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for title, kinds in (
        ("Encoders", ENCODERS),
        ("Decoders", DECODERS),
        ("Refused", REFUSED),
    ):
        listed = re.findall(r"^\| `([\w-]+)` \|", sections[title], re.MULTILINE)
        assert listed[1:] == sorted(kinds), title  # below the head of the table
