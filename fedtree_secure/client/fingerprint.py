"""A client's fingerprint: the private mean of what the frozen backbone sees in its texts."""

from typing import Any

import numpy as np

from fedtree_dp import NoiseSource, gaussian_mean


def fingerprint(
    means: "np.ndarray[Any, Any]",
    public: "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]",
    *,
    noise_multiplier: float,
    records: int,
    noise: NoiseSource,
    units: "np.ndarray[Any, Any] | None" = None,
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Release the mean over the records of their per-layer hidden states, one Gaussian mechanism
    for all layers.

    Args:
        means: (rows, depth, hidden); each record's values are centred and scaled by public
            constants, then scaled to joint norm 1 over all layers.
        public: Centre (depth, hidden) and scale (depth,) of public text, see
            `Backbone.layer_reference`.
        noise_multiplier: Of the Gaussian mechanism.
        records: Declared size, the divisor of the mean; in units where there are any.
        noise: Where the noise comes from.
        units: (rows,) number of each row's unit. What is scaled to norm 1 is then the sum over a
            unit's rows, so that a unit contributes once, whatever number of rows it has.

    Returns:
        (depth, hidden); each value has noise of standard deviation ``noise_multiplier / records``.
    """
    rows, depth, hidden = means.shape
    centre, scale = public
    means = (means.astype(np.float64) - centre) / scale[:, None]
    vectors = means.reshape(rows, depth * hidden)
    released = gaussian_mean(
        vectors if units is None else _sums(vectors, units),
        max_norm=1.0,
        normalise=True,
        divisor=float(records),
        noise_multiplier=noise_multiplier,
        noise=noise,
    )
    return np.asarray(released, dtype=np.float64).reshape(depth, hidden)


def _sums(vectors: "np.ndarray[Any, Any]", units: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The sum over each unit's rows, in the rows' order."""
    total = np.zeros((int(units.max(initial=-1)) + 1, vectors.shape[1]))
    np.add.at(total, units, vectors)
    return total
