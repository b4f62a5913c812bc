"""examples/check_epsilon.py, which recomputes epsilon from the ledgers and believes nobody."""

import json
import math
import sqlite3
from pathlib import Path

import pytest
from scripts import loaded

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_dp.account.accounting import epsilon_of
from fedtree_dp.account.events import Gaussian, PoissonGaussian, SharedPoissonGaussian
from fedtree_dp.account.unit import PrivacyUnit

SCRIPT = Path(__file__).parents[3] / "examples" / "check_epsilon.py"


@pytest.fixture(scope="module")
def script():
    module = loaded(SCRIPT)
    module.POINTS = 2**18  # a wider interval, and a hundredth of the time
    return module


def test_it_uses_nothing_of_this_project(script):
    assert not any(
        getattr(value, "__module__", "").startswith(("fedtree", "dp_accounting", "opacus"))
        for value in vars(script).values()
    )


@pytest.mark.parametrize(
    ("events", "delta"),
    [
        ([Gaussian(1.2)], 1e-5),
        ([Gaussian(6.0), PoissonGaussian(1.1, 0.02, 100)], 1e-5),
        ([PoissonGaussian(4.0, 1.0, 20), PoissonGaussian(1.0, 0.5, 3)], 1e-6),
        ([PoissonGaussian(0.7, 0.01, 300)], 1e-9),
        ([SharedPoissonGaussian(2.0, 0.3, 20, 2)], 1e-5),
    ],
)
def test_bounds_hold_the_accountants_epsilon(script, events, delta):
    """The library's accountant rounds up as well, so it may lie a little above the interval."""
    low, high = script.epsilon([script.steps_of(event.to_dict()) for event in events], delta)
    read = [e.together() if isinstance(e, SharedPoissonGaussian) else e for e in events]
    assert low < high < low + 0.05
    assert low <= epsilon_of(read, delta) <= 1.003 * high


def test_one_gaussian_has_its_exact_curve(script):
    """Balle and Wang 2018, theorem 8."""
    low, high = script.epsilon([(1.0, 1.0, 4)], 1e-5)
    mu = 2.0

    def delta(epsilon):
        tails = [math.erfc(-(s * mu / 2 - epsilon / mu) / math.sqrt(2)) / 2 for s in (1, -1)]
        return tails[0] - math.exp(epsilon) * tails[1]

    assert delta(low) > 1e-5 > delta(high)


def call(script, folder, capsys):
    code = script.main(folder)
    return code, capsys.readouterr().out.splitlines()


def test_it_holds_a_run_against_its_ledgers(script, run, capsys):
    code, lines = call(script, run, capsys)
    assert code == 0
    assert [line.split(":")[0] for line in lines] == ["t0-c0", "t0-c1", "t0-c2"]
    summary = json.loads((run / "summary.json").read_text())
    summary["clients"]["t0-c1"]["epsilon_spent"] -= 0.02
    (run / "summary.json").write_text(json.dumps(summary))
    code, lines = call(script, run, capsys)
    assert code == 1
    assert ["TOO LOW" in line for line in lines] == [False, True, False]


def test_units_that_are_sampled_are_recomputed(script, tmp_path):
    """A unit is drawn, clipped and charged as a record is: the events say all."""
    path, budget = tmp_path / "units.sqlite", PrivacyBudget(8.0, 1e-5)
    event = PoissonGaussian(1.0, 0.25, 12)
    with Ledger.open(path, dataset="wards", budget=budget) as ledger:
        ledger.use_unit(PrivacyUnit("patient", 4))
        ledger.charge(event, job="j", purpose="round 1")
        spent = epsilon_of(ledger.events(), budget.delta)
    steps, told = script.charges_of(path)
    low, high = script.epsilon(steps, told["delta"])
    assert low <= spent <= 1.003 * high


def test_a_broken_chain_is_refused(script, run):
    path = run / "ledgers" / "t0-c0.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER entries_hold")
        edited = "CAST(replace(CAST(body AS TEXT), 'round 1', 'round 9') AS BLOB)"
        connection.execute(f"UPDATE entries SET body = {edited}")
    connection.close()
    with pytest.raises(SystemExit, match="breaks the chain"):
        script.charges_of(path)


def test_what_it_cannot_compute_it_refuses(script):
    with pytest.raises(SystemExit, match="does not know the mechanism"):
        script.steps_of({"mechanism": "laplace", "noise_multiplier": 1.0})
    for noise, delta in ((1.0, 1e-12), (0.0, 1e-5)):
        with pytest.raises(SystemExit, match=r"too small|no noise"):
            script.epsilon([(noise, 1.0, 1)], delta)


def test_a_folder_without_a_finished_run_is_named(script, tmp_path):
    with pytest.raises(SystemExit, match=r"has no summary\.json; name the folder"):
        script.main(tmp_path)
