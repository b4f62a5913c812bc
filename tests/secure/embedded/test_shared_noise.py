"""Whole runs with shared noise on a tiny model: what is charged, said and refused."""

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from shared_jobs import BUDGET, SHARED, clients_of, shared_federation
from small_jobs import federation, make_clients, make_job

from fedtree_audits import audit
from fedtree_dp import (
    BudgetExceeded,
    Ledger,
    PrivacyBudget,
    SharedPoissonGaussian,
    epsilon_of,
)
from fedtree_dp.account.shared import given_honest
from fedtree_secure import ConfigurationError, Masking, Topology, Training
from fedtree_secure.agreed.noise_plan import events_of, part_of, plan_noise, shared_part
from fedtree_secure.embedded.references import reference_jobs
from fedtree_secure.job_file import build, load_public_job
from fedtree_secure.report.exit_codes import Exit
from fedtree_secure.report.gate import Limits, decide
from fedtree_secure.report.ledger_check import check_ledgers
from fedtree_secure.report.priced_plan import price_job_file
from fedtree_secure.report.statement import Statement

TOPOLOGY = Topology(sketch_size=64)
TRAINING = Training(records=60, head_steps=4, head="local", max_length=16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, module_stores):
    place = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        return shared_federation(tiny_bert, topology=TOPOLOGY, training=TRAINING).run(
            clients_of(), place / "run"
        )


def events(result, name="t0-c0"):
    with Ledger.inspect(result.folder / "ledgers" / f"{name}.sqlite") as ledger:
        return ledger.events()


# --- what is charged and said ---------------------------------------------------------------------


def test_rounds_are_charged_as_shared_and_all_else_as_own(finished):
    charged = events(finished)
    assert [e.mechanism for e in charged] == [
        "gaussian",
        "poisson_gaussian",
        *["shared_poisson_gaussian"] * 2,
    ]
    assert {e.honest for e in charged[2:]} == {2}
    assert epsilon_of(given_honest(charged), 1e-3) == pytest.approx(8, rel=2e-3)
    assert 8 < epsilon_of(charged, 1e-3) <= 14


def test_the_summary_says_both_epsilons_and_their_condition(finished):
    report = finished.data["clients"]["t0-c0"]
    charged = events(finished)
    assert report["epsilon_spent"] == epsilon_of(given_honest(charged), 1e-3)
    assert report["own_epsilon_spent"] == epsilon_of(charged, 1e-3)
    assert report["own_epsilon_allowed"] == 14
    rows = report["statement"]["honest_others"]
    assert [row["others"] for row in rows] == [1, 0]
    assert rows[0]["epsilon"] == report["epsilon_spent"]
    assert rows[1]["epsilon"] == report["own_epsilon_spent"]
    shared = finished.data["guarantee"]["shared"]
    assert shared["condition"] in report["statement"]["assumptions"]
    assert "1 other client that is honest and adds it" in shared["condition"]
    assert "without trusting anybody" not in finished.data["guarantee"]["observers"]
    assert "By number of honest others: 1: 8.00, 0:" in " ".join(str(finished).split())


def test_every_artefact_of_the_claim_has_its_condition(finished):
    said = Statement.of(finished.folder)
    worst = f"{said.own_epsilon:.4f}"
    condition = said.shared["condition"]
    page = (finished.folder / "report.html").read_text()
    assert "These figures are conditional" in page
    assert condition in page
    assert worst in page
    loss = yaml.safe_load((finished.folder / "privacy.yaml").read_text())["deployment"]
    assert condition in loss["privacy_loss"]["privacy_parameters_details"]
    assert worst in loss["privacy_loss"]["privacy_parameters_details"]
    assert "not the protection of others" not in loss["implementation"]["additional_information"]
    card = (finished.folder / "adapters" / "t0-c0" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])["privacy"]
    assert front["condition"] == condition
    assert front["own_epsilon"] == pytest.approx(said.clients[0].own_epsilon)
    facts = json.loads((finished.folder / "adapters" / "t0-c0" / "fedtree.json").read_text())
    assert facts["privacy"]["own_epsilon"] == finished.data["clients"]["t0-c0"]["own_epsilon_spent"]
    assert facts["privacy"]["condition"] == condition


