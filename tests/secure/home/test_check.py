"""`fedtree-secure check`: all errors of all clients at once; what it measures of rows; no trace."""

import pytest
from small_jobs import make_clients
from unit_rows import PATIENTS, unit_clients

from fedtree_dp import Gaussian, PrivacyBudget
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.home.check import examine

JOB = """
backbone = "{model}"
rounds = 1
privacy = {{epsilon = 8, delta = 1e-3}}
[training]
records = 60
head_steps = 2
max_length = 16
[topology]
source = "one_group"
[lora]
r = 2
"""


@pytest.fixture
def job(tmp_path, tiny_bert):
    text = JOB.format(model=tiny_bert)
    for client in make_clients()[:3]:
        client.train.to_pandas().to_csv(tmp_path / f"{client.id}.csv", index=False)
        client.test.to_pandas().to_csv(tmp_path / f"{client.id}-test.csv", index=False)
        labels = '["class-0", "class-1"]'
        text += f'[[clients]]\nid = "{client.id}"\ntrain = "{client.id}.csv"\nlabels = {labels}\n'
        text += f'test = "{client.id}-test.csv"\n'
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def replace(job, old, new):
    text = job.read_text()
    assert old in text
    job.write_text(text.replace(old, new, 1))


def lines(job, name):
    return (job.parent / name).read_text().splitlines()


def put(job, name, rows):
    (job.parent / name).write_text("\n".join(rows) + "\n")


def test_every_error_of_every_client_is_said_at_once(job, stores):
    put(job, "t0-c0.csv", [*lines(job, "t0-c0.csv"), " ,class-0", "badu,", "badu,class-9"])
    put(job, "t0-c1-test.csv", ["text,label", "bad, worse,class-0"])
    (job.parent / "t0-c2.csv").unlink()
    replace(job, "r = 2", 'r = 2\ntargets = ["q"]')
    errors = examine(job).errors
    for told in (
        "client t0-c0: row 60 of train has no text",
        "client t0-c0: row 61 of train has no label",
        "double quotes",
        "client t0-c2: there is no file",
        "no linear layer named 'q'",
    ):
        assert any(told in error for error in errors), (told, errors)
    assert not stores.exists()


def test_a_job_that_would_run_has_no_errors_and_leaves_no_trace(job, stores):
    before = sorted(job.parent.iterdir())
    report = examine(job)
    assert report.errors == []
    assert sorted(job.parent.iterdir()) == before
    assert not stores.exists()
    facts = " ".join(report.facts)
    for told in ("trained values", "shared by 3 clients", "noise: t0-c0, t0-c1, t0-c2", "kB sent"):
        assert told in facts


def test_what_rows_look_like_is_counted(job):
    train, test = lines(job, "t0-c0.csv"), lines(job, "t0-c0-test.csv")
    long = " ".join(["badu"] * 40)
    put(job, "t0-c0.csv", [*train, train[1], train[2], *(f"{long} {i},class-0" for i in range(8))])
    put(job, "t0-c0-test.csv", [*test, train[3].replace(" ", "  ", 1)])
    report = examine(job)
    first, second = report.clients[:2]
    assert (first.rows, first.declared, first.test_rows) == (70, 60, 31)
    assert (first.twice, first.in_both) == (2, 1)
    assert first.cut == pytest.approx(8 / 70)
    assert (second.twice, second.in_both, second.cut) == (0, 0, 0)
    rare, common = map(int, first.balance.split("/"))
    assert rare + common == 70
    advice = " ".join(report.advice)
    for told in ("2 training rows repeat", "1 test rows are training rows", "11% of its texts"):
        assert f"client t0-c0: {told}" in advice
    assert "client t0-c1" not in advice


def test_a_size_that_is_declared_wrongly_and_a_rare_label_are_advised_on(job):
    replace(job, "records = 60", "records = 200")
    put(job, "t0-c1.csv", [x.replace("class-1", "class-0") for x in lines(job, "t0-c1.csv")])
    advice = " ".join(examine(job).advice)
    assert "client t0-c0: 200 records are declared and 60 are there" in advice
    assert "client t0-c1: class-1 is below 5% of its rows" in advice


