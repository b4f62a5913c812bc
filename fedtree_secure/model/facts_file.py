"""`ModelFacts` as a file, so that a server needs no weights: made once, where the model lies.

The file is not trusted. Each client compares its digest with that of its own model, and the initial
expert in it with its own in every round (the digests of the nodes' values): a wrong file opens
nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedtree_secure.errors import BackboneError
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout
from fedtree_secure.storage import write_atomically

FORMAT = "fedtree-secure/model-facts/2"


def write_facts(path: Path, facts: ModelFacts) -> None:
    """Write the facts of a model, as a safetensors file with the shapes in its header."""
    described = {
        "digest": facts.digest.hex(),
        "layers": facts.layout.layers,
        "heads": facts.layout.heads,
        "hidden_size": facts.hidden_size,
        "b_values": facts.b_values,
        "layer_names": facts.layer_names,
    }
    header = {"format": FORMAT, "facts": json.dumps(described)}
    tensors = {"initial": np.ascontiguousarray(facts.initial, dtype="<f4")}
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))


def read_facts(path: Path) -> ModelFacts:
    """Read what `write_facts` wrote.

    Raises:
        BackboneError: It is missing, damaged, or contradicts itself.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            initial = file.get_tensor("initial")
        found: dict[str, Any] = json.loads(header["facts"])
        layers = tuple((int(first), int(last)) for first, last in found["layers"])
        heads = tuple((int(first), int(last)) for first, last in found["heads"])
        facts = ModelFacts(
            digest=bytes.fromhex(found["digest"]),
            layout=Layout(layers, heads),
            hidden_size=int(found["hidden_size"]),
            b_values=int(found["b_values"]),
            layer_names=tuple(map(int, found["layer_names"])),
            initial=initial,
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
        raise BackboneError(
            f"{path} holds no facts of a model ({error}); make them where the model lies: "
            "fedtree-secure model-facts JOB --model FOLDER --out FILE"
        ) from None
    whole = header.get("format") == FORMAT and initial.dtype == np.float32
    if not whole or initial.shape != (facts.layout.length,) or not np.isfinite(initial).all():
        raise BackboneError(f"{path} is of another format, or its parts do not fit together")
    return facts


def check_heads(facts: ModelFacts, outputs: Sequence[int], path: Path) -> None:
    """Refuse facts that were made for other groups of heads than the terms pin.

    Args:
        facts: As read.
        outputs: Labels of each group, see `Terms.outputs_of_heads`.
        path: Where they were read.

    Raises:
        BackboneError: They were.
    """
    found = [last - first for first, last in facts.layout.heads]
    whole = [size % count for size, count in zip(found, outputs, strict=False)]
    sizes = {size // count for size, count in zip(found, outputs, strict=False)}
    if len(found) != len(outputs) or any(whole) or len(sizes) > 1:
        raise BackboneError(
            f"{path} knows {len(found)} shared heads, the job and its roster {len(outputs)} with "
            f"{', '.join(map(str, outputs)) or 'no'} labels; make it again: fedtree-secure "
            "model-facts JOB --roster FILE --model FOLDER --out FILE"
        )
