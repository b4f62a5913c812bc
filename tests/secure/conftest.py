"""A tiny real transformer on disk: random weights, real classes, a word-level tokenizer."""

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent),
]  # the suite runs in importlib mode, which adds no folder to the path
torch.set_num_threads(1)

from small_jobs import make_clients  # noqa: E402
from tiny_models import write_bert  # noqa: E402


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A 2-layer BERT with hidden size 32 and a word-level tokenizer."""
    return write_bert(tmp_path_factory.mktemp("tiny-bert"), layers=2)


@pytest.fixture(scope="session")
def deep_bert(tmp_path_factory):
    """The same with 4 layers, where some must lie below others."""
    return write_bert(tmp_path_factory.mktemp("deep-bert"), layers=4)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, tiny_bert):
    """A 3-layer Llama with hidden size 32 and the same words."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=3,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def clients():
    return make_clients()


@pytest.fixture(scope="module", autouse=True)
def module_stores(tmp_path_factory):
    """Stores and heads of runs that a whole module shares; never in the user's own folder."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        yield place


@pytest.fixture(autouse=True)
def stores(tmp_path, monkeypatch, module_stores):
    """Stores and heads of one test's data sets."""
    monkeypatch.setenv("FEDTREE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FEDTREE_HEADS", str(tmp_path / "heads"))
    return tmp_path / "state"
