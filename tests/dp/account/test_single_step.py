"""One Gaussian step: the loss distribution is the one that dp_accounting makes, value by value."""

import numpy as np
import pytest
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld

from fedtree_dp.account import single_step
from fedtree_dp.account.single_step import gaussian_step

DELTAS = (1e-2, 1e-4, 1e-6)
STEPS = [
    (1.0, 0.2, 1e-3),
    (4.0, 0.5, 1e-3),
    (0.3, 0.9, 5e-3),
    (2.0, 1.0, 1e-3),
    (10.0, 0.01, 1e-4),
    (0.5, 0.999, 1e-3),
    (0.05, 1.0, 1e-1),
]


def library(noise, rate, interval):
    return pld.from_gaussian_mechanism(
        noise, value_discretization_interval=interval, sampling_prob=rate
    )


@pytest.mark.parametrize("given", STEPS)
@pytest.mark.parametrize("times", [1, 20])
def test_a_step_is_the_librarys(given, times):
    ours, theirs = gaussian_step(*given), library(*given)
    if times > 1:
        ours, theirs = ours.self_compose(times), theirs.self_compose(times)
    for delta in DELTAS:
        expected = theirs.get_epsilon_for_delta(delta)
        assert ours.get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("given", STEPS)
def test_both_directions_are_the_librarys(given):
    """Adding and removing a record differ below rate 1; composition hides which one decides."""
    ours, theirs = gaussian_step(*given), library(*given)
    for epsilon in (0.0, 0.1, 1.0, 5.0):
        assert ours.get_delta_for_epsilon(epsilon) == pytest.approx(
            theirs.get_delta_for_epsilon(epsilon), rel=1e-9, abs=1e-14
        )
    for side in ("_pmf_remove", "_pmf_add"):
        one, other = (getattr(found, side) for found in (ours, theirs))
        assert one.size == other.size
        assert one.get_delta_for_epsilon(0.01) == pytest.approx(
            other.get_delta_for_epsilon(0.01), rel=1e-9, abs=1e-14
        )


@pytest.mark.parametrize(("losses", "interval"), [(2, 0.1), (1001, 1e-2), (5000, 1e-3)])
def test_dots_are_connected_as_the_library_does_to_the_last_bit(losses, interval):
    rng = np.random.default_rng(losses)
    deltas = np.sort(rng.uniform(0, 1, losses))[::-1].copy()
    deltas[losses // 2] = np.nextafter(deltas[losses // 2 - 1], 2)  # rounding may turn two about
    ours = single_step._connected(interval, -7, deltas).to_dense_pmf()
    theirs = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, -7, -7 + losses - 1, deltas
    ).to_dense_pmf()
    assert np.array_equal(ours._probs, theirs._probs)
    assert (ours._lower_loss, ours._infinity_mass) == (theirs._lower_loss, theirs._infinity_mass)


def test_a_divergence_that_rises_is_refused_as_the_library_does():
    deltas = np.linspace(1, 0, 2000)
    deltas[900] += 1e-3
    with pytest.raises(ValueError, match="non-increasing"):
        single_step._connected(1e-3, 0, deltas)
