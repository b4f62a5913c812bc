"""`verify`: every changed byte of every artefact has a name, and so has every added file."""

import hashlib
import json
import os
import shutil

import pytest
import rfc8785

from fedtree_secagg import Identity
from fedtree_secure.cli.evidence import _identities
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.report.evidence import write_report
from fedtree_secure.report.exit_codes import Exit
from fedtree_secure.report.gate import Limits, decide
from fedtree_secure.report.manifest import NAME, listed, write_manifest
from fedtree_secure.report.verification import verify

PRIVATE = ("identity.key", ".lock")  # keys of the clients, and the lock of a process


def artefacts(folder):
    """Every file that a run leaves, without keys, the lock, and the server's working state."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in PRIVATE and "server" not in path.parts
    )


def flip(path, at, bit=1):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def resign(folder, identities=None):
    run = json.loads((folder / "job.json").read_text())["run"]
    write_manifest(folder, run, identities or _identities(folder))


def test_a_run_is_as_its_clients_signed_it(finished):
    found = verify(finished)
    assert found.findings == ()
    assert found.signers == ("t0-c0", "t0-c1", "t0-c2")
    assert found.files == len(artefacts(finished)) - 1  # all but the manifest itself
    assert found.manifest_sha256 == hashlib.sha256((finished / NAME).read_bytes()).hexdigest()


def test_nothing_that_a_run_leaves_is_outside_the_manifest(finished):
    assert sorted([*listed(finished), NAME]) == artefacts(finished)
    for name in ("privacy.yaml", "report.html", "sbom.json", "adapters/t0-c0/README.md"):
        assert name in artefacts(finished)


def test_a_flipped_bit_of_every_artefact_is_noticed_and_named(run):
    for name in artefacts(run):
        path, size = run / name, (run / name).stat().st_size
        for at in {0, size // 2, size - 1}:
            flip(path, at)
            named = {finding.file for finding in verify(run).findings}
            assert named, (name, at)
            if name not in ("job.json", "roster.json", NAME):  # these speak of other files
                assert name in named, (name, at)
            flip(path, at)
    assert verify(run).holds


def test_every_single_byte_of_a_manifest_is_noticed(tmp_path):
    key = Identity.generate(os.urandom(32))
    about = {"run": "r", "clients": {"a": {"dataset": "d", "records": 1}}}
    (tmp_path / "job.json").write_text(json.dumps(about))
    roster = {"clients": {"a": key.public_bytes.hex()}}
    (tmp_path / "roster.json").write_text(json.dumps(roster))
    write_manifest(tmp_path, "r", {"a": key})
    assert {f.file for f in verify(tmp_path).findings} == {"ledgers/d.sqlite"}  # there is none
    path = tmp_path / NAME
    for at in range(path.stat().st_size):
        for bit in (1, 0x20):  # another character; the same letter in another case, a white space
            flip(path, at, bit)
            assert NAME in {f.file for f in verify(tmp_path).findings}, (at, bit)
            flip(path, at, bit)


def test_a_manifest_that_was_written_again_is_noticed(run):
    path = run / NAME
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    (finding,) = verify(run).findings
    assert "canonical" in str(finding)


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"summary.json": 3}},
        {"files": {"summary.json": {}}},
        {"files": {"summary.json": {"entries": [1], "sha256": 1}}},
        {"files": [], "signatures": {}},
        {"signatures": {"t0-c0": 5, "nobody": None}},
        {"files": {"a": {"bytes": 2**60}}},
        {"files": {"\ud800": {}}},
        {"format": 2},
    ],
)
def test_hostile_manifests_are_found_and_never_crash(run, change):
    content = json.loads((run / NAME).read_text()) | change
    (run / NAME).write_text(json.dumps(content))
    assert NAME in {finding.file for finding in verify(run).findings}
    try:
        (run / NAME).write_bytes(rfc8785.dumps(content))
    except ValueError:
        return  # it has no canonical form
    assert not verify(run).holds


@pytest.mark.parametrize("name", ["job.json", "roster.json", "summary.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"clients": 3}', '{"clients": {"t0-c0": 1}}'])
def test_hostile_run_files_are_found_and_never_crash(run, name, text):
    (run / name).write_text(text)
    assert name in {finding.file for finding in verify(run).findings}
    assert decide(run, Limits(max_epsilon=8)).code is Exit.SIGNATURE


def test_a_changed_entry_is_named(run):
    path = run / "summary.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "gpu"'))
    (finding,) = verify(run).findings
    assert str(finding) == "summary.json: not what was delivered; changed: device"


def test_a_lost_file_is_named(run):
    (run / "adapters" / "t0-c1" / "fedtree.json").unlink()
    (finding,) = verify(run).findings
    assert str(finding) == "adapters/t0-c1/fedtree.json: it was delivered and is gone"


@pytest.mark.parametrize("name", ["loader.py", "adapters/t0-c0/.hidden", "ledgers/x.sqlite"])
def test_an_added_file_is_named(run, name):
    (run / name).write_bytes(b"x")
    assert name in {finding.file for finding in verify(run).findings}


def test_a_manifest_cannot_name_files_elsewhere(run):
    secret = run.parent / "secret"
    secret.write_text("x")
    content = json.loads((run / NAME).read_text())
    content["files"]["../secret"] = {"bytes": 1, "sha256": "", "entries": {}}
    (run / NAME).write_bytes(rfc8785.dumps(content))
    assert "../secret: outside the run folder" in map(str, verify(run).findings)


def test_a_list_made_to_fit_lacks_the_clients_signatures(run):
    flip(run / "adapters" / "t0-c0" / "adapter_model.safetensors", -1)
    resign(run, {name: Identity.generate(os.urandom(32)) for name in ("t0-c0", "t0-c1", "t0-c2")})
    said = list(map(str, verify(run).findings))
    assert "manifest.json: the signature of t0-c0 does not fit" in said
    assert len(said) == 6  # no signature fits, and no client has signed


def test_every_client_must_have_signed(run):
    keys = _identities(run)
    keys.pop("t0-c2")
    resign(run, keys)
    assert "manifest.json: t0-c2 did not sign it" in map(str, verify(run).findings)


def test_keys_and_manifest_replaced_together_are_known_by_a_hash_kept_elsewhere(run):
    kept = verify(run).manifest_sha256
    keys = {name: Identity.generate(os.urandom(32)) for name in ("t0-c0", "t0-c1", "t0-c2")}
    roster = json.loads((run / "roster.json").read_text())
    roster["clients"] = {name: key.public_bytes.hex() for name, key in keys.items()}
    (run / "roster.json").write_text(json.dumps(roster))
    resign(run, keys)
    found = {finding.file for finding in verify(run).findings}
    assert found == {f"ledgers/{name}.sqlite" for name in keys}  # their checkpoints still tell
    assert NAME in {finding.file for finding in verify(run, kept).findings}


def test_a_ledger_of_another_run_is_noticed_even_if_listed(run):
    shutil.copy(run / "ledgers" / "t0-c0.sqlite", run / "ledgers" / "t0-c1.sqlite")
    resign(run)
    said = " ".join(map(str, verify(run).findings))
    assert "the ledger of 't0-c0'" in said
    assert "not the ledger of this checkpoint" in said


def test_what_is_no_run_and_what_is_no_hash_are_refused(finished, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no job\.json"):
        verify(tmp_path)
    with pytest.raises(ConfigurationError, match="64"):
        verify(finished, "ABC")


def test_audits_are_unsigned_until_a_report_is_written(audited_run):
    before = verify(audited_run)
    assert before.holds
    assert "audits/ledger.json" in before.unsigned
    write_report(audited_run, _identities(audited_run))
    after = verify(audited_run)
    assert after.holds
    assert after.unsigned == ()
    assert after.files == before.files + 8  # two audits of three files, report and card


def test_a_flipped_bit_of_every_audit_and_report_is_noticed(audited_run):
    write_report(audited_run, _identities(audited_run))
    later = [n for n in artefacts(audited_run) if n.startswith(("audits/", "report/"))]
    assert len(later) == 9
    for name in later:
        flip(audited_run / name, 1)
        assert name in {finding.file for finding in verify(audited_run).findings}
        flip(audited_run / name, 1)


def test_an_audit_that_ran_after_the_report_is_named(audited_run):
    write_report(audited_run, _identities(audited_run))
    (audited_run / "audits" / "lattice.json").write_text("{}")
    (finding,) = verify(audited_run).findings
    assert finding.file == "audits/lattice.json"


def test_a_report_of_another_run_or_by_nobody_is_noticed(audited_run):
    write_report(audited_run, {"t0-c0": Identity.generate(os.urandom(32))})
    said = list(map(str, verify(audited_run).findings))
    assert "report/manifest.json: no client signed it" in said
    write_report(audited_run, _identities(audited_run))
    resign(audited_run)  # the same files; Ed25519 signs the same bytes the same way
    assert verify(audited_run).holds
    (audited_run / "job.json").write_text((audited_run / "job.json").read_text() + "\n")
    resign(audited_run)
    assert "of another manifest" in " ".join(map(str, verify(audited_run).findings))


def test_an_addendum_is_no_manifest(audited_run):
    write_report(audited_run, _identities(audited_run))
    shutil.copy(audited_run / "report" / "manifest.json", audited_run / NAME)
    assert "the signature of t0-c0 does not fit" in " ".join(map(str, verify(audited_run).findings))
