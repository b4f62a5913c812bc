"""The mixed layer: forward after the paper, exact per-record gradients of lam, and the fold into
one adapter.
"""

import math

import numpy as np
import pytest
import torch
from closeness import close
from peft import PeftModel
from small_jobs import make_job

from fedtree_dp import DPSGD, NoiseSource
from fedtree_secure import BackboneError, Lora, Topology, Training
from fedtree_secure.client.adapter import on_grid, save_adapter
from fedtree_secure.client.parts import LocalModel, trainables
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.model.backbone import Backbone


def random_belongings(backbone, outputs, seed=0):
    mine = initial_state(backbone, outputs)
    rng = np.random.default_rng(seed)
    mine.own = rng.normal(scale=0.2, size=mine.own.shape).astype(np.float32)
    mine.external = rng.normal(scale=0.2, size=mine.own.shape).astype(np.float32)
    mine.mixing_logits = rng.normal(size=mine.mixing_logits.shape).astype(np.float32)
    for name, value in mine.head.items():
        mine.head[name] = value + rng.normal(scale=0.02, size=value.shape).astype(np.float32)
    return mine


def batch_of(backbone, n=5, seed=0, labels=3):
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(5, len(backbone.tokenizer), size=(n, 9)))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    ids[0, 6:] = backbone.pad
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.from_numpy(rng.integers(labels, size=n)),
    }


MIXING = np.array([False, True, True, False])


def test_forward_is_the_papers_formula(tiny_bert):
    backbone = Backbone(make_job(tiny_bert, lora=Lora(r=2, alpha=4.0, freeze_a=False)))
    with loaded_into(backbone, random_belongings(backbone, 3), 3, MIXING):
        module, mix = backbone.experts.by_layer[1][0], backbone.experts.mixes[1]
        x = torch.randn(2, 7, 32)
        parts = {
            n: module.lora_B[n].weight @ module.lora_A[n].weight * 2.0
            for n in ("cluster", "external")
        }
        lam = torch.sigmoid(mix.logit)
        wanted = (
            module.base_layer(x) + x @ (lam * parts["cluster"] + (1 - lam) * parts["external"]).T
        )
        assert close(module(x), wanted, 1e-5)


@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_clipped_gradients_equal_a_loop_over_records(tiny_bert, tiny_llama, freeze_a, kind):
    """Adapters, lam and head together, in float64, to 1e-6 relative; sigma is 0 so that the sum
    itself is seen.
    """
    causal = kind == "llama"
    job = make_job(
        tiny_llama if causal else tiny_bert,
        lora=Lora(r=2, freeze_a=freeze_a),
        task="causal-lm" if causal else "classification",
    )
    backbone = Backbone(job)
    outputs, depth = (0 if causal else 3), backbone.experts.depth
    mixing = MIXING[:depth]
    with loaded_into(backbone, random_belongings(backbone, outputs), outputs, mixing):
        backbone.model.double()
        parameters = trainables(backbone, job, LocalModel(outputs, (True,) * depth, mixing)).all()
        batch, clip = batch_of(backbone), 0.05
        wanted = [torch.zeros_like(p) for p in parameters]
        for i in range(5):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            gradients = torch.autograd.grad(backbone.loss(backbone.model, one).sum(), parameters)
            norm = torch.sqrt(sum(g.square().sum() for g in gradients))
            wanted = [
                w + g * min(1.0, clip / float(norm)) for w, g in zip(wanted, gradients, strict=True)
            ]
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        with DPSGD(
            backbone.model,
            optimizer,
            backbone.loss,
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=1.0,
            noise=NoiseSource.from_os(),
            physical_batch_size=3,
        ) as engine:
            engine.rehearse(batch)
            engine.step(batch)
        got = torch.cat(
            [(a - p.detach()).reshape(-1) for a, p in zip(before, parameters, strict=True)]
        )
        flat = torch.cat([w.reshape(-1) for w in wanted])
        assert float((got - flat).norm() / flat.norm()) < 1e-6
        backbone.model.float()
        lam = [p for p in parameters if p.numel() == 1]
        assert len(lam) == int(mixing.sum())


