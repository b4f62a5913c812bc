"""Floating-point results compared relative to their own scale, so that no CPU decides a test.

Another instruction set or thread count adds the same numbers in another order; what that changes
grows with the size of what is compared. An absolute tolerance passes on one machine and fails on
the next.
"""

import numpy as np


def close(found, expected, rel: float) -> bool:
    """Whether no value differs by more than ``rel`` of the largest magnitude expected.

    Equal shapes; NaN is close to nothing; zeros are close to zeros only.
    """
    found, expected = (np.asarray(_numbers(x), dtype=np.float64) for x in (found, expected))
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    if not expected.size:
        return True
    return bool(np.abs(found - expected).max() <= rel * np.abs(expected).max())


def _numbers(values):
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
