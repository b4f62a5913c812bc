"""A whole job that protects patients: what is charged, drawn, stated, and refused."""

import dataclasses
import json
import math
import re
import shutil
import sqlite3

import pytest
import yaml
from small_jobs import make_clients, make_job
from unit_rows import unit_clients, unit_job

from fedtree_dp import Gaussian, Ledger, LedgerError, PrivacyUnit
from fedtree_secure import DataError, Federation, Topology
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.embedded import references
from fedtree_secure.embedded.forecast import Forecast, parts_of
from fedtree_secure.embedded.progress import Silent
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.embedded.watching import Watch
from fedtree_secure.events import Events
from fedtree_secure.report.card import card_text
from fedtree_secure.report.gate import Limits, decide
from fedtree_secure.report.page import render
from fedtree_secure.report.statement import Statement
from fedtree_secure.server.telemetry import RoundMeter

PATIENT = PrivacyUnit("patient_id", 4)


@pytest.fixture(scope="module")
def done(tiny_bert, tmp_path_factory):
    """A run of one round with three clients, fingerprint, heads and gradients; read-only."""
    out = tmp_path_factory.mktemp("runs") / "patients"
    return Federation.of(unit_job(tiny_bert)).run(unit_clients(), out)


@pytest.fixture
def used(module_stores, monkeypatch):
    """The stores that the run of the module has used."""
    monkeypatch.setenv("FEDTREE_STATE", str(module_stores / "state"))
    monkeypatch.setenv("FEDTREE_HEADS", str(module_stores / "heads"))
    return DataSets.of_user()


def test_units_are_named_in_every_ledger_before_the_first_charge(done):
    for client in unit_clients():
        with Ledger.inspect(done.folder / "ledgers" / f"{client.id}.sqlite") as ledger:
            kinds = [entry.kind for entry in ledger.entries()]
            assert kinds[:2] == ["opened", "unit"]
            assert set(kinds[2:]) == {"charge"}
            assert ledger.unit == PATIENT
            purposes = {entry.purpose for entry in ledger.entries()[2:]}
            assert purposes == {"fingerprint", "head", "round 1"}


def test_units_are_what_statement_card_and_page_speak_of(done):
    told = done.data["guarantee"]
    assert told["adjacency"] == "add or remove one patient_id (at most 4 records)"
    assert told["unit"].startswith("one patient_id (all its records")
    formal = done.data["clients"]["t0-c0"]["statement"]
    assert formal["neighbours"] == told["adjacency"]
    statement = Statement.of(done.folder)
    card = yaml.safe_load(card_text(statement))
    loss = card["deployment"]["privacy_loss"]
    assert loss["privacy_unit"] == told["unit"]
    assert "one patient_id of one client" in loss["privacy_unit_details"]
    assert loss["number_of_privacy_units"] == 60
    assert "clipped for each patient_id" in card_text(statement).replace("\n", " ")
    text = render(statement)
    assert "Declared patient_ids" in text
    assert "add or remove one patient_id (at most 4 records)" in text
    assert "The unit is one patient_id with all its rows" in text
    assert "single rows" not in text


def test_epsilon_for_units_follows_from_the_events_of_a_run(done):
    """By other means: lines read with sqlite3 alone, one Gaussian, the exact curve."""
    with sqlite3.connect(done.folder / "ledgers" / "t0-c0.sqlite") as connection:
        bodies = connection.execute("SELECT body FROM entries ORDER BY sequence").fetchall()
    connection.close()
    lines = [json.loads(body) for (body,) in bodies]
    (unit,) = [line["unit"] for line in lines if line["kind"] == "unit"]
    assert unit == {"name": "patient_id", "at_most": 4}
    events = [line["event"] for line in lines if line["kind"] == "charge"]
    assert {event.get("sample_rate", 1) for event in events} == {1}
    mu = math.sqrt(sum(e.get("steps", 1) / e["noise_multiplier"] ** 2 for e in events))

    def delta(epsilon):
        def phi(x):
            return math.erfc(-x / math.sqrt(2)) / 2

        left, right = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return phi(left) - math.exp(epsilon) * phi(right)

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-3 else (low, middle)
    report = done.data["clients"]["t0-c0"]
    assert report["epsilon_spent"] == pytest.approx(high, rel=2e-3)
    assert high <= report["epsilon_spent"] <= report["epsilon_allowed"]


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (None, "job.json says one record"),
        ({"name": "patient_id", "at_most": 9}, r"says one patient_id \(at most 9 records\)"),
        ({"name": "stay", "at_most": 4}, r"says one stay \(at most 4 records\)"),
        ("guarantee", "one thing in its job and another in its guarantee"),
    ],
)
def test_units_that_ledgers_do_not_protect_are_caught_by_the_gate(done, tmp_path, unit, said):
    assert not [t for t in decide(done.folder, Limits(8.0)).troubles if "protects" in t.said]
    out = shutil.copytree(done.folder, tmp_path / "copy")
    for name in ("job.json", "summary.json"):
        told = json.loads((out / name).read_text())
        if unit == "guarantee":
            told.get("guarantee", {}).pop("of", None)
        else:
            del told["job"]["unit"], told["job"]["max_per_unit"]
            told.setdefault("guarantee", {}).pop("of", None)
            if unit is not None:
                told["job"] |= {"unit": unit["name"], "max_per_unit": unit["at_most"]}
                told["guarantee"]["of"] = unit
        (out / name).write_text(json.dumps(told))
    troubles = [t.said for t in decide(out, Limits(8.0)).troubles]
    found = [t for t in troubles if "its ledger protects one patient_id (at most 4 records)" in t]
    assert len(found) >= 3
    assert re.search(said, " ".join(found))


