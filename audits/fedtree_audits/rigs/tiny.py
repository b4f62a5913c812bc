"""Small real transformers for audits that train: real classes, real tokenizer, random weights, made
in a second.

What a mechanism lets through does not depend on what the weights were trained on; an audit that
must end in two minutes on two cores trains one of these with the run's settings in place of the
run's own model, and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset

WORDS = tuple(a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Kind = Literal["bert", "llama"]


def write_model(
    folder: Path,
    kind: Kind,
    *,
    layers: int = 4,
    hidden: int = 64,
    seed: int = 0,
    more: tuple[str, ...] = (),
) -> Path:
    """Write a transformer and its word-level tokenizer to a folder, as `transformers` saves them.

    Args:
        folder: made if it is not there.
        kind: ``bert`` for classification, ``llama`` for language modelling and for classification
            by the last token.
        layers, hidden: depth and width; four attention heads.
        seed: of the weights; public, and the global generator is left as it was.
        more: words of the vocabulary beside `WORDS`, which no text has unless an audit puts them
            there.
    """
    from transformers import BertTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS, *more]) + "\n", "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (_bert if kind == "bert" else _llama)(
            layers, hidden, len(SPECIAL) + len(WORDS) + len(more)
        )
        model.save_pretrained(folder)
    return folder


def texts(count: int, seed: int, *, words: tuple[str, ...] = WORDS, length: int = 8) -> list[str]:
    """Return texts of ``length`` words drawn uniformly."""
    rng = np.random.default_rng([seed, 0x7E])
    return [" ".join(rng.choice(words, size=length)) for _ in range(count)]


def text_rows(count: int, seed: int) -> Dataset:
    """Return unlabelled rows, for language modelling."""
    return Dataset.from_dict({"text": texts(count, seed)})


def _bert(layers: int, hidden: int, words: int) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
        )
    )


def _llama(layers: int, hidden: int, words: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )
