"""`fedtree-secure budget`: what a plan costs. What `plan` solves for: `report/test_planning.py`."""

from command_line import call

from fedtree_secure.cli import budget

NUMBERS = ("--epsilon", 8, "--delta", "1e-5", "--records", 1000, "--batch", 200, "--rounds", 10)


def test_budget_prices_a_plan(capsys):
    assert call("budget", *NUMBERS) == 0
    shown = capsys.readouterr().out
    assert "noise" in shown
    assert "200" in shown


def test_budget_refuses_a_delta_that_is_too_large(capsys):
    assert call("budget", *("0.01" if given == "1e-5" else given for given in NUMBERS)) == 2
    assert "delta" in capsys.readouterr().err


def test_plan_counts_every_number_that_a_job_file_has_itself(job_file, capsys):
    assert call("budget", "plan", "--job", job_file, "--local-steps", 2) == 2
    assert "its own local-steps" in " ".join(capsys.readouterr().err.split())


def test_plan_counts_the_values_that_the_jobs_own_adapters_train(job_file):
    """Of rank 4 on query and value of two layers of 32, A frozen."""
    (priced,) = budget._priced(budget.Numbers(), job_file, "noise", None)
    assert priced.row.plan.parameters == 4 * 2 * 2 * 32


def test_plan_refuses_a_job_whose_model_is_not_here(job_file, capsys):
    text = job_file.read_text()
    job_file.write_text(text.replace(text.splitlines()[0], 'backbone = "./gone"'))
    assert call("budget", "plan", "--job", job_file) == 2
    assert "no model folder" in capsys.readouterr().err
