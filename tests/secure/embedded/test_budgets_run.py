"""Clients of one job with budgets of their own: what each plans, adds, is charged and is told."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml
from scripts import loaded
from shared_jobs import BUDGET, SHARED, clients_of, shared_federation
from small_jobs import federation, make_clients, make_job

from fedtree_audits import audit
from fedtree_dp import Ledger, PrivacyBudget, epsilon_of
from fedtree_dp.account.shared import given_honest
from fedtree_secagg import Identity, Roster
from fedtree_secure import ConfigurationError, Topology, Training
from fedtree_secure.agreed.noise_plan import events_of, plan_noise, shared_part
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.budgets import Budgets
from fedtree_secure.job_budgets import sentences
from fedtree_secure.job_file import build, load_job, load_public_job
from fedtree_secure.report.advice import alike
from fedtree_secure.report.exit_codes import Exit
from fedtree_secure.report.gate import Limits, decide
from fedtree_secure.report.statement import Statement

STRICT = PrivacyBudget(epsilon=3, delta=1e-3)
TRAINING = Training(records=60, head_steps=4, head="local", max_length=16)
SETTINGS = {"topology": Topology(source="one_group"), "training": TRAINING}
CLIENTS = ("t0-c0", "t0-c1", "t0-c2")
CHECK = Path(__file__).parents[3] / "examples" / "check_epsilon.py"


def one_strict(**changes):
    """Three clients; the first asks for less epsilon than the others."""
    first, *others = make_clients(tasks=1, each=3)
    return [dataclasses.replace(first, **{"privacy": STRICT, **changes}), *others]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, module_stores):
    place = tmp_path_factory.mktemp("budgets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        return federation(tiny_bert, **SETTINGS).run(one_strict(), place / "run")


def ledger_of(result, name):
    with Ledger.inspect(result.folder / "ledgers" / f"{name}.sqlite") as ledger:
        return ledger.events(), ledger.budget


# --- own noise ------------------------------------------------------------------------------------


def test_budgets_each_client_plans_and_is_charged_for_its_own(finished):
    for name, allowed in (("t0-c0", 3.0), ("t0-c1", 8.0), ("t0-c2", 8.0)):
        events, budget = ledger_of(finished, name)
        assert budget.epsilon == allowed
        assert epsilon_of(events, 1e-3) == pytest.approx(allowed, rel=2e-3)
        assert finished.data["clients"][name]["epsilon_spent"] <= allowed


def test_budgets_are_part_of_what_all_parties_agree_on(finished):
    """In the job, so in its digest: who was told other budgets derives other masks."""
    told = json.loads((finished.folder / "job.json").read_text())["job"]
    assert told["budgets"] == {"t0-c0": STRICT.to_dict()}
    job = build(type(make_job("m")), told, "")
    assert job.budget_of("t0-c0") == STRICT
    assert job.budget_of("t0-c1") == job.privacy
    without = dataclasses.replace(job, budgets={})
    assert job.digest() != without.digest()
    assert "budgets" not in without.to_dict()
    keys = {name: Identity(bytes([at]) * 32).public_bytes for at, name in enumerate("abc", 1)}
    named = dataclasses.replace(without, budgets={"a": STRICT})
    pinned = [Terms(j, Roster(keys), bytes(32), "run-1").digest for j in (without, named)]
    assert pinned[0] != pinned[1]
    with pytest.raises(ConfigurationError, match=r"budgets names 'd', which is no client of this"):
        Terms(dataclasses.replace(without, budgets={"d": STRICT}), Roster(keys), bytes(32), "run-1")


def test_budgets_stand_in_every_artefact_that_says_an_epsilon(finished):
    said = Statement.of(finished.folder)
    assert {c.name: c.allowed for c in said.clients} == {"t0-c0": 3, "t0-c1": 8, "t0-c2": 8}
    sentence = "t0-c0: epsilon 3 at delta 0.001; every other client: epsilon 8 at delta 0.001"
    assert sentence in said.budgets[0]
    assert "adds the noise of its own budget" in said.budgets[1]
    assert sentence in (finished.folder / "report.html").read_text()
    loss = yaml.safe_load((finished.folder / "privacy.yaml").read_text())["deployment"]
    details = loss["privacy_loss"]["privacy_parameters_details"]
    assert sentence in details
    assert "of 3 at delta" in details
    assert sentence in " ".join(str(finished).split())
    for name, allowed in (("t0-c0", 3), ("t0-c1", 8)):
        card = (finished.folder / "adapters" / name / "README.md").read_text()
        assert f"of a budget of\n{allowed}," in card
        facts = json.loads((finished.folder / "adapters" / name / "fedtree.json").read_text())
        assert facts["privacy"]["epsilon"] <= allowed


def test_budgets_keep_no_name_where_names_are_left_out(finished):
    plain = Statement.of(finished.folder).without_names()
    assert "t0-c0" not in repr(plain)
    assert list(plain.job["budgets"].values()) == [STRICT.to_dict()]


def test_budgets_of_the_strict_raise_the_noise_that_the_server_is_told(finished):
    """The cut by bias and variance weighs each client by the noise that it announced."""
    ratios = {n: c["noise_to_clip"] for n, c in finished.data["clients"].items()}
    assert ratios["t0-c0"] > 1.8 * ratios["t0-c1"] == 1.8 * ratios["t0-c2"]
    planned = json.loads((finished.folder / "clients" / "t0-c0" / "noise.json").read_text())
    assert planned == dataclasses.asdict(plan_noise(make_job("m", **SETTINGS), STRICT))


# --- what notices a promise that is not kept ------------------------------------------------------


def promised(finished, place, **budgets):
    """A copy of the run whose files promise other budgets than were planned."""
    folder = shutil.copytree(finished.folder, place / "run")
    for name in ("job.json", "summary.json"):
        told = json.loads((folder / name).read_text())
        told["job"]["budgets"] = budgets
        (folder / name).write_text(json.dumps(told))
    return folder


def test_budgets_the_gate_holds_each_client_to_its_own_promise(finished, tmp_path):
    assert decide(finished.folder, Limits(max_epsilon=8)).code is Exit.OK
    folder = promised(finished, tmp_path, **{"t0-c1": STRICT.to_dict()})
    found = decide(folder, Limits(max_epsilon=8)).troubles
    said = [t.said for t in found if t.code is Exit.BUDGET]
    assert len(said) == 1
    assert said[0].startswith("t0-c1: epsilon is 7.99")
    assert "above 3, which the job promises this client" in said[0]


def test_budgets_the_gate_wants_one_story(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    told = json.loads((folder / "summary.json").read_text())
    del told["job"]["budgets"]
    (folder / "summary.json").write_text(json.dumps(told))
    found = decide(folder, Limits(max_epsilon=8)).troubles
    assert any("t0-c0: job.json promises" in t.said and t.code is Exit.SIGNATURE for t in found)
    told["job"]["privacy"] = "much"
    (folder / "summary.json").write_text(json.dumps(told))
    found = decide(folder, Limits(max_epsilon=8)).troubles
    assert any("promises it cannot be read" in trouble.said for trouble in found)


def test_budgets_the_audit_finds_noise_for_another_epsilon(finished, tmp_path):
    assert audit(finished.folder, "ledger").verdict == "PASS"
    found = audit(promised(finished, tmp_path, **{"t0-c1": STRICT.to_dict()}), "ledger")
    wrong = {check.name for check in found.checks if not check.holds}
    assert wrong == {"t0-c1: promise", "t0-c1: noise plan"}


def test_budgets_are_held_by_the_script_that_trusts_nobody(finished, tmp_path, capsys):
    script = loaded(CHECK)
    all_strict = dict.fromkeys(CLIENTS, STRICT.to_dict())  # only the first one planned for it
    assert script.main(promised(finished, tmp_path, **all_strict)) == 1
    kept = ["WHICH IS NOT KEPT" not in line for line in capsys.readouterr().out.splitlines()]
    assert kept == [True, False, False]


# --- refused --------------------------------------------------------------------------------------


def test_budgets_that_do_not_fit_the_job_are_refused(tmp_path):
    job = make_job("m")
    for given, said in (
        ({"a": PrivacyBudget(9, 1e-3)}, r"budgets\.a: epsilon is 9; allowed: at most the job's 8"),
        ({"a": PrivacyBudget(3, 1e-2)}, r"budgets\.a: delta is 0\.01; allowed: at most the job's"),
        ({"a": 3}, r"budgets\.a is 3"),
        (3, "budgets is 3; allowed: a table of clients' budgets"),
        ({"../a": STRICT}, r"a client in budgets is '\.\./a'"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            dataclasses.replace(job, budgets=given)
    shared = make_job("m", **SHARED)
    for given, said in (
        (STRICT, r"budgets\.a: own_epsilon is not given"),
        (PrivacyBudget(3, 1e-3, own_epsilon=15), r"own_epsilon is 15; allowed: at most the"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            dataclasses.replace(shared, budgets={"a": given})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a = {epsilon = 0, delta = 1e-5}", r"^budgets\.a: epsilon must be a finite number"),
        ("a = {epsilon = 3}", r"^missing setting budgets\.a\.delta"),
        ("a = {epsilon = 3, delta = 1e-5, own = 4}", r"^unknown setting budgets\.a\.own"),
        ("a = 3", r"budgets\.a is 3; it must be a table"),
    ],
)
def test_budgets_of_a_job_file_are_refused_by_name(tmp_path, line, said):
    place = tmp_path / "job.toml"
    text = f'backbone = "m"\nprivacy = {{epsilon = 8, delta = 1e-5}}\n[budgets]\n{line}\n'
    place.write_text(text + '[[clients]]\nid = "a"\ntrain = "a.csv"\n')
    with pytest.raises(ConfigurationError, match=said):
        load_job(place)


def test_budgets_of_clients_tables_and_of_the_job_are_one(tmp_path):
    place = tmp_path / "job.toml"
    head = 'backbone = "m"\nprivacy = {epsilon = 8, delta = 1e-5}\n'
    client = '[[clients]]\nid = "a"\ntrain = "a.csv"\n'
    own = "privacy = {epsilon = 3, delta = 1e-5}\n"
    place.write_text(head + client + own)
    job, _ = load_job(place)
    assert job.budgets == Budgets({"a": PrivacyBudget(3, 1e-5)})
    place.write_text(f"{head}[budgets]\na = {{epsilon = 3, delta = 1e-5}}\n{client}")
    assert load_job(place)[0].digest() == job.digest()
    place.write_text(f"{head}[budgets]\na = {{epsilon = 2, delta = 1e-5}}\n{client}{own}")
    with pytest.raises(ConfigurationError, match=r"client a: its privacy is .*; say one of them"):
        load_job(place)
    place.write_text(head + client + own.replace("delta = 1e-5", "delta = 1e-5, own_epsilonn = 4"))
    with pytest.raises(ConfigurationError, match=r"clients\[0\]\.privacy\.own_epsilonn"):
        load_job(place)


def test_budgets_that_no_run_can_keep_are_refused_before_anything_is_made(
    tiny_bert, tmp_path, stores
):
    job = federation(tiny_bert, **SETTINGS)
    for given, said in (
        ({"privacy": PrivacyBudget(9, 1e-3)}, r"budgets\.t0-c0: epsilon is 9; allowed: at most"),
        ({"privacy": PrivacyBudget(1e-3, 1e-3)}, r"client t0-c0: at epsilon 0\.001 its noise"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            job.run(one_strict(**given), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"budgets names 't0-c9'.*did you mean 't0-c"):
        job.replace(budgets={"t0-c9": STRICT}).run(one_strict(), tmp_path / "run")
    assert not list(stores.glob("*/store.sqlite"))


# --- shared noise ---------------------------------------------------------------------------------

LITTLE = PrivacyBudget(epsilon=3, delta=1e-3, own_epsilon=6)


def test_budgets_of_a_job_with_shared_noise_ask_for_the_strictest_part():
    """The same part from everybody, so that in every sum the strictest promise holds for all."""
    job = make_job("m", **{**SHARED, "training": TRAINING})
    mixed = dataclasses.replace(job, budgets={"t0-c0": LITTLE})
    strict = dataclasses.replace(job, privacy=LITTLE)
    assert shared_part(mixed) == shared_part(strict) > shared_part(job)
    wide, tight = (plan_noise(mixed, b, agreed=b) for b in (BUDGET, LITTLE))
    assert wide.rounds == tight.rounds == plan_noise(strict, LITTLE).rounds
    assert tight.head > wide.head > 0, "what stays at home has the client's own"
    spent = [epsilon_of(given_honest(events_of(mixed, p)), 1e-3) for p in (wide, tight)]
    assert spent[1] == pytest.approx(3, rel=2e-3)
    assert spent[0] < 8, "who allows more spends less than it allows"
    assert "the strictest of these budgets asks for" in sentences(mixed)[1]
    assert "epsilon 3 at delta 0.001, own_epsilon 6" in sentences(mixed)[0]


def test_budgets_with_shared_noise_run_and_each_is_told_what_it_gets(tiny_bert, tmp_path, stores):
    training = dataclasses.replace(TRAINING, head_steps=4)
    first, *others = clients_of(3)
    clients = [dataclasses.replace(first, privacy=LITTLE), *others]
    result = shared_federation(tiny_bert, training=training, rounds=1).run(
        clients, tmp_path / "run"
    )
    reports = result.data["clients"]
    charged = {name: ledger_of(result, name)[0] for name in reports}
    parts = {e.noise_multiplier for c in charged.values() for e in c if "shared" in e.mechanism}
    assert len(parts) == 1
    heads = {name: c[0].noise_multiplier for name, c in charged.items()}
    assert heads["t0-c0"] > heads["t0-c1"] == heads["t0-c2"]
    assert reports["t0-c0"]["epsilon_spent"] == pytest.approx(3, rel=2e-3)
    assert reports["t0-c0"]["own_epsilon_spent"] <= 6
    assert 3 < reports["t0-c1"]["epsilon_spent"] < 8
    assert "spends less than it allows" in " ".join(str(result).split())
    assert decide(result.folder, Limits(max_epsilon=8, max_own_epsilon=14)).code is Exit.OK
    found = audit(result.folder, "ledger")
    assert found.verdict == "PASS", [c for c in found.checks if not c.holds]


# --- the page -------------------------------------------------------------------------------------


def test_budgets_of_the_page_are_jobs(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "budgets.md").read_text("utf-8")
    blocks = [part.partition("```")[0] for part in page.split("```toml\n")[1:]]
    jobs = []
    for number, block in enumerate(blocks):
        place = tmp_path / f"{number}.toml"
        place.write_text(f'backbone = "m"\n{block}')
        jobs.append(load_public_job(place))
    assert [job.budget_of("st-anna").epsilon for job in jobs] == [3, 3]
    assert [job.budget_of("others").epsilon for job in jobs] == [8, 8]
    assert [job.noise for job in jobs] == ["own", "shared"]


@pytest.mark.parametrize(("clients", "row"), [(3, 0), (6, 1), (12, 2)])
def test_budgets_of_the_page_say_what_a_strict_member_costs(clients, row):
    page = (Path(__file__).parents[3] / "docs" / "budgets.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line[:4] in ("| 1 ", "| 2 ", "| 3 ", "| 5 ")]
    assert len(lines) == 4
    for line in lines:
        factor, *cells = (float(cell) for cell in line.strip("| ").split("|"))
        cost = alike([factor, *[1.0] * (clients - 1)])  # what advice counts with
        assert cost == pytest.approx(((clients - 1 + factor**2) / clients) ** 0.5)
        assert cells[row] == pytest.approx(cost, abs=0.0051)
