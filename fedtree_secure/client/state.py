"""A client's own values, and its turn at the shared model.

`Belongings` is everything that a client has trained or received; `seated` writes it into the
backbone, gives the trainable parameters in named groups and reads it back afterwards. Only one
client sits at a backbone at a time, and everything that belongs to a client is overwritten when the
next one sits down.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from fedtree_secure.errors import RunFolderError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER, EXTERNAL
from fedtree_secure.storage import write_atomically

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Belongings:
    """Values of one client.

    Attributes: own: (layers part of the layout,) cluster expert: received where shared, the
        client's own elsewhere. external: Same shape, external expert. lam: (depth,) logits of the
        mixing weights. head: Tensors of the head by name; empty for language modelling. adam:
        Optimiser moments of what stays at home, by parameter name. pending: Change that a warm-up
        left for the merge round, or None. sketched: (depth, values) vectors, noise included, that a
        sketch was made of; None once the tree is accepted.
    """

    own: Floats
    external: Floats
    lam: Floats
    head: dict[str, Floats] = field(default_factory=dict)
    adam: dict[str, Floats] = field(default_factory=dict)
    pending: Floats | None = None
    sketched: "np.ndarray[Any, Any] | None" = None

    def save(self, path: Path) -> None:
        """Write all values durably and atomically as safetensors."""
        tensors = {"own": self.own, "external": self.external, "lam": self.lam}
        tensors |= {f"head/{name}": value for name, value in self.head.items()}
        tensors |= {f"adam/{name}": value for name, value in self.adam.items()}
        tensors |= {
            k: v
            for k, v in (("pending", self.pending), ("sketched", self.sketched))
            if v is not None
        }
        write_atomically(
            path,
            lambda target: save_file(
                {k: np.ascontiguousarray(v) for k, v in tensors.items()}, target
            ),
        )

    @classmethod
    def load(cls, path: Path) -> "Belongings":
        """Read what `save` wrote; `RunFolderError` if it is damaged."""
        try:
            tensors = load_file(path)
            own, external, lam = tensors["own"], tensors["external"], tensors["lam"]
        except Exception as error:  # safetensors raises its own classes
            raise RunFolderError(
                f"{path} is damaged ({error}); the run cannot be resumed"
            ) from None
        head = {k.removeprefix("head/"): v for k, v in tensors.items() if k.startswith("head/")}
        adam = {k.removeprefix("adam/"): v for k, v in tensors.items() if k.startswith("adam/")}
        return cls(own, external, lam, head, adam, tensors.get("pending"), tensors.get("sketched"))


def fresh_belongings(backbone: Backbone, outputs: int) -> Belongings:
    """The public initial values, with a new head of ``outputs`` classes (none if 0)."""
    initial, lam = backbone.initial_expert, backbone.job.topology.initial_lam
    logits = np.full(backbone.experts.depth, math.log(lam / (1 - lam)), dtype=np.float32)
    head = {} if outputs == 0 else _head_values(backbone.new_head(outputs))
    return Belongings(initial.copy(), initial.copy(), logits, head)


@contextlib.contextmanager
def seated(
    backbone: Backbone, mine: Belongings, outputs: int, mixing: "np.ndarray[Any, Any]"
) -> Iterator[None]:
    """Write a client's values into the backbone; read own expert, lam and head back at a regular
    end.

    Args:
        mixing: (depth,) True where the layer has an external expert.
    """
    experts = backbone.experts
    backbone.model.requires_grad_(False)
    experts.write(CLUSTER, mine.own)
    experts.write(EXTERNAL, mine.external)
    experts.set_mixing(mixing)
    with torch.no_grad():
        for mix, logit in zip(experts.mixes, mine.lam, strict=True):
            mix.logit.fill_(float(logit))
    if outputs:
        head = backbone.new_head(outputs)
        head.load_state_dict(
            {name: torch.from_numpy(value.copy()) for name, value in mine.head.items()}
        )
        backbone.set_head(head)
    yield
    mine.own = experts.read(CLUSTER)
    mine.lam = np.array([float(mix.logit.detach()) for mix in experts.mixes], dtype=np.float32)
    if outputs and backbone.head is not None:
        mine.head = _head_values(backbone.head)


def _head_values(head: nn.Module) -> dict[str, Floats]:
    return {
        name: value.detach().float().cpu().numpy().copy()
        for name, value in head.state_dict().items()
    }
