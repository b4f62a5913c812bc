"""What an officer reads: card, page, bill of materials and model cards, all from one statement."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
import yaml
from huggingface_hub import ModelCard

from fedtree_dp import Gaussian, Ledger, PrivacyBudget
from fedtree_secure.errors import ConfigurationError, RunFolderError
from fedtree_secure.report import drawings
from fedtree_secure.report.card import Facts, card_text, privacy_card, read_facts
from fedtree_secure.report.card_schema import FILE, check_card, document
from fedtree_secure.report.evidence import write_report
from fedtree_secure.report.hazards import HAZARDS
from fedtree_secure.report.model_card import write_model_card
from fedtree_secure.report.page import render
from fedtree_secure.report.sbom import bill_of_materials
from fedtree_secure.report.statement import OTHER_JOBS, Statement, burn_down

TESTS = Path(__file__).parents[2]
FACTS = Facts(curator_type="Nonprofit", sector="Healthcare", authors=("an officer",))


@pytest.fixture(scope="module")
def statement(finished):
    return Statement.of(finished)


class Tags(HTMLParser):
    """Elements and attributes of a page, and elements that were not closed."""

    VOID = ("meta", "br", "wbr", "rect", "path")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# --- statement ------------------------------------------------------------------------------------


def test_a_statement_says_what_ledgers_and_transcript_say(statement, finished):
    (client, *_) = statement.clients
    with Ledger.inspect(finished / "ledgers" / "t0-c0.sqlite") as ledger:
        purposes = [entry.purpose for entry in ledger.entries()[1:]]
    assert [charge.purpose for charge in client.burn_down] == purposes
    grown = [charge.epsilon for charge in client.burn_down]
    assert grown == sorted(grown)
    assert grown[-1] == pytest.approx(client.epsilon, abs=1e-3)
    lines = (finished / "transcript.txt").read_text().splitlines()[1:]
    assert sum(traffic.messages for traffic in statement.traffic) == len(lines)
    assert sum(traffic.bytes for traffic in statement.traffic) == sum(
        int(line.split()[4]) for line in lines
    )


def test_charges_of_other_jobs_are_one_point(tmp_path):
    with Ledger.open(tmp_path / "l", dataset="d", budget=PrivacyBudget(8, 1e-5)) as ledger:
        for job in ("before", "before", "mine", "beside", "mine"):
            ledger.charge(Gaussian(5.0), job=job, purpose="p")
        found = burn_down(ledger.entries(), "mine", 1e-5)
    assert [charge.purpose for charge in found] == [OTHER_JOBS, "p", OTHER_JOBS, "p"]


def test_a_statement_names_no_path_of_the_machine(statement, tiny_bert):
    assert statement.job["backbone"] == tiny_bert.name
    for text in (render(statement), card_text(statement)):
        assert str(tiny_bert.parent) not in text


def test_an_unfinished_run_has_no_statement(run):
    (run / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="--resume"):
        Statement.of(run)


def test_a_run_of_another_form_has_no_statement(run):
    (run / "summary.json").write_text('{"clients": {}}')
    with pytest.raises(RunFolderError, match="this version reads"):
        Statement.of(run)


# --- names ----------------------------------------------------------------------------------------


def test_no_name_is_left_without_names(audited_run):
    path = audited_run / "audits" / "ledger.json"
    found = json.loads(path.read_text())
    assert any("t0-c1" in check["name"] for check in found["checks"])  # audits speak of clients
    found["checks"] = [check | {"holds": False} for check in found["checks"]]
    found["missing"] = ["ledgers/t0-c2.sqlite, canaries_T0-C1 and t0-c0-train.csv"]
    path.write_text(json.dumps(found | {"verdict": "FAIL"}))
    place = write_report(audited_run, {}, named=False)
    assert place == audited_run / "report" / "no-names"
    names = re.compile("t0-c|class-", re.IGNORECASE)  # labels may name a site, too
    for written in sorted(place.iterdir()):
        text = written.read_text()
        assert not names.search(text), written.name
        assert "client 1" in text
        assert "client 3" in text
    named = write_report(audited_run, {})
    assert "t0-c2" in (named / "report.html").read_text()  # and there it is seen


def test_numbers_in_place_of_names_do_not_follow_the_names_order(statement):
    metrics = {c.name: (c.metric["value"], c.bytes_sent) for c in statement.clients}
    drawn = set()
    for _ in range(40):  # the same order 40 times: 6^-39
        unnamed = statement.without_names()
        drawn.add(tuple((c.metric["value"], c.bytes_sent) for c in unnamed.clients))
        assert [c.name for c in unnamed.clients] == ["client 1", "client 2", "client 3"]
    assert len(drawn) > 1
    assert {pair for order in drawn for pair in order} == set(metrics.values())


def test_sites_with_numbers_keep_their_groups(statement):
    unnamed = statement.without_names()
    assert [c.labels for c in unnamed.clients] == [()] * 3  # they may name a site
    for layer, other in zip(statement.layers, unnamed.layers, strict=True):
        assert [len(group) for group in layer.groups] == [len(group) for group in other.groups]
        assert {name for group in other.groups for name in group} <= {
            c.name for c in unnamed.clients
        }


# --- card -----------------------------------------------------------------------------------------


def test_a_card_with_facts_is_a_record_of_the_registry(statement):
    card = yaml.safe_load(card_text(statement, FACTS))
    check_card(card)
    assert card == privacy_card(statement, FACTS)
    loss = card["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": statement.epsilon, "delta": 1e-3}
    assert loss["number_of_privacy_units"] == 180
    check_card(yaml.safe_load(card_text(statement.without_names(), FACTS)))


def test_a_card_without_facts_invents_none(statement):
    text = card_text(statement)
    assert "facts.toml" in text
    card = yaml.safe_load(text)
    with pytest.raises(msgspec.ValidationError, match="data_curator_type"):
        check_card(card)
    for curator in card["deployment"]["basic"]["data_curators"]:
        curator["data_curator_type"] = "Industry"
    check_card(card)  # that was all


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("deployment", "dp_variant", "variant_name"), "Exact DP"),
        (("deployment", "privacy_loss", "number_of_privacy_units"), "many"),
        (("deployment", "basic", "publication_date"), "1.1.2026"),
        (("deployment", "basic", "data_curators"), []),
        (("deployment", "administrative", "tier"), 4),
        (("deployment", "surprise"), "x"),
    ],
)
def test_a_card_that_is_no_record_is_found(statement, path, value):
    card = privacy_card(statement, FACTS)
    inner = card
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(msgspec.ValidationError):
        check_card(card)


def test_the_published_schema_is_that_of_the_types():
    assert json.loads(FILE.read_text()) == document()


def test_facts_come_from_a_file(tmp_path):
    example = TESTS.parent / "examples" / "ci" / "facts.toml"
    assert read_facts(example).curator_type == "Nonprofit"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('curator_typ = "Nonprofit"', "did you mean 'curator_type'"),
        ('curator_type = "Bank"', "Government, Industry, Nonprofit"),
        ('sector = "Banks"', "Finance"),
        ('curators = "a"', "list of names"),
        ("authors = 3", "list of names"),
        ("name = 3", "must be text"),
        ("name", "cannot be read"),
    ],
)
def test_facts_that_are_none_are_refused(tmp_path, text, told):
    path = tmp_path / "facts.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        read_facts(path)


# --- page -----------------------------------------------------------------------------------------


def test_the_page_runs_no_script_and_loads_nothing(finished):
    text = (finished / "report.html").read_text()
    page = Tags(text)
    assert page.open == []
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    for tag, attributes in page.found:
        assert not {"src", "href", "srcset", "xlink:href", "style"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "//" not in text.replace("<!doctype html>", "")
    assert not re.search(r"url\(|@import", text)


def test_no_document_claims_that_anybody_is_hidden_altogether(finished):
    for name in ("report.html", "privacy.yaml", "adapters/t0-c0/README.md"):
        assert "anonym" not in (finished / name).read_text().lower()


def test_the_page_shows_every_client_exchange_and_hazard(statement, finished):
    text = (finished / "report.html").read_text()
    for client in statement.clients:
        assert f"{client.epsilon:.4f}" in text
        assert f"Epsilon of {client.dataset}: fingerprint" in text
    for exchange in statement.traffic:
        assert f"<td>{exchange.exchange}</td>" in text
    assert text.count("<figure>") == len(statement.clients)
    assert text.count("not run<br>") == sum(len(hazard.audits) for hazard in HAZARDS)
    assert "No audit was run" in text


def test_the_page_shows_verdicts_and_what_is_wrong(audited_run):
    path = audited_run / "audits" / "ledger.json"
    found = json.loads(path.read_text())
    found["checks"][0] |= {"holds": False, "detail": "<script>alert(1)</script>"}
    path.write_text(json.dumps(found | {"verdict": "FAIL"}))
    text = render(Statement.of(audited_run))
    assert '<td class="bad">FAIL</td>' in text
    assert '<td class="good">PASS</td>' in text
    assert "&lt;script&gt;" in text
    assert "<script" not in text


def test_a_drawing_escapes_what_it_is_given(statement):
    (client, *_) = statement.clients
    drawn = drawings.burn_down(replace(client, dataset='"><script>'))
    assert "<script>" not in drawn
    assert "&quot;&gt;&lt;script&gt;" in drawn


def test_every_hazard_cites_tests_that_exist():
    source = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    names = re.findall(r"^def (test_\w+)", source, re.MULTILINE)
    for hazard in HAZARDS:
        for cited in hazard.tests:
            assert any(name.startswith(cited) for name in names), cited


def test_every_hazard_cites_audits_that_exist():
    from fedtree_audits.command import NAMES

    assert {name for hazard in HAZARDS for name in hazard.audits} <= set(NAMES)


# --- model card and bill of materials -------------------------------------------------------------


def test_an_adapters_readme_is_a_model_card_with_a_privacy_block(finished, statement):
    card = ModelCard.load(finished / "adapters" / "t0-c1" / "README.md")
    assert card.data.library_name == "peft"
    privacy = card.data.to_dict()["privacy"]
    assert privacy["epsilon"] == statement.clients[1].epsilon
    assert privacy["delta"] == 1e-3
    assert privacy["run"] == statement.run
    assert "PeftModel.from_pretrained" in card.text  # what was there stays
    assert "## Privacy" in card.text


def test_a_model_card_is_written_once_however_often(run, statement):
    folder = run / "adapters" / "t0-c0"
    before = (folder / "README.md").read_text()
    write_model_card(folder, statement, statement.clients[0])
    assert (folder / "README.md").read_text() == before


def test_the_bill_of_materials_is_well_formed(finished):
    bill = json.loads((finished / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    main = bill["metadata"]["component"]
    assert main["name"] == "fedtree-secure"
    references = [component["bom-ref"] for component in [main, *bill["components"]]]
    assert len(references) == len(set(references))
    for component in bill["components"][1:]:
        assert re.fullmatch(r"pkg:pypi/[a-z0-9-]+@[A-Za-z0-9.%_-]+", component["purl"])
    names = {component["name"].lower() for component in bill["components"]}
    assert {"torch", "opacus", "cryptography", "numpy"} <= names
    for entry in bill["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= set(references)
    (ours,) = [e for e in bill["dependencies"] if e["ref"] == main["bom-ref"]]
    assert any(needed.startswith("pkg:pypi/opacus@") for needed in ours["dependsOn"])


def test_the_bill_is_the_same_for_the_same_environment_and_time():
    time = "2026-01-01T00:00:00+00:00"
    assert bill_of_materials(time) == bill_of_materials(time)
    assert bill_of_materials(time)["metadata"]["component"]["type"] == "application"
    assert bill_of_materials(time, [])["components"][0]["type"] == "platform"
