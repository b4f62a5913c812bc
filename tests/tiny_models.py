"""Tiny real transformers on disk that several folders of tests use: random weights, real classes,
real tokenizers.
"""

import string
from pathlib import Path

import torch

WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in string.ascii_lowercase[:20]]


def write_bert(folder: Path, layers: int) -> Path:
    """Write a BERT of hidden size 32 with a word-level tokenizer of `WORDS`; return its folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder
