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
) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Release the mean over the records of their per-layer hidden states, one Gaussian mechanism
    for all layers.

    Args:
        means: (rows, depth, hidden); each record's values are centred and scaled by public
            constants, then scaled to joint norm 1 over all layers.
        public: Centre (depth, hidden) and scale (depth,) of public text, see
            `Backbone.layer_reference`.
        noise_multiplier: Of the Gaussian mechanism.
        records: Declared size, the divisor of the mean.
        noise: Where the noise comes from.

    Returns:
        (depth, hidden); each value has noise of standard deviation ``noise_multiplier / records``.
    """
    rows, depth, hidden = means.shape
    centre, scale = public
    means = (means.astype(np.float64) - centre) / scale[:, None]
    released = gaussian_mean(
        means.reshape(rows, depth * hidden),
        max_norm=1.0,
        normalise=True,
        divisor=float(records),
        noise_multiplier=noise_multiplier,
        noise=noise,
    )
    return np.asarray(released, dtype=np.float64).reshape(depth, hidden)
