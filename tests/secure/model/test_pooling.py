"""What the head reads of an encoder, where that comes from, and that the delivered form agrees."""

import json
import shutil

import numpy as np
import pytest
import torch
from closeness import close
from safetensors.torch import load_file
from small_jobs import make_job, rows

from fedtree_secure import BackboneError, ConfigurationError, Training, load_adapter
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.state import initial_state, loaded_into
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.pooling import PooledClassifier, pooled
from fedtree_secure.model.rows import Table, tokenise

MODES = {
    "mean": "pooling_mode_mean_tokens",
    "first": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}


def with_pooling(folder, place, **modes):
    """A copy of a checkpoint as sentence-transformers would have saved it."""
    shutil.copytree(folder, place)
    (place / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 32, "include_prompt": True, **modes}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return place


def backbone_of(folder, pooling="auto"):
    return Backbone(make_job(folder, training=Training(max_length=16, pooling=pooling)), "cpu")


@pytest.mark.parametrize("how", MODES)
def test_padding_and_other_records_do_not_reach_a_pooled_vector(how):
    states, mask = torch.randn(3, 6, 4), torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    alone = pooled(states[1:2, :4], mask[1:2, :4], how)
    states[1, 4:] = 1e6
    states[0] = -7.0
    assert close(pooled(states, mask, how)[1:2], alone, 1e-6)
    assert close(alone.norm(dim=-1), torch.ones(1), 1e-6)


@pytest.mark.parametrize(("how", "key"), MODES.items())
def test_a_checkpoint_says_what_it_was_trained_for(tiny_bert, tmp_path, how, key):
    modes = {name: name == key for name in MODES.values()}
    backbone = backbone_of(with_pooling(tiny_bert, tmp_path / "model", **modes))
    assert backbone.pooling == how
    assert isinstance(backbone.model, PooledClassifier)


def test_without_a_word_of_it_a_pretrained_classifier_is_kept_and_a_fresh_one_is_not(
    tiny_bert, tiny_llama, tmp_path
):
    from transformers import BertModel

    assert backbone_of(tiny_bert).pooling == "native"  # its pooler is in the checkpoint
    assert backbone_of(tiny_llama).pooling == "native"  # a decoder: its last token
    shutil.copytree(tiny_bert, tmp_path / "bare")
    BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    assert backbone_of(tmp_path / "bare").pooling == "mean"


@pytest.mark.parametrize(
    "modes", [{"pooling_mode_max_tokens": True}, {}, dict.fromkeys(MODES.values(), True)]
)
def test_a_pooling_that_is_not_offered_is_refused(tiny_bert, tmp_path, modes):
    folder = with_pooling(tiny_bert, tmp_path / "model", **modes)
    with pytest.raises(BackboneError, match=r"allowed: one of .*Set training\.pooling"):
        backbone_of(folder)
    assert backbone_of(folder, "mean").pooling == "mean"  # said by the job


def test_a_pooling_that_nobody_knows_is_refused():
    with pytest.raises(ConfigurationError, match=r"training\.pooling is 'max'"):
        Training(pooling="max")


def test_another_pooling_is_another_model(tiny_bert):
    assert backbone_of(tiny_bert, "mean").digest != backbone_of(tiny_bert, "first").digest


@pytest.mark.parametrize("how", MODES)
def test_features_are_the_pooled_states_of_the_plain_encoder(tiny_bert, how):
    from transformers import AutoModel

    backbone = backbone_of(tiny_bert, how)
    texts = list(rows(0, 9, 3)["text"])
    table = Table(tokenise(texts, backbone.tokenizer, backbone.job), None)
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        for row, found in zip(table.tokens, backbone.observe(table).features, strict=True):
            states = encoder(torch.tensor([row])).last_hidden_state[0]
            wanted = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[how]
            assert close(found, wanted / wanted.norm(), 1e-5)


@pytest.mark.parametrize("how", [*MODES, "native"])
def test_a_delivered_adapter_gives_the_same_logits(tiny_bert, tmp_path, how):
    backbone, labels = backbone_of(tiny_bert, how), ("x", "y", "z")
    state = initial_state(backbone, len(labels))
    rng = np.random.default_rng(0)
    state.own += rng.normal(scale=0.3, size=state.own.shape).astype(np.float32)
    batch = backbone.tokenizer(list(rows(0, 5, 1)["text"]), padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with loaded_into(backbone, state, len(labels), np.zeros(4, dtype=bool)), torch.no_grad():
        save_adapter(backbone, tmp_path / "a", labels)
        wanted = backbone.model(**inputs).logits
    model, tokenizer = load_adapter(tmp_path / "a")
    with torch.no_grad():
        assert close(model(**inputs).logits, wanted, 1e-4)
    assert tokenizer.model_max_length == 16
    facts = json.loads((tmp_path / "a" / "fedtree.json").read_text())
    assert (facts["labels"], facts["pooling"]) == (list(labels), how)


def test_the_readme_of_an_adapter_says_how_to_do_without_us(tiny_bert, tmp_path):
    """By hand, as the folder's README says: peft on AutoModel, pooling, one linear layer."""
    from peft import PeftModel
    from transformers import AutoModel

    backbone = backbone_of(tiny_bert, "mean")
    batch = backbone.tokenizer(["bab bac", "dad"], padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    flat = np.zeros(4, dtype=bool)
    with loaded_into(backbone, initial_state(backbone, 2), 2, flat), torch.no_grad():
        save_adapter(backbone, tmp_path / "a", ("x", "y"))
        wanted = backbone.model(**inputs).logits
    encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), tmp_path / "a").eval()
    head = load_file(tmp_path / "a" / "head.safetensors")
    with torch.no_grad():
        states = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        assert close(vectors @ head["weight"].T + head["bias"], wanted, 1e-4)


def test_an_adapter_that_says_nothing_of_itself_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="no delivered adapter"):
        load_adapter(tmp_path)
    (tmp_path / "fedtree.json").write_text('{"task": "classification"}')
    with pytest.raises(BackboneError, match="lacks backbone, labels, max_length, pooling"):
        load_adapter(tmp_path)
