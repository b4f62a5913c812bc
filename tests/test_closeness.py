"""The comparison itself can fail."""

import numpy as np
import pytest
from closeness import close


def test_it_follows_the_scale_of_what_is_compared():
    for scale in (1e-6, 1.0, 1e6):
        expected = scale * np.array([1.0, -2.0, 0.0])
        assert close(expected + 1e-6 * scale, expected, 1e-6)
        assert not close(expected + 3e-6 * scale, expected, 1e-6)


def test_nan_zeros_and_shapes():
    assert not close(np.array([1.0, np.nan]), np.array([1.0, 2.0]), 1.0)
    assert close(np.zeros(3), np.zeros(3), 1e-6)
    assert not close(np.full(3, 1e-30), np.zeros(3), 1e-6)
    with pytest.raises(AssertionError, match="is not"):
        close(np.zeros(3), np.zeros((3, 1)), 1e-6)