def test_a_delivered_folder_gives_the_same_logits(tiny_bert, tmp_path):
    from transformers import AutoModelForSequenceClassification

    backbone = Backbone(make_job(tiny_bert))
    batch = batch_of(backbone)
    with loaded_into(backbone, random_belongings(backbone, 3), 3, MIXING), torch.no_grad():
        ours = backbone.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        save_adapter(backbone, tmp_path / "a", ("x", "y", "z"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    plain = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    with torch.no_grad():
        theirs = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert close(theirs, ours, 1e-5)
    assert float(ours.std()) > 0.01


def test_a_delivered_language_model_gives_the_same_logits(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    backbone = Backbone(make_job(tiny_llama, task="causal-lm"))
    batch = batch_of(backbone)
    with loaded_into(backbone, random_belongings(backbone, 0), 0, MIXING[:3]), torch.no_grad():
        ours = backbone.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        save_adapter(backbone, tmp_path / "a", ())
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "a"
    ).eval()
    with torch.no_grad():
        theirs = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert close(theirs, ours, 1e-5)


def test_layers_that_the_checkpoint_lacks_are_delivered(tiny_bert, tmp_path):
    """A pooler that was initialised at random would be another one in the next process."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    folder = tmp_path / "no-pooler"
    AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        if (tiny_bert / name).exists():
            (folder / name).write_bytes((tiny_bert / name).read_bytes())
    backbone = Backbone(make_job(folder, training=Training(max_length=16, pooling="native")))
    assert any("pooler" in name for name in backbone.fresh)
    batch = batch_of(backbone)
    with loaded_into(backbone, random_belongings(backbone, 3), 3, MIXING), torch.no_grad():
        ours = backbone.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        save_adapter(backbone, tmp_path / "a", ("x", "y", "z"))
    torch.manual_seed(12345)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    with torch.no_grad():
        plain = PeftModel.from_pretrained(base, tmp_path / "a").eval()
        theirs = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert close(theirs, ours, 1e-5)


@pytest.mark.parametrize("settings", [{}, {"mixing_weight": 0.25}])
def test_lam_starts_where_the_job_says(tiny_bert, settings):
    topology = Topology(**settings)
    backbone = Backbone(make_job(tiny_bert, topology=topology))
    every = np.ones(backbone.experts.depth, dtype=bool)
    with loaded_into(backbone, initial_state(backbone, 2), 2, every):
        found = [float(mix.lam.detach()) for mix in backbone.experts.mixes]
    assert found == pytest.approx([topology.mixing_weight] * len(every))


def test_nothing_of_a_client_stays_behind(tiny_bert):
    backbone = Backbone(make_job(tiny_bert))
    batch = batch_of(backbone)

    def logits(mine, mixing):
        with loaded_into(backbone, mine, 3, mixing), torch.no_grad():
            return backbone.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits

    first = logits(random_belongings(backbone, 3, seed=1), MIXING)
    logits(random_belongings(backbone, 3, seed=2), ~MIXING)
    torch.testing.assert_close(
        logits(random_belongings(backbone, 3, seed=1), MIXING), first, rtol=0, atol=0
    )


def test_a_model_without_the_targets_is_refused(tiny_bert):
    with pytest.raises(BackboneError, match=r"q_proj.*query"):
        Backbone(make_job(tiny_bert, lora=Lora(targets=("q_proj",))))


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="no model folder"):
        Backbone(make_job(tmp_path / "nothing"))


@pytest.mark.parametrize("scale", [1e-6, 0.03, 1.0, 700.0])
def test_what_is_delivered_lies_on_a_grid_of_22_bits(scale):
    values = scale * torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    rounded = on_grid(values)
    assert rounded.dtype == values.dtype
    step = 2.0 ** (math.floor(math.log2(float(values.abs().max()))) + 1 - 22)
    assert torch.equal(torch.round(rounded.double() / step) * step, rounded.double())
    assert float((rounded - values).abs().max()) <= step / 2
    # without the rounding the low bits are there: this test can fail
    assert not torch.equal(torch.round(values.double() / step) * step, values.double())
    assert torch.equal(on_grid(torch.zeros(3)), torch.zeros(3))
    assert on_grid(values.t()).is_contiguous()


def test_adapters_in_the_last_layers_only(tiny_bert, tmp_path):
    """Lower layers stay as they were, exchange nothing, and the delivered adapter loads without
    them.
    """
    from transformers import AutoModelForSequenceClassification

    whole = Backbone(make_job(tiny_bert))
    backbone = Backbone(make_job(tiny_bert, lora=Lora(r=2, alpha=4.0, last_layers=2)))
    assert (whole.experts.indices, backbone.experts.indices) == ((0, 1, 2, 3), (2, 3))
    assert backbone.layout().length * 2 == whole.layout().length
    assert backbone.digest != whole.digest
    mine = initial_state(backbone, 2)
    mine.own += 0.3
    inputs = {
        "input_ids": torch.tensor([[6, 9, 12, 7]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    with loaded_into(backbone, mine, 2, np.zeros(2, dtype=bool)), torch.no_grad():
        expected = backbone.model(**inputs, output_hidden_states=True)
        save_adapter(backbone, tmp_path, ("a", "b"))
    with torch.no_grad():
        frozen = whole.model(**inputs, output_hidden_states=True).hidden_states
    assert close(expected.hidden_states[2], frozen[2], 1e-6)
    assert not close(expected.hidden_states[3], frozen[3], 1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert {
        int(n.split("layer.")[1][0]) for n, _ in loaded.named_modules() if n.endswith("lora_A")
    } == {2, 3}
    with torch.no_grad():
        assert close(loaded(**inputs).logits, expected.logits, 1e-5)


def test_more_last_layers_than_there_are_is_refused(tiny_bert):
    with pytest.raises(BackboneError, match="last_layers is 5; the backbone has 4"):
        Backbone(make_job(tiny_bert, lora=Lora(last_layers=5)))
