"""A checkpoint found, checked and loaded. Nothing in it is ever executed.

Everybody of a federation loads the same checkpoint, so one that ran code would run it everywhere.
Weights come from safetensors or GGUF, never from a pickle; classes come from transformers, never
from the checkpoint. Each check raises before transformers reads the folder, and none asks on the
terminal.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fedtree_secure.config import Job
from fedtree_secure.errors import BackboneError
from fedtree_secure.model.pooling import Pooled, PooledClassifier, pooling_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What a hub id is fetched as: these and no others, so that a pickle never reaches this machine.
FETCHED = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja")


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded.

    Attributes:
        tokenizer: With a padding token set; pads on the right.
        model: The transformers model in float32 on the CPU.
        fresh: Names of parameters that the checkpoint lacks; the job's seed gave their values.
        pooling: What the head reads, see `pooling_of`; ``native`` for language models.
    """

    tokenizer: Any
    model: Any
    fresh: tuple[str, ...]
    pooling: Pooled | Literal["native"] = "native"


def load_checkpoint(job: Job) -> Checkpoint:
    """Load the job's backbone with the class that its task needs.

    Raises:
        BackboneError: There is no such checkpoint, it needs code of its own or a pickle, or
            transformers cannot load it.
    """
    _quiet()
    folder, extra = find_checkpoint(job.backbone)
    check_checkpoint(folder, weights=not extra)
    try:
        tokenizer, model, missing = _load(folder, job, extra)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BackboneError(
            f"the backbone {job.backbone!r} cannot be loaded for {job.task}: {error}"
        ) from error
    if model.config.is_encoder_decoder:
        raise BackboneError(
            f"the backbone {job.backbone!r} ({model.config.model_type}) is an encoder with a "
            "decoder, which no task here trains; take an encoder, or a decoder alone"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    fresh = tuple(sorted(missing))
    if job.task == "causal-lm":
        return Checkpoint(tokenizer, model, fresh)
    pooling = pooling_of(job.training.pooling, folder, model, fresh)
    if pooling == "native":
        return Checkpoint(tokenizer, model, fresh)
    return Checkpoint(tokenizer, *_pooled(model, fresh, pooling, job.seed), pooling)


def _pooled(
    model: Any, fresh: tuple[str, ...], how: Pooled, seed: int
) -> tuple[PooledClassifier, tuple[str, ...]]:
    """Put a pooling behind a model's encoder, in the place of its own classifier."""
    prefix = f"{model.base_model_prefix}."
    torch.manual_seed(seed)
    whole = PooledClassifier(model.base_model, how)
    inside = {f"encoder.{n.removeprefix(prefix)}" for n in fresh if n.startswith(prefix)}
    lacking = {"classifier.weight", "classifier.bias", *inside} & set(whole.state_dict())
    return whole, tuple(sorted(lacking))


def find_checkpoint(backbone: str) -> tuple[Path, dict[str, str]]:
    """Return the folder of a backbone, and the arguments that name a GGUF file inside it.

    Args:
        backbone: A local folder, a ``.gguf`` file or a hub id; ``~`` is the home folder.

    Raises:
        BackboneError: None of these is there.
    """
    place = Path(backbone).expanduser()
    if place.suffix == ".gguf":
        if not place.is_file():
            raise BackboneError(f"there is no model file {place}")
        return place.parent, {"gguf_file": place.name}
    if place.is_dir():
        return place, {}
    if backbone.startswith((".", "/", "~")):
        raise BackboneError(
            f"there is no model folder {place}; give a local folder, a .gguf file or a hub id"
        )
    return _fetch(backbone), {}


def check_checkpoint(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder that would run code or unpickle, or that is no whole model.

    Args:
        folder: Of the checkpoint; nothing is executed and no weight is read.
        weights: Whether the weights must be here; those of a GGUF file are not.

    Raises:
        BackboneError: Says what was found and what to do.
    """
    config = _read(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        _refuse_code(folder / name, _read(folder / name))
    if (folder / "adapter_config.json").exists():
        raise BackboneError(
            f"{folder} holds an adapter (adapter_config.json), whose base model would be loaded "
            "unchecked; merge the adapter into its base with peft's merge_and_unload and give "
            "the folder of the result"
        )
    if config.get("transformers_weights"):
        raise BackboneError(
            f"{folder / 'config.json'} names its own file of weights (transformers_weights), "
            f"which is not followed; name the file {WEIGHTS} and delete the entry"
        )
    if weights:
        _check_weights(folder)


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings.

    Raises:
        BackboneError: Some text would crash the model, after its budget was spent.
    """
    known = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > known:
        raise BackboneError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {known}: they do not "
            "belong together. Give the tokenizer that the model was trained with"
        )


@torch.no_grad()
def check_length(tokenizer: Any, model: Any, max_length: int) -> None:
    """Refuse a length of texts that the model has no positions for, or that holds no text.

    Tried on public tokens, on the CPU: where a GPU has no position, it is lost to the process.

    Raises:
        BackboneError: The first text of that length would stop a run that has spent budget.
    """
    special = int(tokenizer.num_special_tokens_to_add())
    if max_length <= special:
        raise BackboneError(
            f"training.max_length is {max_length}, and the tokenizer's own {special} tokens leave "
            f"no place for text; allowed: at least {special + 1}"
        )
    known = int(model.get_input_embeddings().weight.shape[0])
    taken = {int(i) for i in tokenizer.all_special_ids}
    token = next((i for i in range(known) if i not in taken), 0)
    ids = torch.full((1, max_length), token)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (RuntimeError, IndexError, ValueError) as error:
        most = getattr(model.config, "max_position_embeddings", None)
        raise BackboneError(
            f"training.max_length is {max_length}, and texts of that length do not pass the model "
            f"(its max_position_embeddings is {most}; some of these may be taken): {error}"
        ) from None


@torch.no_grad()
def check_causal(model: Any, device: str) -> None:
    """Refuse a model that sees later tokens: it would learn to copy, not to predict.

    Tried on public tokens: another last token must not change what is said before it.

    Raises:
        BackboneError: It is an encoder.
    """
    ids = torch.arange(1, 9, device=device)[None].repeat(2, 1)
    ids[1, -1] = 0
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    rounding = 1e-5 if logits.dtype == torch.float32 else 1e-3
    logits = logits.float()
    scale = float(logits.abs().max())
    if float((logits[0] - logits[1]).abs().max()) > rounding * scale:
        raise BackboneError(
            f"{type(model).__name__} sees the tokens that it should predict: it is an encoder. "
            'Take a decoder for task = "causal-lm", or task = "classification"'
        )


def _load(folder: Path, job: Job, extra: dict[str, str]) -> tuple[Any, Any, list[str]]:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    kind = AutoModelForCausalLM if job.task == "causal-lm" else AutoModelForSequenceClassification
    # False, not the default None: None asks on the terminal whether to run the checkpoint's code.
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, **extra}
    config = AutoConfig.from_pretrained(folder, **safe)
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    # Layers that the checkpoint lacks get public initial values; the adapter delivers them.
    torch.manual_seed(job.seed)
    model, info = kind.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **safe,
    )
    return tokenizer, model, list(info["missing_keys"])


