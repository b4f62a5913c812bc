"""Where each layer's values stand in an update. Without torch: a server computes with it, too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Where each layer's values stand in the flat update vector that is masked and summed.

    Attributes:
        layers: Half-open range of each transformer layer, shallow to deep; consecutive from 0.
        heads: Range of each group's head behind the layers; none where heads stay at home.
    """

    layers: tuple[tuple[int, int], ...]
    heads: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """Number of values of an update."""
        return self.parts[-1][1]

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """Layers, then the heads: what the tree says of each who shares it."""
        return self.layers + self.heads
