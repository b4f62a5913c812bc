"""The architectures that docs/models.md lists as tested, each as a tiny model of random weights."""

from pathlib import Path

import torch
from tiny_models import write_bert

CLASSIFICATION, CAUSAL = "classification", "causal-lm"
_TWO = {"num_key_value_heads": 2}
_HEAD = {"head_dim": 8, **_TWO}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

# By `config.model_type`: what its configuration needs beside `COMMON`.
ENCODERS = {
    "bert": {},
    "camembert": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "modernbert": {"global_attn_every_n_layers": 1, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": {},
    "nomic_bert": {},
    "roberta": {},
    "xlm-roberta": {},
}
DECODERS = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "cohere2": _TWO,
    "falcon": {"num_kv_heads": 4},
    "gemma": _HEAD,
    "gemma2": _HEAD,
    "gemma3_text": _HEAD,
    "glm4": {"head_dim": 8, **_TWO},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "gpt_neox": {},
    "gptj": {**_OLD, "rotary_dim": 8},
    "granite": _TWO,
    "llama": _TWO,
    "mistral": _TWO,
    "olmo2": _TWO,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": _TWO,
    "qwen2": _TWO,
    "qwen3": _HEAD,
    "smollm3": _TWO,
    "stablelm": {"num_key_value_heads": 4},
    "starcoder2": _TWO,
}
REFUSED = {
    "gpt2": (CAUSAL, _OLD, "Conv1D"),
    "mamba": (CAUSAL, {"hidden_size": 32}, "Set lora.targets"),
    "t5": (CLASSIFICATION, {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2}, "decoder"),
}
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "bos_token_id": 2,
}


def write_words(folder: Path) -> Path:
    """Write a tokenizer (and a model that nobody needs) for `write_model`; return the folder."""
    folder.mkdir()
    return write_bert(folder, layers=1)


def write_model(kind: str, task: str, settings: dict, words: Path, folder: Path) -> Path:
    """Write a two-layer model of this architecture with the tokenizer in ``words``."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.save_pretrained(folder)
    size = len(tokenizer) + 2  # one of these adds a padding token of its own
    config = AutoConfig.for_model(kind, **{**COMMON, "vocab_size": size, **settings})
    torch.manual_seed(0)
    family = AutoModelForCausalLM if task == CAUSAL else AutoModel
    family.from_config(config).save_pretrained(folder)
    return folder
