"""What a ledger was charged for: the numbers that a private computation must be run with."""

from collections.abc import Callable
from dataclasses import dataclass

from fedtree_dp import DPSGD
from fedtree_dp.sgd.grid import Grid

Tick = Callable[[], None]
Engine = Callable[..., DPSGD]


@dataclass(frozen=True)
class Mechanism:
    """DP-SGD steps of one stage.

    Attributes:
        noise_multiplier: Noise standard deviation over the clipping norm; 0 only in simulations.
        records: Declared size of the training set, the constant in the divisor.
        steps: How many.
        grid: Where noise is shared, what the uploaded values leave on; their noise is the grid's,
            and ``noise_multiplier`` that of all that stays at home.
    """

    noise_multiplier: float
    records: int
    steps: int
    grid: Grid | None = None
