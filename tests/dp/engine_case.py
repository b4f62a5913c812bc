"""What the tests of the engine share: settings for both engines, a trainer, and the sum that its
optimizer is given.
"""

import dp_models as m
import pytest

from fedtree_dp import DPSGD


@pytest.fixture(params=["fused", "hooks"], autouse=True)
def engine(request, monkeypatch):
    """Every test runs on both engines."""
    monkeypatch.setitem(SETTINGS, "engine", request.param)


SETTINGS = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": 1.0}


def trainer(model, loss=m.loss, *, optimizer=None, dummies=None, **settings):
    """A trainer; rehearsed if there are dummies."""
    made = DPSGD(
        model, optimizer or m.recorder(model), loss, **{**SETTINGS, "noise": m.noise(), **settings}
    )
    if dummies is not None:
        made.rehearse(dummies)
    return made


def clipped_sum(model, loss, data, bound, *, dummies=None, **settings):
    optimizer = m.recorder(model, lr=1e-5)
    with trainer(model, loss, optimizer=optimizer, max_grad_norm=bound, **settings) as t:
        t.rehearse(data if dummies is None else dummies)
        report = t.step(data)
    return optimizer.seen[0], report