def test_the_gate_passes_a_conditional_claim_only_where_the_rest_is_allowed(finished):
    def code(**limits):
        found = decide(finished.folder, Limits(max_epsilon=8, **limits))
        return found.code, " ".join(t.said for t in found.troubles)

    assert code(max_own_epsilon=14) == (Exit.OK, "")
    refused, why = code()
    assert refused is Exit.BUDGET
    assert "holds only while" in why
    assert "max-own-epsilon" in why
    refused, why = code(max_own_epsilon=9)
    assert refused is Exit.BUDGET
    assert "own noise alone" in why
    with pytest.raises(ConfigurationError, match="max-own-epsilon"):
        Limits(max_epsilon=8, max_own_epsilon=0)


def test_the_gate_notices_a_summary_that_hides_the_condition(finished, tmp_path):
    place = shutil.copytree(finished.folder, tmp_path / "run")
    told = json.loads((place / "summary.json").read_text())
    del told["guarantee"]["shared"]
    (place / "summary.json").write_text(json.dumps(told))
    found = decide(place, Limits(max_epsilon=8, max_own_epsilon=14))
    assert any("does not say so" in trouble.said for trouble in found.troubles)


def test_audits_know_shared_noise_or_say_that_they_do_not(finished, tmp_path):
    place = shutil.copytree(finished.folder, tmp_path / "run")
    assert audit(place, "ledger").verdict == "PASS"
    for name in ("canary_whitebox", "accounted", "hostile_server", "lattice"):
        own = audit(place, name)
        assert own.verdict == "INCONCLUSIVE"
        assert "shares its noise" in own.missing[0]
    told = json.loads((place / "summary.json").read_text())
    told["clients"]["t0-c0"]["statement"]["honest_others"].pop()
    told["clients"]["t0-c1"]["own_epsilon_spent"] -= 1
    (place / "summary.json").write_text(json.dumps(told))
    found = audit(place, "ledger")
    assert found.verdict == "FAIL"
    wrong = {check.name for check in found.checks if not check.holds}
    assert wrong == {"t0-c0: condition", "t0-c1: own noise"}


def test_ledgers_are_checked_for_both_promises(finished):
    found = list(check_ledgers(finished.folder / "ledgers"))
    assert len(found) == 4
    assert all(c.kept and c.epsilon <= 8 < c.own <= c.own_allowed == 14 for c in found)
    assert not dataclasses.replace(found[0], own=14.1).kept


# --- the plan -------------------------------------------------------------------------------------


def test_own_epsilon_is_a_floor_of_each_member_s_noise():
    """Tight, it sets the noise; wide, it does not."""
    job = make_job("m", **SHARED)
    wide, tight = (
        dataclasses.replace(job, privacy=dataclasses.replace(BUDGET, own_epsilon=own))
        for own in (200, 9)
    )
    own = dataclasses.replace(job, noise="own", privacy=BUDGET)
    shared, alone = plan_noise(wide, wide.privacy), plan_noise(own, BUDGET)
    assert dataclasses.replace(shared, rounds=alone.rounds) == alone
    assert alone.rounds <= shared.rounds < alone.rounds * (1 + 2**-19)  # rounded up, to be agreed
    strict = plan_noise(tight, tight.privacy)
    assert strict.rounds > plan_noise(wide, wide.privacy).rounds
    charged = events_of(tight, strict)
    assert epsilon_of(charged, 1e-3) == pytest.approx(9, rel=2e-3)
    assert epsilon_of(charged, 1e-3) <= 9
    assert epsilon_of(given_honest(charged), 1e-3) < 8


def test_more_members_in_the_smallest_sum_need_less_of_each():
    few, many = (
        make_job("m", **{**SHARED, "masking": Masking(min_group=size, colluders=1)})
        for size in (3, 5)
    )
    parts = [
        next(e for e in events_of(job, plan_noise(job, BUDGET)) if e.mechanism.startswith("shared"))
        for job in (few, many)
    ]
    assert [e.honest for e in parts] == [2, 4]
    assert parts[0].noise_multiplier > parts[1].noise_multiplier


