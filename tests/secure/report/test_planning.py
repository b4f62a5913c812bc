"""`budget plan`: what it solves for, what it refuses, and that a job file and Python mean the same
plan.
"""

import dataclasses

import pytest

from fedtree_dp import Gaussian, PoissonGaussian, PrivacyBudget, epsilon_of
from fedtree_secure import Federation
from fedtree_secure.agreed.noise_plan import plan_noise
from fedtree_secure.cli.app import main
from fedtree_secure.config import Job, Training
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_file import load_job
from fedtree_secure.report.plan_curves import AXES, FACTORS
from fedtree_secure.report.priced_plan import price_job_file, price_numbers

JOB = """
backbone = "somewhere"
rounds = 5
privacy = {epsilon = 4, delta = 1e-5}
[training]
records = 800
[[clients]]
id = "a"
train = "a.csv"
[[clients]]
id = "b"
train = "b.csv"
[[clients]]
id = "c"
train = "c.csv"
records = 2000
privacy = {epsilon = 2, delta = 1e-5}
"""
NUMBERS = {"delta": 1e-5, "records": 1000}


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["budget", "plan", *map(str, arguments)])
    shown = capsys.readouterr()
    return stopped.value.code, " ".join((shown.out + shown.err).split())


def test_a_budget_in_python_is_the_budget_in_toml(job_file, tmp_path):
    budget = PrivacyBudget(epsilon=4, delta=1e-5)
    in_python = Federation(
        backbone="somewhere", privacy=budget, rounds=5, training=Training(records=800)
    )
    inline, clients = load_job(job_file)
    assert inline.privacy == budget
    assert clients[2].privacy == PrivacyBudget(epsilon=2, delta=1e-5)
    assert inline.digest() == in_python.replace(budgets={"c": clients[2].privacy}).job.digest()
    other = tmp_path / "table.toml"
    other.write_text(
        JOB.replace("privacy = {epsilon = 4, delta = 1e-5}\n", "").replace(
            "[training]", "[privacy]\nepsilon = 4.0\ndelta = 0.00001\n[training]"
        )
    )
    assert load_job(other)[0].digest() == inline.digest()


def test_a_job_file_is_planned_as_it_would_run(job_file):
    job, _ = load_job(job_file)
    outlooks = price_job_file(job_file, parameters=1)
    assert [outlook.title for outlook in outlooks] == ["a, b", "c"]
    for outlook, budget in zip(
        outlooks, (job.privacy, PrivacyBudget(epsilon=2, delta=1e-5)), strict=True
    ):
        run = dataclasses.asdict(plan_noise(job, budget))
        assert outlook.stages == pytest.approx({k: v for k, v in run.items() if v}, rel=2e-3)
        assert 0.995 * budget.epsilon < outlook.row.epsilon <= budget.epsilon


def test_every_unknown_of_a_job_is_solved_for(job_file):
    job_file.write_text(JOB.replace("privacy = {epsilon = 2, delta = 1e-5}", ""))
    sigma = price_job_file(job_file, parameters=1)[0].row.noise_multiplier
    job, _ = load_job(job_file)
    planned = price_job_file(job_file, parameters=1, noise_multiplier=2 * sigma, unknown="epsilon")[
        0
    ]
    training = job.training
    events = [
        Gaussian(plan_noise(job, job.privacy).fingerprint),
        PoissonGaussian(2 * sigma, training.sample_rate, 5),
        PoissonGaussian(
            2 * sigma * training.head_noise_ratio, training.head_sample_rate, training.head_steps
        ),
    ]
    assert planned.row.epsilon == pytest.approx(epsilon_of(events, 1e-5))
    assert planned.allowed is None
    more = price_job_file(job_file, parameters=1, noise_multiplier=1.1 * sigma, unknown="rounds")[0]
    assert more.row.plan.rounds > 5
    larger = price_job_file(job_file, parameters=1, noise_multiplier=1.1 * sigma, unknown="batch")[
        0
    ]
    assert larger.row.plan.batch > 160


