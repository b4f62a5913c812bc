"""Loading a checkpoint: no code of its own, no pickle, one sentence that says what to do."""

import builtins
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_jobs import make_job

from fedtree_secure import BackboneError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.loading import check_checkpoint, find_checkpoint, load_checkpoint

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertForSequenceClassification):
    config_class = EvilConfig
class EvilTokenizer(BertTokenizer):
    pass
"""


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "model")


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def load(folder):
    return load_checkpoint(make_job(folder))


def pickled(folder, name="pytorch_model.bin"):
    """Put a pickle into the folder that leaves a mark when it is read."""
    mark = folder / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    (folder / name).write_bytes(pickle.dumps({"weight": Evil()}))
    return mark


CODE = {
    "config": ("config.json", {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}),
    "model": ("config.json", {"AutoModelForSequenceClassification": "evil.EvilModel"}),
    "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": ["evil.EvilTokenizer", None]}),
    "another repository": ("config.json", {"AutoConfig": "somebody/else--evil.EvilConfig"}),
}


@pytest.mark.parametrize(("file", "auto_map"), CODE.values(), ids=CODE.keys())
@pytest.mark.parametrize("architecture", ["bert", "evil"])
def test_hostile_checkpoint_with_code_is_refused_and_asks_nothing(
    folder, monkeypatch, file, auto_map, architecture
):
    """`from_pretrained` with its default asks on the terminal whether to run the code."""

    def answer(*_):
        pytest.fail("it asked on the terminal")

    monkeypatch.setattr(builtins, "input", answer)
    (folder / "evil.py").write_text(EVIL)
    change(folder / "config.json", model_type=architecture)
    change(folder / file, auto_map=auto_map)
    with pytest.raises(BackboneError, match=rf"{file} asks for code of its own.*never run.*delete"):
        load(folder)
    assert not (folder / "ran").exists()


def test_hostile_code_of_a_part_of_the_model_is_refused(folder):
    change(folder / "config.json", text_config={"auto_map": {"AutoConfig": "evil.EvilConfig"}})
    with pytest.raises(BackboneError, match="code of its own"):
        load(folder)


def test_hostile_kernel_from_the_hub_is_refused(folder):
    change(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(BackboneError, match="kernel from the hub"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth"])
def test_hostile_pickle_is_refused_by_name_and_never_read(folder, name):
    (folder / "model.safetensors").unlink()
    mark = pickled(folder, name)
    with pytest.raises(BackboneError, match=rf"pickle only \({name}\).*convert it.*python -c"):
        load(folder)
    assert not mark.exists()


def test_where_both_lie_only_safetensors_are_read(folder):
    mark = pickled(folder)
    assert load(folder).model.config.hidden_size == 32
    assert not mark.exists()


def test_the_command_in_the_refusal_converts_the_checkpoint(folder):
    expected = load_file(folder / "model.safetensors")
    halves = [dict(list(expected.items())[i::2]) for i in range(2)]
    for i, half in enumerate(halves):
        torch.save(half, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError) as caught:
        load(folder)
    command = str(caught.value).partition("does no harm: ")[2]
    python = f"{sys.executable} {command.removeprefix('python ')}"
    subprocess.run(python, shell=True, check=True, timeout=120)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    load(folder)


@pytest.mark.parametrize(
    "shard", ["pytorch_model.bin", "../model.safetensors", "/tmp/model.safetensors"]
)
def test_hostile_index_that_names_another_file_is_refused(folder, shard):
    """transformers follows the index, and unpickles a shard that is no safetensors file."""
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    mark = pickled(folder)
    with pytest.raises(BackboneError, match=r"every shard must be a \.safetensors file"):
        load(folder)
    assert not mark.exists()


def test_shards_of_safetensors_are_loaded(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        part = {name: tensors[name] for name in names if where[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert all(name.startswith("classifier") for name in load(folder).fresh)


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("model.safetensors.index.json", '{"metadata": {}}', "no weight_map"),
        ("adapter_config.json", '{"base_model_name_or_path": "x"}', "merge the adapter"),
        ("config.json", '{"transformers_weights": "adapter_model.bin"}', "transformers_weights"),
        ("config.json", "[1]", "no JSON object"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "{}", "cannot be loaded for classification"),
    ],
)
def test_other_folders_are_refused_with_what_to_do(folder, file, text, told):
    if "index" in file:
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(text)
    with pytest.raises(BackboneError, match=told):
        load(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"holds no weights; it needs model\.safetensors"):
        check_checkpoint(folder)


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_checkpoint("~/model") == (folder, {})
    assert load("~/model").model.config.hidden_size == 32
    with pytest.raises(BackboneError, match=rf"no model folder {folder.parent}/none"):
        find_checkpoint("~/none")
    with pytest.raises(BackboneError, match=rf"no model file {folder.parent}/none.gguf"):
        find_checkpoint("~/none.gguf")


def test_a_hub_id_is_read_from_its_snapshot_under_the_same_rules(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    place = cache / "models--somebody--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint("somebody/tiny") == (snapshot, {})
    assert load("somebody/tiny").model.config.hidden_size == 32
    change(snapshot / "config.json", auto_map={"AutoConfig": "evil.EvilConfig"})
    with pytest.raises(BackboneError, match="code of its own"):
        load("somebody/tiny")
    for missing in ("somebody/else", "not a hub id"):
        with pytest.raises(BackboneError, match="cannot be fetched from the hub"):
            load(missing)


def test_an_encoder_is_no_language_model(tiny_bert):
    """It sees what it should predict; all of the budget was spent on it."""
    with pytest.raises(BackboneError, match="it is an encoder"):
        Backbone(make_job(tiny_bert, task="causal-lm"))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tiny_bert, tmp_path):
    """It failed in the first batch with such a token, after a part of the budget was spent."""
    folder = shutil.copytree(tiny_bert, tmp_path / "larger")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["entirely", "new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="do not belong together"):
        Backbone(make_job(folder))