@pytest.mark.parametrize(("colluders", "honest"), [(0, 4), (1, 4), (2, 3), (3, 2)])
def test_a_curious_member_is_counted_off_even_where_none_colludes(colluders, honest):
    """It sees the sum, and knows its own part of the noise."""
    job = make_job("m", **{**SHARED, "masking": Masking(min_group=5, colluders=colluders)})
    (event,) = [e for e in events_of(job, plan_noise(job, BUDGET)) if "shared" in e.mechanism]
    assert event.honest == honest


def test_a_plan_says_what_it_assumes(tiny_bert):
    found = shared_federation(tiny_bert).plan()
    assert found.epsilon == pytest.approx(8, rel=2e-3)
    assert [row.others for row in found.honest_others] == [1, 0]
    assert found.part == pytest.approx(found.noise_multiplier / 2**0.5)
    own = federation(tiny_bert, **{**SHARED, "noise": "own"}).plan()
    assert found.noise_to_clip == pytest.approx(own.noise_to_clip / 2**0.5, rel=2e-3)
    assert "By number of honest others: 1:" in str(found.table().caption)


@pytest.mark.parametrize("given", [{"unknown": "rounds"}, {"noise_multiplier": 1.0}])
def test_a_plan_s_noise_follows_from_the_job_alone(tmp_path, given):
    place = tmp_path / "job.toml"
    place.write_text(
        'backbone = "m"\nnoise = "shared"\nprivacy = {epsilon = 8, delta = 1e-3, own_epsilon = 9}\n'
        '[[clients]]\nid = "a"\ntrain = "a.csv"\n'
    )
    with pytest.raises(ConfigurationError, match="solve for the noise alone"):
        price_job_file(place, parameters=10, **given)


def test_replacing_epsilon_keeps_own_epsilon():
    job = shared_federation("m").replace(epsilon=3).job
    assert job.privacy == PrivacyBudget(epsilon=3, delta=1e-3, own_epsilon=14)
    assert shared_federation("m").replace(own_epsilon=20).job.privacy.own_epsilon == 20
    with pytest.raises(ValueError, match="own_epsilon"):
        shared_federation("m").replace(epsilon=15)


def test_own_noise_reads_and_hashes_as_before():
    told = make_job("m").to_dict()
    assert "noise" not in told
    assert told["privacy"] == {"epsilon": 8.0, "delta": 1e-3}
    digest = make_job("m").digest().hex()
    assert digest == "5b26317efd884b008eaf00e1f311cad97a7d351c00b1ad4e92def7ccfff30326"
    assert make_job("m", **SHARED).digest() != make_job("m", **{**SHARED, "noise": "own"}).digest()


def test_a_job_file_says_it_in_the_same_words():
    given = {
        "backbone": "m",
        "noise": "shared",
        "privacy": {"epsilon": 8, "delta": 1e-3, "own_epsilon": 20},
    }
    from fedtree_secure.config import Job

    job = build(Job, given, "")
    assert (job.noise, job.privacy.own_epsilon, job.weighs_noise) == ("shared", 20.0, False)
    with pytest.raises(ConfigurationError, match=r"noise.*allowed: own, shared"):
        build(Job, given | {"noise": "common"}, "")


def test_the_settings_of_the_page_are_a_job_that_counts_on_three():
    from fedtree_secure.config import Job

    page = (Path(__file__).parents[3] / "docs" / "shared-noise.md").read_text("utf-8")
    settings = page.split("```toml\n")[1].split("```")[0]
    job = build(Job, {"backbone": "m", **tomllib.loads(settings)}, "")
    assert job.masking.honest == 3
    assert job.privacy.own_epsilon == 6


def test_references_of_a_client_alone_have_own_noise():
    found = reference_jobs(make_job("m", **SHARED))
    assert found["local"].noise == "own"
    assert found["fedit"].noise == "shared"


