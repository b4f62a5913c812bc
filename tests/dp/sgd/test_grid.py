"""Steps whose sum leaves on a grid: the sum, its noise, and weights that stay where they are."""

import dp_models as m
import numpy as np
import pytest
import torch
from engine_case import SETTINGS, engine, trainer  # noqa: F401
from scipy import stats

from fedtree_dp import ConfigurationError, NoiseSource
from fedtree_dp.sgd.grid import Grid, released

FINE = Grid(step=1e-6, deviation=2.0**12, limit=2**30)
ALARM = 1e-9


def adapters(model):
    return [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("head")]


def stepped(grid, *, bound=0.5, noise_multiplier=0.0, key=None, data=None):
    """Take one step of a model of which everything but the head leaves on the grid."""
    model, batch = m.mixed(), m.mixed_batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    source = NoiseSource.from_os() if key is None else NoiseSource(key)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    settings = {"noise": source, "max_grad_norm": bound, "noise_multiplier": noise_multiplier}
    with trainer(model, m.mixed_loss, optimizer=sgd, dummies=batch, **settings) as t:
        t.release_on(grid, adapters(model))
        t.rehearse(batch)
        t.step(batch if data is None else data)
        found = t.take_released()
        with pytest.raises(ConfigurationError, match="no step has released"):
            t.take_released()
    return model, before, found


def test_the_sum_is_the_clipped_sum_rounded_to_the_grid():
    quiet = Grid(step=1e-6, deviation=1e-3, limit=2**30)
    model, _, found = stepped(quiet)
    wanted = dict(
        zip(
            [n for n, p in model.named_parameters() if p.requires_grad],
            m.reference(m.mixed(), m.mixed_loss, m.mixed_batch(), 0.5),
            strict=True,
        )
    )
    flat = np.concatenate(
        [wanted[n].double().reshape(-1).numpy() for n in wanted if not n.startswith("head")]
    )
    assert found.dtype == np.int64
    assert np.abs(found * quiet.step - flat).max() < 2e-6


def test_what_left_on_the_grid_did_not_move_and_the_rest_did():
    model, before, _ = stepped(FINE, noise_multiplier=1.0)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(p, before[name]) == (not name.startswith("head")), name


def test_noise_is_the_grid_s_alone_and_exact():
    """No record: noise alone. Its scale is accepted, 0.9 and 1.1 times it are not."""
    alone = stepped(FINE, data={}, key=bytes(32))[2]
    assert 0.5 < alone.std() / FINE.deviation < 2
    draws = released(FINE, [20_000], NoiseSource(bytes(32)))
    assert stats.kstest(draws / FINE.deviation, "norm").pvalue > ALARM
    spread = (draws.astype(float) ** 2).sum() / FINE.deviation**2
    low, high = (stats.chi2.ppf(q, len(draws)) for q in (ALARM, 1 - ALARM))
    assert low < spread < high
    for wrong in (0.9, 1.1):
        assert not low < spread / wrong**2 < high


def test_values_are_cut_before_their_noise_and_noise_never_is():
    sums = [torch.tensor([3.0, -3.0, float("nan"), float("inf"), 0.26]), 2]
    tight = Grid(step=0.5, deviation=1e-3, limit=4)
    assert released(tight, sums, m.noise()).tolist() == [4, -4, 0, 4, 1, 0, 0]
    wide = released(Grid(step=1.0, deviation=100.0, limit=1), [2000], m.noise())
    assert np.abs(wide).max() > 150


def test_parameters_that_are_not_clipped_cannot_be_released():
    model, stranger = m.mixed(), torch.nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    with trainer(model, m.mixed_loss, optimizer=sgd) as t:
        own = adapters(model)[0]
        for given in ([], [stranger], [own, own]):
            with pytest.raises(ConfigurationError, match="each once"):
                t.release_on(FINE, given)
        with pytest.raises(ConfigurationError, match="no step has released"):
            t.take_released()


@pytest.mark.parametrize(
    "bad", [{"step": 0.0}, {"deviation": 0.0}, {"deviation": 2.0**41}, {"limit": 0}]
)
def test_grids_out_of_range_are_refused(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Grid(**{"step": 1.0, "deviation": 1.0, "limit": 1, **bad})
