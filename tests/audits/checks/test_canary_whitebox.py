"""Canaries in LoRA layers: gradients of one coordinate, scores that tell members apart, power that
is a property.
"""

import numpy as np
import pytest
import torch
from closeness import close
from scipy.stats import norm

from fedtree_audits.checks import canary_whitebox
from fedtree_audits.checks.canary_whitebox import _likelihood_ratios
from fedtree_audits.rigs.engines import Build
from fedtree_audits.rigs.lora_host import MODULES, SIZE, Host, train
from fedtree_audits.statistics.verdict import Verdict, holm, holm_by_level
from fedtree_dp import PoissonGaussian
from fedtree_secure.testing import Lora, MixedLinear

EVENT = PoissonGaussian(1.0, 0.1, 20)


@pytest.mark.parametrize("lora", [Lora(), Lora(r=2, alpha=3.0, freeze_a=False), Lora(r=48)])
def test_a_canarys_gradient_is_one_coordinate_above_the_clipping_norm(lora):
    host = Host(100, lora)
    assert all(isinstance(layer, MixedLinear) for layer in host.layers)
    for canary in (0, 1, MODULES, 57, 99):
        host.model.zero_grad()
        host.loss(host.model, host.records(np.array([canary]))).sum().backward()
        flat = torch.cat([p.grad.reshape(-1) for p in host.parameters]).numpy()
        wanted = np.zeros_like(flat)
        wanted[host.places[canary]] = SIZE
        assert close(flat, wanted, 1e-5)


def test_every_canary_has_a_place_of_its_own():
    host = Host(1000, Lora())
    assert len(set(host.places.tolist())) == 1000
    assert max(host.places) < sum(p.numel() for p in host.parameters)


def test_the_server_sees_a_drawn_canary_moved_by_one_norm_and_no_other():
    seen = train(Build(), PoissonGaussian(1e-4, 0.3, 5), bytes(32), 200, Lora())
    assert seen.sums[seen.drawn] == pytest.approx(1.0, abs=5e-3)
    assert seen.sums[~seen.drawn] == pytest.approx(0.0, abs=5e-3)
    assert not seen.drawn[:, ~seen.included].any()


def test_likelihood_ratios_are_those_of_the_densities():
    sums = np.random.default_rng(0).normal(size=(7, 5))
    for event in (PoissonGaussian(1.3, 0.2, 7), PoissonGaussian(0.7, 1.0, 7)):
        q, s = event.sample_rate, event.noise_multiplier
        wanted = np.log(
            ((1 - q) * norm.pdf(sums, 0, s) + q * norm.pdf(sums, 1, s)) / norm.pdf(sums, 0, s)
        ).sum(axis=0)
        assert _likelihood_ratios(sums, event) == pytest.approx(wanted)


def test_no_score_overflows_with_hardly_any_noise():
    found = _likelihood_ratios(np.array([[3e3, -3e3]]), PoissonGaussian(0.01, 0.1, 1))
    assert np.isfinite(found).all()


def test_power_does_not_depend_on_the_coins_and_grows_with_canaries():
    def power(canaries, seed):
        key = bytes([seed]) * 32
        return canary_whitebox.audit_build(
            Build(), EVENT, 1e-5, key, canaries=canaries, control=False
        ).power

    assert power(400, 1) == power(400, 2)
    assert power(800, 1).detected < power(400, 1).detected


def test_full_batches_leave_no_step_to_compare_with():
    result = canary_whitebox.audit_build(
        Build(), PoissonGaussian(4.0, 1.0, 3), 1e-5, bytes(32), canaries=400, control=False
    )
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.figures["per_step"] == 0.0


def test_holm_by_level_is_holm_on_p_values():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = {name: float(p) for name, p in zip("abcde", rng.uniform(0, 0.08, 5), strict=True)}
        wanted, going = {}, True
        for place, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
            going = going and p <= 0.05 / (5 - place)
            wanted[name] = going
        assert holm(values) == wanted
        assert (
            holm_by_level({name: lambda level, p=p: p <= level for name, p in values.items()})
            == wanted
        )


def test_holms_family_keeps_its_error():
    """Of four true hypotheses one is rejected in at most 5% of families (false-alarm rate of this
    test: 1e-6).
    """
    from scipy.stats import binom

    drawn = np.random.default_rng(1).random((4000, 4))
    wrong = sum(any(holm(dict(zip("abcd", row.tolist(), strict=True))).values()) for row in drawn)
    assert 100 < wrong <= binom.isf(1e-6, 4000, 0.05)
