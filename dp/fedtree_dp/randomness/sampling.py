"""Poisson sampling: the only way a batch is drawn, because it is what the accountant computes with.

Shuffled or fixed-size batches accounted as Poisson understate epsilon many times over (Chua et al.
2403.17673), and weighted samplers have no amplification theorem at all. So there is no option here:
each record joins a step's batch independently, with the same public probability, and an empty batch
is a batch.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedtree_dp.checks import count, real
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource


class PoissonSampler:
    """Draws each step's batch; one `draw` a step.

    Formal guarantee: every record is in a batch independently of all other records and steps, with
    a probability that is at most `sample_rate` and less than 2^-64 below it. Adding a record
    changes no other record's probability, because the rate is a public constant and not computed
    from `size`.

    Args:
        size: number of records, at least 0. Private: it shapes nothing but the number of coins.
        sample_rate: in (0, 1]; a constant of the configuration, never `batch / len(dataset)` of a
            private data set.
        source: where the coins come from.
        cap: a public bound on the batch, for hardware that needs one: of a larger batch a uniformly
            random `cap` records stay. Then the guarantee above does not hold, and the event of
            every step is `TruncatedPoissonGaussian` (2508.15089), no longer `PoissonGaussian`.

    Raises:
        ConfigurationError: a value out of range, or another source of randomness.
    """

    def __init__(
        self, size: int, sample_rate: float, source: NoiseSource, *, cap: int | None = None
    ) -> None:
        self._size = count("size", size, at_least=0)
        self.sample_rate = real("sample_rate", sample_rate, above=0, at_most=1)
        if not isinstance(source, NoiseSource):
            raise ConfigurationError(
                f"batches are drawn from a NoiseSource, not from {type(source).__name__}"
            )
        self._source = source
        self.cap = None if cap is None else count("cap", cap)
        self._threshold = int(Fraction(self.sample_rate) * 2**64)

    def draw(self) -> npt.NDArray[np.int64]:
        """Return the indices of the next batch, ascending, shape (records,); often of another
        length, maybe 0.
        """
        if self._threshold == 2**64:
            drawn = np.arange(self._size, dtype=np.int64)
        else:
            drawn = np.flatnonzero(self._source.integers(self._size) < np.uint64(self._threshold))
        if self.cap is None or len(drawn) <= self.cap:
            return drawn
        order = np.argsort(self._source.integers(len(drawn)), kind="stable")
        return np.sort(drawn[order[: self.cap]])

    def __repr__(self) -> str:
        return f"PoissonSampler(sample_rate={self.sample_rate})"
