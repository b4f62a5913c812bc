"""A client's own values, and its turn at the shared model.

`ClientState` is everything that a client has trained or received; `loaded_into` writes it into the
backbone, gives the trainable parameters in named groups and reads it back afterwards. Only one
client is loaded at a time, and everything that belongs to a client is overwritten when the next one
is.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from fedtree_secure.agreed.moves import NodeValues
from fedtree_secure.errors import StoreError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import CLUSTER, EXTERNAL

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class ClientState:
    """Values of one client.

    Attributes:
        own: (layers part of the layout,) cluster expert: received where shared, its own elsewhere.
        external: Same shape, external expert.
        mixing_logits: (depth,) logits of the mixing weights (lam in the paper).
        head: Tensors of the head by name; empty for language modelling.
        adam: Optimiser moments of what stays at home, by parameter name.
        nodes: Values and moments of the nodes that the client belongs to, by name; it moves them
            itself by the opened sums.
        pending: Change that a warm-up, or the head alone, left for the merge round; or None.
        first: Gradient of the first round, noise included, that a sketch was made of and that the
            round uploads; None before and after.
        sketched: (depth, values) vectors, noise included, that a sketch is made of; None once the
            tree is adopted.
    """

    own: Floats
    external: Floats
    mixing_logits: Floats
    head: dict[str, Floats] = field(default_factory=dict)
    adam: dict[str, Floats] = field(default_factory=dict)
    nodes: dict[str, NodeValues] = field(default_factory=dict)
    pending: Floats | None = None
    sketched: "np.ndarray[Any, Any] | None" = None
    first: Floats | None = None

    def to_bytes(self) -> bytes:
        """Return all values as safetensors."""
        tensors: dict[str, np.ndarray[Any, Any]] = {
            "own": self.own,
            "external": self.external,
            "mixing_logits": self.mixing_logits,
        }
        tensors |= {f"head/{name}": value for name, value in self.head.items()}
        tensors |= {f"adam/{name}": value for name, value in self.adam.items()}
        for name, node in self.nodes.items():
            tensors |= {
                f"node/{name}/values": node.values,
                f"node/{name}/first": node.first,
                f"node/{name}/second": node.second,
                f"node/{name}/steps": np.array([node.steps]),
            }
        optional = (
            ("pending", self.pending),
            ("sketched", self.sketched),
            ("first", self.first),
        )
        tensors |= {name: value for name, value in optional if value is not None}
        return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ClientState":
        """Read what `to_bytes` wrote; `StoreError` if it is damaged."""
        try:
            tensors = load(data)
            own, external = tensors["own"], tensors["external"]
            logits = tensors["mixing_logits"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise StoreError(f"a client's values are damaged ({error}); start a new run") from None
        names = {key.split("/")[1] for key in tensors if key.startswith("node/")}
        nodes = {
            name: NodeValues(
                tensors[f"node/{name}/values"],
                tensors[f"node/{name}/first"],
                tensors[f"node/{name}/second"],
                int(tensors[f"node/{name}/steps"][0]),
            )
            for name in names
        }
        return cls(
            own,
            external,
            logits,
            _under("head/", tensors),
            _under("adam/", tensors),
            nodes,
            tensors.get("pending"),
            tensors.get("sketched"),
            tensors.get("first"),
        )


def _under(prefix: str, tensors: dict[str, Floats]) -> dict[str, Floats]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def initial_state(backbone: Backbone, outputs: int) -> ClientState:
    """The public initial values, with a new head of ``outputs`` classes (none if 0)."""
    initial, weight = backbone.initial_expert, backbone.job.topology.mixing_weight
    logits = np.full(backbone.experts.depth, math.log(weight / (1 - weight)), dtype=np.float32)
    head = {} if outputs == 0 else _head_values(backbone.new_head(outputs))
    return ClientState(initial.copy(), initial.copy(), logits, head)


@contextlib.contextmanager
def loaded_into(
    backbone: Backbone, state: ClientState, outputs: int, mixing: "np.ndarray[Any, Any]"
) -> Iterator[None]:
    """Write a client's values into the backbone; read own expert, mixing weights and head back at a
    regular end.

    Args:
        backbone: The shared model.
        state: The client's values.
        outputs: Classes of its head, 0 for none.
        mixing: (depth,) True where the layer has an external expert.
    """
    experts = backbone.experts
    backbone.model.requires_grad_(False)
    experts.write(CLUSTER, state.own)
    experts.write(EXTERNAL, state.external)
    experts.set_mixing(mixing)
    with torch.no_grad():
        for mix, logit in zip(experts.mixes, state.mixing_logits, strict=True):
            mix.logit.fill_(float(logit))
    if outputs:
        head = backbone.new_head(outputs)
        head.load_state_dict(
            {name: torch.from_numpy(value.copy()) for name, value in state.head.items()}
        )
        backbone.set_head(head)
    yield
    state.own = experts.read(CLUSTER)
    logits = [float(mix.logit.detach()) for mix in experts.mixes]
    state.mixing_logits = np.array(logits, dtype=np.float32)
    if outputs and backbone.head is not None:
        state.head = _head_values(backbone.head)


def head_values_of(head: dict[str, Floats]) -> Floats:
    """Return the trained end of a head as one vector, as it stands in the layout."""
    return np.concatenate([head[name].reshape(-1) for name in _trained_end(head)])


def head_from(head: dict[str, Floats], flat: Floats) -> None:
    """Write such a vector into a head."""
    at = 0
    for name in _trained_end(head):
        size = head[name].size
        head[name] = flat[at : at + size].reshape(head[name].shape).astype(np.float32)
        at += size


def _trained_end(head: dict[str, Floats]) -> list[str]:
    """Names of the last projection's weight and bias, see `Centred`."""
    return [name for name in head if ".projection." in f".{name}"]


def _head_values(head: nn.Module) -> dict[str, Floats]:
    return {
        name: value.detach().float().cpu().numpy().copy()
        for name, value in head.state_dict().items()
    }
