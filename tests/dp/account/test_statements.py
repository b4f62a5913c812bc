"""A formal statement says everything that is needed to check it."""

import json
from importlib.metadata import version

import pytest

from fedtree_dp import Gaussian, PoissonGaussian, epsilon_of
from fedtree_dp.account import events
from fedtree_dp.account.events import TruncatedPoissonGaussian
from fedtree_dp.account.statements import statement


def test_statement_of_a_usual_run():
    ran = [PoissonGaussian(2.0, 0.1, 10)] * 3 + [Gaussian(20)]
    made = statement(ran, 1e-5)
    assert made.neighbours == "add or remove one record"
    assert made.epsilon == epsilon_of(ran, 1e-5)
    assert made.epsilon < made.epsilon_prv < made.epsilon + 0.02
    assert made.epsilon < made.epsilon_rdp
    assert made.epsilon_without_amplification == pytest.approx(
        epsilon_of([PoissonGaussian(2.0, 1.0, 30), Gaussian(20)], 1e-5), rel=1e-9
    )
    assert made.accountants == {name: version(name) for name in ("dp-accounting", "opacus")}
    again = [
        events.from_dict(release) for release in json.loads(json.dumps(made.to_dict()))["releases"]
    ]
    assert epsilon_of(again, made.delta) == made.epsilon
    assert any("Poisson" in line for line in made.assumptions)


def test_statement_of_truncated_batches_and_of_no_noise():
    made = statement([TruncatedPoissonGaussian(3, 0.1, 10, 1000, 160)], 1e-5)
    assert made.neighbours == "replace one record by an empty one"
    assert made.epsilon_rdp is made.epsilon_prv is None
    # a record pushed in or out counts twice: noise 3 / 2 in each of 10 steps
    assert made.epsilon_without_amplification == pytest.approx(
        epsilon_of([Gaussian(1.5)] * 10, 1e-5), rel=1e-9
    )
    assert any("number of records is public" in line for line in made.assumptions)
    bare = statement([Gaussian(0)], 1e-5, prv=False)
    assert bare.to_dict()["epsilon"] == "inf"
    assert bare.epsilon_prv is None
    assert not any("Poisson" in line for line in bare.assumptions)
    assert statement([], 1e-5, prv=False).epsilon == 0.0
