"""What the server must know of a model: shapes, its digest, and the public initial expert.

The server holds no weights. `ModelFacts` are what it computes layouts, trees and plans from; a
client makes them from its own copy of the model, and two copies that differ have other digests.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedtree_secure.model.layout import Layout


@dataclass(frozen=True)
class ModelFacts:
    """Public facts of a frozen model with its experts.

    Attributes:
        digest: SHA-256 over weights, configuration, tokenizer and initial experts.
        layout: Where layers and the groups' heads stand in the update vector.
        hidden_size: Width of a hidden state.
        b_values: Values of the B factors in one layer.
        layer_names: Number of each adapted transformer layer in the model.
        initial: (layout.length,) float32, the public beginning of every expert and head. Not
            compared: the digest covers it.
    """

    digest: bytes
    layout: Layout
    hidden_size: int
    b_values: int
    layer_names: tuple[int, ...]
    initial: "np.ndarray[Any, np.dtype[np.float32]]" = field(compare=False, repr=False)

    @property
    def depth(self) -> int:
        """Number of adapted layers."""
        return len(self.layout.layers)
