"""Which model it is: SHA-256 over everything of a checkpoint that changes what is computed.

The digest is bound into every masking session, so parties with other weights, another
architecture's numbers or another tokenizer derive other masks and open nothing. It covers what a
checkpoint computes, not where it lies or who saved it: a copy in another folder is the same model.

A configuration is hashed with the defaults of the installed transformers. Parties whose versions
differ in a default therefore hold different models, as they should.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import rfc8785
import torch
from torch import nn

from fedtree_secure.errors import BackboneError

# Where a configuration came from, and the type its weights were stored in (they are always
# computed with as float32). The class is the task's choice, whatever `architectures` says.
PROVENANCE = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "name_or_path",
        "transformers_version",
        "architectures",
        "torch_dtype",
        "dtype",
    }
)
# Calls set these two; every call of ours passes its own.
CALLED_WITH = frozenset({"truncation", "padding"})
_LARGEST = 2**53 - 1  # of RFC 8785's whole numbers


def model_digest(model: Any, tokenizer: Any, fresh: Collection[str]) -> bytes:
    """SHA-256 of a loaded model, before adapters are injected.

    Args:
        model: The transformers model.
        tokenizer: Its tokenizer.
        fresh: Parameters that the checkpoint lacks. Their names count, their values do not: these
            follow from the job's seed.
    """
    return hashlib.sha256(
        b"fedtree-secure/model/v2\n"
        + weights_digest(model, fresh)
        + config_digest(model.config.to_dict())
        + tokenizer_digest(tokenizer)
    ).digest()


def weights_digest(model: nn.Module, fresh: Collection[str]) -> bytes:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        known = name not in fresh
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0{known}\0".encode())
        if known:
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()


def config_digest(config: Mapping[str, Any]) -> bytes:
    """SHA-256 over the canonical JSON (RFC 8785) of a configuration, without its provenance."""
    return hashlib.sha256(rfc8785.dumps(_plain(config))).digest()


def tokenizer_digest(tokenizer: Any) -> bytes:
    """SHA-256 over what a tokenizer computes: its pipeline, special tokens and the two sides.

    The pipeline of a fast tokenizer is its backend's own serialisation. That of a slow one is its
    class, its settings and its vocabulary files.
    """
    described = {
        "special": {
            name: [token, tokenizer.convert_tokens_to_ids(token)]
            for name, token in tokenizer.special_tokens_map.items()
        },
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "pipeline": _fast(tokenizer) if tokenizer.is_fast else _slow(tokenizer),
    }
    return hashlib.sha256(rfc8785.dumps(_plain(described))).digest()


def _fast(tokenizer: Any) -> dict[str, Any]:
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: value for key, value in pipeline.items() if key not in CALLED_WITH}


def _slow(tokenizer: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in Path(folder).iterdir()
        }
    settings = {
        key: value
        for key, value in tokenizer.init_kwargs.items()
        if isinstance(value, bool | int | float | str) and not key.endswith("_file")
    }
    for place in ("is_local", "local_files_only"):
        settings.pop(place, None)
    return {
        "class": type(tokenizer).__name__,
        "settings": settings,
        "files": files,
        "vocabulary": tokenizer.get_vocab(),
    }


def _plain(value: Any) -> Any:
    """What RFC 8785 can write: string keys, no NaN or infinity, no whole number above 2^53."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if str(k) not in PROVENANCE}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(str(v) for v in value)
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST else {"integer": str(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"number": str(value)}
    raise BackboneError(f"the model's settings hold {value!r}, which no digest can cover")