# --- bad input: one sentence, nothing charged -----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"privacy": PrivacyBudget(epsilon=8, delta=1e-3)},
            r"privacy\.own_epsilon is not given.*at least epsilon 8",
        ),
        (
            {"training": Training(records=60, local_steps=2)},
            r"training\.local_steps is 2; allowed: 1 with noise = \"shared\"",
        ),
        (
            {"topology": Topology(source="lora_b")},
            r"topology\.source is 'lora_b'; allowed: fingerprint or one_group",
        ),
        ({"topology": Topology(source="none")}, r"topology\.source is 'none'"),
        (
            {"topology": Topology(cut="noise_aware")},
            r"topology\.cut is 'noise_aware'; allowed: auto or silhouette",
        ),
        ({"rounds": 0}, "rounds is 0; allowed: at least 1"),
        ({"noise": "common"}, "noise is 'common'; allowed: own, shared"),
    ],
)
def test_jobs_that_would_show_a_part_of_the_noise_are_refused(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        make_job("m", **{**SHARED, **changes})


def test_own_epsilon_below_epsilon_and_groups_too_small_are_refused():
    with pytest.raises(ValueError, match="own_epsilon must be a finite number at least 8"):
        PrivacyBudget(epsilon=8, delta=1e-3, own_epsilon=7)
    with pytest.raises(ConfigurationError, match=r"masking\.min_group is 3.*colluders \+ 2 = 4"):
        make_job("m", **{**SHARED, "masking": Masking(min_group=3, colluders=2)})


def test_runs_that_would_show_a_part_of_the_noise_are_refused(tiny_bert, tmp_path, stores):
    job = shared_federation(tiny_bert)
    with pytest.raises(ConfigurationError, match="canaries is 10; allowed: 0 with noise"):
        job.run(clients_of(), tmp_path / "run", auditable=True, canaries=10)
    other = [dataclasses.replace(clients_of()[0], records=80), *clients_of()[1:]]
    with pytest.raises(ConfigurationError, match=r"t0-c0: it declares 80 records.*one divisor"):
        job.run(other, tmp_path / "run")
    few = [dataclasses.replace(c, records=None) for c in make_clients(tasks=1, each=2)]
    with pytest.raises(ConfigurationError, match=r"at least masking\.min_group = 3"):
        job.run(few, tmp_path / "run")
    bare = dataclasses.replace(clients_of()[0], privacy=PrivacyBudget(8, 1e-3))
    with pytest.raises(ConfigurationError, match=r"budgets\.t0-c0: own_epsilon is not given"):
        job.run([bare, *clients_of()[1:]], tmp_path / "run")
    assert not list(stores.glob("*/store.sqlite"))


def test_a_second_job_finds_what_both_promises_left(finished):
    """Own_epsilon holds over all jobs on the data set, not for one run."""
    job, spent = make_job("m", **SHARED), events(finished)
    wide = PrivacyBudget(epsilon=20, delta=1e-3, own_epsilon=60)
    assert plan_noise(job, wide, spent) == plan_noise(job, BUDGET)
    for budget, what in (
        (PrivacyBudget(epsilon=14, delta=1e-3, own_epsilon=14), "the epsilon of its own noise"),
        (PrivacyBudget(epsilon=9, delta=1e-3, own_epsilon=60), "bring epsilon to"),
    ):
        with pytest.raises(BudgetExceeded, match=f"{what}.*nothing was charged"):
            plan_noise(job, budget, spent)
    own = dataclasses.replace(job, noise="own", privacy=wide)
    assert epsilon_of(given_honest(spent), 1e-3) < 8.01  # what a job with own noise is left beside
    with pytest.raises(BudgetExceeded, match="own noise alone"):
        plan_noise(own, PrivacyBudget(epsilon=12, delta=1e-3, own_epsilon=12.5), spent)


def test_every_party_of_a_deployment_says_the_same_of_the_noise(tmp_path):
    place = tmp_path / "job.toml"
    place.write_text(
        'backbone = "m"\nnoise = "shared"\nprivacy = {epsilon = 8, delta = 1e-3, own_epsilon = 9}\n'
        "[training]\nhead = 'local'\n"
    )
    job = load_public_job(place)
    plan = plan_noise(job, job.privacy)
    assert shared_part(job) == part_of(job, plan.rounds)
    assert plan.rounds * 2**20 % 1 == 0, "the last bits may differ on another machine"


def test_a_fingerprint_run_never_sketches_a_gradient(finished):
    assert not any("round-1/sketch" in line for line in transcript(finished))
    assert isinstance(events(finished)[-1], SharedPoissonGaussian)


def transcript(result):
    return (result.folder / "transcript.txt").read_text().splitlines()
