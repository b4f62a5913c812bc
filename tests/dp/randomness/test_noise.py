"""The noise source: its distribution, and that no seed, copy or fork makes it predictable."""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource

KEY = bytes(range(32))
SAMPLES = 100_000
# Each p-value below is wrong with probability 1e-9 or less under the true distribution; the key is
# fixed, so a pass stays a pass, and the same test must reject 0.7 and 1.3 times the scale.
ALARM = 1e-9


def scale_p(x: np.ndarray, std: float) -> float:
    """Two-sided p-value of the sample variance (chi-squared)."""
    q = float((x**2).sum() / std**2)
    return 2 * min(stats.chi2.cdf(q, len(x)), stats.chi2.sf(q, len(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_gaussian_of_the_right_scale_and_the_test_has_power(dtype):
    x = NoiseSource(KEY).normal(SAMPLES, 2.5, dtype).double().numpy()
    assert scale_p(x, 2.5) > ALARM
    assert scale_p(x, 0.7 * 2.5) < 1e-20
    assert scale_p(x, 1.3 * 2.5) < 1e-20
    assert stats.kstest(x / 2.5, "norm").pvalue > ALARM
    assert stats.kstest(x / (0.7 * 2.5), "norm").pvalue < 1e-20
    assert abs(x.mean()) / (2.5 / math.sqrt(SAMPLES)) < 6.2
    half = (
        SAMPLES // 2
    )  # the two halves of each Box-Muller pair are uncorrelated, and so are neighbours
    for a, b in ((x[:half], x[half:]), (x[:-1], x[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)) < 6.2
    assert np.abs(x).max() / 2.5 > 3.5


def test_tails_reach_beyond_what_32_bits_of_radius_would_give():
    class Small(NoiseSource):
        def _words(self, n):
            return np.zeros(n, dtype=np.uint8)

    assert 9.3 < float(Small(KEY).normal(2).abs().max()) < 9.5


def test_uniform_bytes_and_integers():
    u = NoiseSource(KEY).uniform(SAMPLES)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > ALARM
    assert stats.kstest(u**1.05, "uniform").pvalue < 1e-20
    counts = np.bincount(np.frombuffer(NoiseSource(KEY).bytes(SAMPLES), np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > ALARM
    assert NoiseSource(KEY).integers(3).dtype == np.uint64
    assert NoiseSource(KEY).bytes(0) == b""


def test_keystream_is_aes_256_ctr():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    n = (1 << 20) + 77
    expected = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor().update(bytes(n))
    source = NoiseSource(KEY)
    assert source.bytes(5) + source.bytes(n - 5) == expected


def test_no_seed_reaches_it():
    def draw():
        torch.manual_seed(42)
        np.random.seed(42)  # noqa: NPY002
        random.seed(42)
        from transformers import set_seed

        set_seed(42)
        return NoiseSource.from_os().normal(64)

    assert not torch.equal(draw(), draw())
    before = torch.get_rng_state()
    NoiseSource.from_os().normal(1000)
    assert torch.equal(before, torch.get_rng_state())


def test_shapes_types_and_repeatable_key():
    a = NoiseSource(KEY).normal((3, 5), 1.0, torch.float64)
    assert a.shape == (3, 5)
    assert torch.equal(a, NoiseSource(KEY).normal((3, 5), 1.0, torch.float64))
    assert not torch.equal(a, NoiseSource(b"\1" * 32).normal((3, 5), 1.0, torch.float64))
    assert NoiseSource(KEY).normal(0).shape == (0,)
    assert NoiseSource(KEY).normal((), 1.0).shape == ()
    assert torch.equal(NoiseSource(KEY).normal(4, 0.0), torch.zeros(4))


def test_large_draws_are_cut_into_chunks(monkeypatch):
    monkeypatch.setattr("fedtree_dp.randomness.noise._PAIRS_PER_CHUNK", 1000)
    x = NoiseSource(KEY).normal(SAMPLES + 1, 1.0).double().numpy()
    assert len(x) == SAMPLES + 1
    assert scale_p(x, 1.0) > ALARM
    assert abs(np.corrcoef(x[:-2000], x[2000:])[0, 1]) * math.sqrt(SAMPLES) < 6.2


@pytest.mark.parametrize("key", [b"", b"x" * 31, "x" * 32, None, bytearray(32)])
def test_bad_keys(key):
    with pytest.raises(ConfigurationError, match="32 random bytes"):
        NoiseSource(key)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_bad_scale(std):
    with pytest.raises(ConfigurationError, match="standard deviation"):
        NoiseSource(KEY).normal(3, std)


def test_bad_types_and_counts():
    with pytest.raises(ConfigurationError, match="float32 or float64"):
        NoiseSource(KEY).normal(3, 1.0, torch.bfloat16)
    with pytest.raises(ConfigurationError, match="-1"):
        NoiseSource(KEY).bytes(-1)


def test_the_key_cannot_leak_or_be_doubled():
    source = NoiseSource(KEY)
    assert "hidden" in repr(source)
    assert KEY.hex() not in repr(source)
    for double in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            double(source)
    assert not hasattr(source, "__dict__")


def test_a_forked_child_cannot_repeat_the_noise(monkeypatch):
    source = NoiseSource(KEY)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ConfigurationError, match="fork"):
        source.normal(3)


def test_threads_never_share_noise():
    source, parts = NoiseSource(KEY), []
    threads = [threading.Thread(target=lambda: parts.append(source.bytes(4096))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    blocks = [p[i : i + 16] for p in parts for i in range(0, 4096, 16)]
    assert len(set(blocks)) == len(blocks)