def test_numbers_solve_for_the_one_that_is_missing():
    noise = price_numbers(
        epsilon=4, noise_multiplier=None, rounds=10, batch=200, **NUMBERS
    ).row.noise_multiplier
    again = price_numbers(epsilon=None, noise_multiplier=noise, rounds=10, batch=200, **NUMBERS)
    assert 3.98 < again.row.epsilon <= 4
    more = 1.001 * noise
    assert (
        price_numbers(
            epsilon=4, noise_multiplier=more, rounds=None, batch=200, **NUMBERS
        ).row.plan.rounds
        == 10
    )
    found = price_numbers(
        epsilon=4, noise_multiplier=more, rounds=10, batch=None, **NUMBERS
    ).row.plan.batch
    assert found == pytest.approx(200, abs=1)
    with pytest.raises(ConfigurationError, match="missing now: noise, batch"):
        price_numbers(epsilon=4, noise_multiplier=None, rounds=10, batch=None, **NUMBERS)
    with pytest.raises(ConfigurationError, match="missing now: none"):
        price_numbers(epsilon=4, noise_multiplier=1.0, rounds=10, batch=5, **NUMBERS)
    with pytest.raises(ConfigurationError, match="at most the 1000 records"):
        price_numbers(epsilon=4, noise_multiplier=None, rounds=10, batch=1001, **NUMBERS)


def test_the_command_shows_a_table_and_writes_a_plot(tmp_path, capsys):
    plot = tmp_path / "plan.png"
    code, shown = call(
        capsys,
        "--epsilon",
        4,
        "--delta",
        "1e-5",
        "--records",
        1000,
        "--rounds",
        8,
        "--batch",
        250,
        "--plot",
        plot,
    )
    assert code == 0
    assert "noise solved for" in shown
    assert all(f" {rounds} " in shown for rounds in (2, 4, 8, 16, 32))
    assert plot.read_bytes().startswith(b"\x89PNG")
    outlook = price_numbers(epsilon=4, noise_multiplier=None, rounds=8, batch=250, **NUMBERS)
    for axis, rows in outlook.curves(FACTORS).items():
        assert axis in AXES
        assert len(rows) >= 7
        assert outlook.row.noise_multiplier in {row.noise_multiplier for row in rows}


def test_the_command_plans_a_job_file(job_file, capsys):
    code, shown = call(capsys, "--job", job_file, "--trained-values", 512)
    assert code == 0
    assert "a, b: n = 800" in shown
    assert "c: n = 2000" in shown
    assert "fingerprint" in shown


VALUES = ("--trained-values", 512)  # the model is not here


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--epsilon", 4, "--rounds", 8, "--batch", 250, "--records", 1000], "a plan needs delta"),
        (
            ["--epsilon", 4, "--rounds", 8, "--delta", "1e-5", "--records", 1000],
            "missing now: noise, batch",
        ),
        (
            ["--epsilon", 4, "--rounds", 8, "--batch", 9, "--delta", 0.01, "--records", 1000],
            "delta",
        ),
        (
            [
                "--epsilon",
                4,
                "--rounds",
                8,
                "--batch",
                9,
                "--delta",
                1e-5,
                "--records",
                99,
                "--solve",
                "noise",
            ],
            "solve",
        ),
        (["--job", "JOB", "--epsilon", 4], "has its own epsilon"),
        (["--job", "JOB", "--noise", 4, *VALUES], "exactly when"),
        (["--job", "JOB", "--solve", "rounds", *VALUES], "exactly when"),
        (["--job", "nowhere.toml"], "no job file"),
        (["--job", "JOB"], "cannot be fetched"),
        (["--job", "JOB", "--plot", "plan.pdf", *VALUES], "PNG"),
    ],
)
def test_the_command_refuses(job_file, capsys, arguments, told):
    code, shown = call(capsys, *[job_file if a == "JOB" else a for a in arguments])
    assert code == 2
    assert told in shown


def test_a_job_without_rounds_has_nothing_to_plan(job_file):
    job_file.write_text(JOB.replace("rounds = 5", "rounds = 0"))
    with pytest.raises(ConfigurationError, match="no rounds"):
        price_job_file(job_file, parameters=1)
    assert isinstance(load_job(job_file)[0], Job)
