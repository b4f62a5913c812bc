"""What a site and a server keep of a run is audited and verified where it lies, by each alone."""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
from organisations import ONE, Directly, Organisations

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]

from command_line import call  # noqa: E402

from fedtree_secure.cli import audit as auditing  # noqa: E402
from fedtree_secure.flower.job_folder import JobFolder  # noqa: E402
from fedtree_secure.flower.server_report import report_of  # noqa: E402
from fedtree_secure.model.facts_file import write_facts  # noqa: E402
from fedtree_secure.site.site import Site  # noqa: E402

NAME = "t0-c1"
HEADS = dataclasses.replace(ONE["training"], head="group", head_steps=2)


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_bert, backbone):
    """Three sites and a server after a run of one round."""
    root = tmp_path_factory.mktemp("parties")
    settings = {**ONE, "rounds": 1, "training": HEADS}
    found = Organisations(root, tiny_bert, tasks=1, labels=("class-0", "class-1"), **settings)
    found.ready(backbone.frozen_digest.hex())
    found.write_job()
    facts = backbone.facts(found.terms("facts").outputs_of_heads)
    write_facts(found.folder / "model.facts", facts)
    folder = JobFolder(found.folder)
    with contextlib.ExitStack() as stack:
        sites = {n: stack.enter_context(Site.open(found.site(n))) for n in found.names}
        server = found.serve(backbone, Directly(sites, folder.run), folder.run)
        server.run()
    folder.check()
    folder.report(report_of(folder, server))
    return found


@pytest.fixture
def copies(places, tmp_path):
    """The folders of one site and of the server, to be changed."""
    shutil.copytree(places.site(NAME), tmp_path / "site")
    shutil.copytree(places.folder, tmp_path / "server")
    return tmp_path


def run_of(folder):
    (found,) = (folder / "runs").glob("*/job.json")
    return found.parent


def quick(monkeypatch):
    """All audits of the run's own files; the others attack the installed code and take long."""
    found = auditing.installed_audits
    names = ("artefacts", "disclosure", "ledger", "secagg_transcript")
    kept = {name: load for name, load in found("all").items() if name in names}
    monkeypatch.setattr(auditing, "installed_audits", lambda n: kept if n == "all" else found(n))


@pytest.mark.parametrize(
    ("party", "seen", "unseen"),
    [
        ("site", {"artefacts", "ledger"}, "disclosure, secagg_transcript"),
        ("server", {"artefacts", "disclosure"}, "ledger, secagg_transcript"),
    ],
)
def test_each_party_audits_what_it_has(copies, monkeypatch, capsys, party, seen, unseen):
    quick(monkeypatch)
    assert call("audit", "all", f"--{party}", copies / party) == 0
    shown = capsys.readouterr().out
    assert f"a {party}'s folder has no evidence for: {unseen}" in shown
    place = run_of(copies / party)
    written = {path.stem for path in (place / "audits").glob("*.json")}
    assert written - {"all"} == seen
    assert call("verify", place) == 0
    assert "as 1 clients signed them" in capsys.readouterr().out


def test_an_installed_audit_runs_at_a_site(copies):
    assert call("audit", "lattice", "--site", copies / "site") == 0


def _edit(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("party", "name", "change", "audit"),
    [
        ("site", "summary.json", lambda s: s["clients"][NAME].update(epsilon_spent=0.1), "ledger"),
        ("site", "report.json", lambda r: r.update(epsilon_spent=0.1), "artefacts"),
        ("server", "summary.json", lambda s: s["rounds"][1].update(closed=["x"]), "artefacts"),
        (
            "server",
            "summary.json",
            lambda s: [opened.pop() for r in s["rounds"] for opened in r["opened"].values()],
            "disclosure",
        ),
    ],
)
def test_what_was_changed_fails(copies, party, name, change, audit):
    _edit(run_of(copies / party) / name, change)
    assert call("audit", audit, f"--{party}", copies / party) == 1


def test_another_server_s_signature_is_none(copies):
    place = run_of(copies / "server")
    stranger = json.loads((run_of(copies / "site") / "manifest.json").read_text())["signatures"]
    _edit(place / "manifest.json", lambda m: m.update(signatures={"server": stranger[NAME]}))
    assert call("audit", "artefacts", "--server", copies / "server") == 1
    assert call("verify", place) == 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name one folder"),
        (("--site", "server"), "holds a server's run (--server)"),
        (("--server", "site"), "holds a site's run (--site)"),
        (("--site", "."), "holds no run"),
        (("--run", "site/runs/RUN"), "holds a site's run (--site)"),
    ],
)
def test_another_party_s_folder_is_refused_with_what_it_is(copies, capsys, arguments, said):
    run = run_of(copies / "site").name
    given = [a if a.startswith("--") else copies / a.replace("RUN", run) for a in arguments]
    assert call("audit", "ledger", *given) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_site_with_two_runs_is_asked_which(copies, capsys):
    place = run_of(copies / "site")
    shutil.copytree(place, place.with_name("another"))
    assert call("audit", "ledger", "--site", copies / "site") == 2
    assert "has several runs" in " ".join(capsys.readouterr().err.split())
    assert call("audit", "ledger", "--site", place) == 0


def test_nothing_private_lies_at_the_server(places):
    place = run_of(places.folder)
    rows = (places.site(NAME) / "train.csv").read_text().splitlines()[1:6]
    kept = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert not any(row.split(",")[0].encode() in kept for row in rows)
    assert not list(place.rglob("*.sqlite"))