def test_units_are_not_mixed_on_one_data_set_and_nothing_is_charged(
    done, used, tiny_bert, tmp_path
):
    job, clients = unit_job(tiny_bert), unit_clients()
    before = [Ledger.inspect(used.store_of(c.id)).entries() for c in clients]
    settings = dataclasses.replace(job.training, records=60)
    others = (
        dataclasses.replace(job, unit=None, max_per_unit=None, training=settings),
        dataclasses.replace(job, max_per_unit=5),
    )
    for number, other in enumerate(others):
        with pytest.raises(LedgerError, match="units are not mixed on one data set"):
            Federation.of(other).run(clients, tmp_path / f"other-{number}")
        assert not (tmp_path / f"other-{number}" / "job.json").exists()
    assert [Ledger.inspect(used.store_of(c.id)).entries() for c in clients] == before


def test_units_named_too_late_leave_the_other_ledgers_alone(tiny_bert, tmp_path):
    """The last client's data set has charges for records; no other ledger gets a line."""
    *_, last = clients = unit_clients()
    sets = DataSets.of_user()
    job = make_job(tiny_bert)
    with sets.opened(last.id, job.privacy, last.train["text"]) as ledger:
        ledger.charge(Gaussian(50.0), job="earlier", purpose="a figure")
    with pytest.raises(LedgerError, match="protect one record, the job's would protect one pat"):
        Federation.of(unit_job(tiny_bert)).run(clients, tmp_path / "late")
    for client in clients[:-1]:
        assert Ledger.inspect(sets.store_of(client.id)).unit is None


def test_language_models_of_units_warm_up_with_canaries_and_resume(tiny_llama, tmp_path):
    topology = Topology(source="lora_b", warmup_steps=2, sketch_size=16)
    job = unit_job(tiny_llama, task="causal-lm", rounds=1, topology=topology)
    out = tmp_path / "llm"
    done = Federation.of(job).run(unit_clients(), out, auditable=True, canaries=20)
    assert done.data["guarantee"]["of"] == PATIENT.to_dict()
    assert "random patient_ids join" in done.data["auditable"]["costs"][1]
    again = Federation.of(job).run(unit_clients(), out, auditable=True, canaries=20, resume=True)
    assert again["t0-c0"].epsilon == done["t0-c0"].epsilon


def test_simulated_heads_without_noise_are_those_of_units(tiny_bert, monkeypatch):
    seen = []
    monkeypatch.setattr(references, "train_head", lambda *given: seen.append(given[-1]))
    shared = Shared()
    job = unit_job(tiny_bert)
    watch = Watch("a", job, Silent(), Forecast(parts_of("a", job, [20])), Events(), RoundMeter())
    references._heads_without_dp(job, unit_clients(each=1), shared, watch)
    (members,) = seen
    assert len(members) == 20
    assert max(map(len, members)) == 4
    assert shared.cache_of("t0-c0", PATIENT) is not shared.cache_of("t0-c0")


def test_clients_without_units_are_refused_before_anything(tiny_bert, tmp_path):
    with pytest.raises(DataError, match="train has no column 'patient_id'"):
        Federation.of(unit_job(tiny_bert)).run(make_clients(tasks=1), tmp_path / "none")
    assert not list(DataSets.of_user().stores.glob("*/store.sqlite"))
