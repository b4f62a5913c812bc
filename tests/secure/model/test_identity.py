"""Which model it is: every change of what is computed is another digest, a copy is the same one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_jobs import make_job

from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.identity import (
    config_digest,
    model_digest,
    tokenizer_digest,
    weights_digest,
)
from fedtree_secure.model.loading import load_checkpoint


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "model")


@pytest.fixture(scope="module")
def original(tiny_bert):
    return digest_of(tiny_bert)


def digest_of(folder):
    loaded = load_checkpoint(make_job(folder))
    return model_digest(loaded.model, loaded.tokenizer, loaded.fresh)


def change(path, edit):
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def test_the_same_model_in_another_folder_is_the_same_model(folder, tiny_bert, original):
    assert digest_of(folder) == original
    assert Backbone(make_job(folder)).digest == Backbone(make_job(tiny_bert)).digest


def test_the_same_model_saved_again_is_the_same_model(tiny_bert, tmp_path, original):
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    change(tmp_path / "config.json", lambda c: c.update(transformers_version="5.0.0", dtype="x"))
    change(tmp_path / "config.json", lambda c: c.update(dtype="float16", architectures=["BertX"]))
    assert digest_of(tmp_path) == original


def permute(folder):
    """Two words swap their ids, in both files that a tokenizer may be read from."""
    words = (folder / "vocab.txt").read_text().split("\n")
    words[10], words[11] = words[11], words[10]
    (folder / "vocab.txt").write_text("\n".join(words))

    def swap(found):
        vocabulary = found["model"]["vocab"]
        a, b = words[10], words[11]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    change(folder / "tokenizer.json", swap)


def test_hostile_permuted_vocabulary_is_another_model(folder, original):
    permute(folder)
    assert digest_of(folder) != original


@pytest.mark.parametrize(
    "entry",
    [
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-5},
        {"num_attention_heads": 2},
        {"attention_probs_dropout_prob": 0.0},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_hostile_another_configuration_is_another_model(folder, original, entry):
    change(folder / "config.json", lambda found: found.update(entry))
    assert digest_of(folder) != original


@pytest.mark.parametrize(
    "entry",
    [{"sep_token": "[MASK]"}, {"pad_token": "[UNK]"}, {"truncation_side": "left"}],
    ids=lambda entry: next(iter(entry)),
)
def test_hostile_another_special_token_or_side_is_another_model(folder, original, entry):
    change(folder / "tokenizer_config.json", lambda found: found.update(entry))
    assert digest_of(folder) != original


def test_hostile_another_tokenizer_is_another_model(folder, original):
    """The same words, read without lower-casing or behind another end token."""
    change(folder / "tokenizer_config.json", lambda found: found.update(do_lower_case=False))
    change(folder / "tokenizer.json", lambda found: found["normalizer"].update(lowercase=False))
    assert digest_of(folder) != original


def test_hostile_changed_weight_is_another_model(folder, original):
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.3.output.dense.bias"
    tensors[name].view(torch.uint8)[0] ^= 1  # one bit
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert digest_of(folder) != original


def test_a_missing_layer_is_another_model(folder, original):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert digest_of(folder) != original


def test_the_backbones_digest_covers_the_model_and_the_initial_experts(folder, tiny_bert):
    first = Backbone(make_job(tiny_bert)).digest
    assert Backbone(make_job(tiny_bert, seed=5)).digest != first
    permute(folder)
    assert Backbone(make_job(folder)).digest != first


def test_how_a_tokenizer_was_called_is_no_part_of_it(tiny_bert):
    tokenizer = load_checkpoint(make_job(tiny_bert)).tokenizer
    before = tokenizer_digest(tokenizer)
    tokenizer(["bab fod", "bab"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_digest(tokenizer) == before


def slow(folder, words, **settings):
    """A tokenizer without a fast backend, with its vocabulary in files."""
    from transformers import BertJapaneseTokenizer

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    tokenizer = BertJapaneseTokenizer(
        str(folder / "vocab.txt"), word_tokenizer_type="basic", **settings
    )
    assert not tokenizer.is_fast
    return tokenizer_digest(tokenizer)


def test_a_slow_tokenizer_is_its_class_settings_and_vocabulary(tmp_path):
    first = slow(tmp_path / "a", ["x", "y"])
    assert slow(tmp_path / "b", ["x", "y"]) == first
    assert slow(tmp_path / "c", ["y", "x"]) != first
    assert slow(tmp_path / "d", ["x", "y"], do_lower_case=True) != first


def test_numbers_that_json_has_no_form_for_are_covered():
    """RFC 8785 has no infinity and no whole number above 2^53, which configurations hold."""
    given = [{"a": value} for value in (float("inf"), -float("inf"), 2**60, 2**60 + 1, "inf")]
    assert len({config_digest(config) for config in given}) == len(given)


def test_type_shape_and_name_of_a_weight_count():
    def module(value, name="w"):
        found = torch.nn.Module()
        found.register_buffer(name, value)
        return weights_digest(found, ())

    zeros = torch.zeros(4)
    given = [zeros, zeros.reshape(2, 2), zeros.to(torch.int32), torch.zeros(())]
    assert len({module(value) for value in given} | {module(zeros, "v")}) == 5
