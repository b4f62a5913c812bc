"""Every command of docs/deploy.md, as printed, on a tiny model."""

import json
from pathlib import Path

import pytest
from scripts import loaded

from fedtree_secure.cli.app import main

ROOT = Path(__file__).parents[2]
CLINICS = ("heart", "bones", "skin")


def example():
    """The script that runs the document."""
    return loaded(ROOT / "examples" / "deploy.py")


def test_three_organisations_from_keys_to_a_finished_run(tmp_path, tiny, capfd):
    place = tmp_path / "clinics"
    example().run_all(place, tiny)
    shown = capfd.readouterr().out
    assert "Budget of the data set 'example-heart': epsilon 8 at delta 1e-05" in shown
    assert shown.count("the clocks agree") == 3
    assert "✗" not in shown
    assert "Finished after round 2" in shown
    assert shown.count("PASS") == 3
    assert shown.count("as 1 clients signed them") == 1
    report = json.loads((place / "coordinator" / "report.json").read_text())
    assert report["fetched"] == sorted(CLINICS)
    assert report["heads"] == [sorted(CLINICS)]
    assert [len(next(iter(r["opened"].values()))) for r in report["rounds"]] == [3, 3, 3]
    for clinic in CLINICS:
        (found,) = (place / clinic / "runs").glob("*/report.json")
        assert 0 < json.loads(found.read_text())["epsilon_spent"] <= 8
    secrets = [place / clinic / "identity.key" for clinic in CLINICS]
    secrets.append(place / "coordinator" / "server.key")
    told = b"".join(path.read_bytes() for path in place.glob("*.log")) + shown.encode()
    told += (place / "coordinator" / "events.jsonl").read_bytes()
    for path in secrets:
        secret = path.read_bytes()[1:]
        assert secret not in told
        assert secret.hex().encode() not in told


def test_the_document_names_every_block_that_stays():
    stays = [block.stays for block in example().blocks() if block.stays]
    assert stays == ["superlink", *(f"node-{clinic}" for clinic in CLINICS)]


def test_more_clinics_join_every_list_of_the_document():
    found = example().blocks(["eyes", "lungs"])
    stays = [block.stays for block in found if block.stays]
    assert stays[-2:] == ["node-eyes", "node-lungs"]
    (eyes,) = (block.text for block in found if block.stays == "node-eyes")
    assert "node eyes --superlink $SUPERLINK --root-certificates eyes/ca.crt" in eyes
    told = "".join(block.text for block in found if not block.stays)
    assert told.count("heart bones skin") == told.count("heart bones skin eyes lungs") > 5
    assert "skin/card.json eyes/card.json lungs/card.json" in told


def test_serving_a_folder_that_holds_no_job_leaves_no_trace(tmp_path, capsys):
    missing = tmp_path / "none"
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(missing), "--superlink", "127.0.0.1:1", "--insecure"])
    assert stopped.value.code == 2
    assert "there is no job file" in " ".join(capsys.readouterr().err.split())
    assert not missing.exists()