def test_rows_of_two_clients_that_are_the_same_are_an_error(job):
    put(job, "t0-c1.csv", lines(job, "t0-c0.csv"))
    (error,) = examine(job).errors
    assert "texts of t0-c0 are those of t0-c1" in error


def test_what_earlier_jobs_spent_is_in_the_noise(job, stores, tmp_path):
    """The store is read, and stays as it is."""
    sets = DataSets(stores, tmp_path / "heads")
    with sets.opened("t0-c0", PrivacyBudget(8, 1e-3), ["another text"]) as ledger:
        ledger.charge(Gaussian(1.0), job="earlier", purpose="statistics")
    store = sets.store_of("t0-c0")
    before = store.read_bytes()
    facts = [fact for fact in examine(job).facts if fact.startswith("noise: ")]
    assert store.read_bytes() == before
    noises = [float(fact.split("multiplier ")[1].split()[0]) for fact in facts]
    assert facts[0].startswith("noise: t0-c0 at epsilon 8 (1 charges before)")
    assert facts[1].startswith("noise: t0-c1, t0-c2 at epsilon 8:")
    assert noises[0] > noises[1]


def test_a_budget_that_is_spent_is_an_error(job, stores, tmp_path):
    with DataSets(stores, tmp_path / "heads").opened(
        "t0-c0", PrivacyBudget(8, 1e-3), ["another text"]
    ) as ledger:
        ledger.charge(Gaussian(0.4801), job="earlier", purpose="statistics")
        spent = ledger.spent()
    assert 7.992 < spent <= 8
    (error,) = examine(job).errors
    assert error.startswith(f"client t0-c0: epsilon {spent:.4f} of 8 is spent by earlier jobs")


def test_units_are_counted_where_the_job_protects_them(tmp_path, tiny_bert, stores):
    text = JOB.format(model=tiny_bert)
    text = f'unit = "patient_id"\nmax_per_unit = 4\n{text}'
    for client in unit_clients():
        client.train.to_pandas().to_csv(tmp_path / f"{client.id}.csv", index=False)
        text += f'[[clients]]\nid = "{client.id}"\ntrain = "{client.id}.csv"\n'
        text += 'labels = ["class-0", "class-1"]\n'
    path = tmp_path / "job.toml"
    path.write_text(text)
    report = examine(path)
    assert report.errors == []
    assert [(c.rows, c.counted) for c in report.clients] == [(60, PATIENTS)] * 3
    advice = f"60 patient_ids are declared and {PATIENTS} are there"
    assert sum(advice in line for line in report.advice) == 3
    path.write_text(text.replace('"patient_id"', '"person"'))
    assert sum("no column 'person'" in error for error in examine(path).errors) == 3


@pytest.mark.parametrize("change", ["a language model", "heads alone"])
def test_every_kind_of_job_can_be_checked(job, tiny_bert, tiny_llama, change):
    if change == "heads alone":
        replace(job, "rounds = 1", "rounds = 0")
    else:
        replace(job, str(tiny_bert), str(tiny_llama))
        replace(job, "rounds = 1", 'rounds = 1\ntask = "causal-lm"')
    report = examine(job)
    assert report.errors == []
    assert {client.balance == "-" for client in report.clients} == {change == "a language model"}
    assert any("heads alone" in fact for fact in report.facts) == (change == "heads alone")
    assert any(fact.startswith("time: about") for fact in report.facts)


def test_adapters_that_are_not_expected_to_pay_are_said_with_both_reasons(job, stores):
    both = ("mean-pooled states", "times the clipping norm even among 3 clients")
    replace(job, "records = 60", 'records = 60\npooling = "native"')
    assert not any(said in line for line in examine(job).advice for said in both)
    replace(job, '"native"', '"mean"')
    replace(job, "epsilon = 8", "epsilon = 0.2")
    advice = examine(job).advice
    assert [sum(said in line for line in advice) for said in both] == [1, 1]
    replace(job, "rounds = 1", "rounds = 0")
    assert not any(said in line for line in examine(job).advice for said in both)