def _fetch(hub_id: str) -> Path:
    """Folder of a hub id's safe files: from the local cache where transformers is offline."""
    from huggingface_hub import snapshot_download

    try:
        place = snapshot_download(hub_id, allow_patterns=list(FETCHED), ignore_patterns=["*/*"])
        snapshot_download(hub_id, allow_patterns=["1_Pooling/config.json"])
        return Path(place)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"the backbone {hub_id!r} is no local folder and cannot be fetched from the hub: "
            f"{error}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise BackboneError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise BackboneError(f"{path} holds no JSON object")
    return found


def _refuse_code(path: Path, settings: dict[str, Any]) -> None:
    for key, value in _entries(settings):
        if key == "auto_map" and value:
            raise BackboneError(
                f"{path} asks for code of its own (auto_map), which is never run, because it "
                "would run on every client's machine; use a checkpoint whose architecture "
                "transformers has, or, where it has this one, delete the auto_map entry"
            )
        if key.endswith("_implementation") and "/" in str(value):
            raise BackboneError(
                f"{path} asks for a kernel from the hub ({key}: {value}), which is never run; "
                f"delete the {key} entry"
            )


def _entries(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    inner = settings.values() if isinstance(settings, dict) else settings
    if isinstance(settings, dict):
        yield from settings.items()
    for value in inner:
        if isinstance(value, dict | list):
            yield from _entries(value)


def _check_weights(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return None
    if (folder / INDEX).is_file():
        return _check_index(folder)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if not pickles:
        raise BackboneError(f"{folder} holds no weights; it needs {WEIGHTS} or {INDEX}")
    model = [name for name in pickles if name.startswith("pytorch_model")] or pickles
    raise BackboneError(
        f"{folder} has its weights as a pickle only ({', '.join(model)}), which can run code when "
        f"it is read; convert it once, in a place where that does no harm: "
        f"{conversion(folder, model)}"
    )


def _check_index(folder: Path) -> None:
    shards = _read(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise BackboneError(f"{folder / INDEX} has no weight_map, which says where tensors are")
    for name in sorted(map(str, shards.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BackboneError(
                f"{folder / INDEX} names {name!r}; every shard must be a .safetensors file in "
                "the same folder"
            )


def conversion(folder: Path, pickles: list[str]) -> str:
    """Return the shell command that writes the pickled tensors as one safetensors file."""
    program = (
        "import torch; from safetensors.torch import save_file; "
        f"files = {[str(folder / name) for name in pickles]!r}; "
        "read = lambda f: torch.load(f, map_location='cpu', weights_only=True); "
        "tensors = {k: v.contiguous().clone() for f in files for k, v in read(f).items()}; "
        f"save_file(tensors, {str(folder / WEIGHTS)!r}, metadata={{'format': 'pt'}})"
    )
    return f"python -c {shlex.quote(program)}"


def _quiet() -> None:
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
