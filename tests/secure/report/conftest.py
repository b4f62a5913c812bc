"""One finished tiny run of three clients, and copies of it that a test may spoil."""

import shutil

import pytest
from small_jobs import federation, make_clients

from fedtree_audits import audit


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_bert):
    """A run of real training that nobody touched since. Copy it before you change anything."""
    place = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        federation(tiny_bert, rounds=1).run(make_clients(tasks=1), place / "run")
    return place / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="session")
def audited(finished, tmp_path_factory):
    """A copy with reports of two real audits, not signed yet."""
    place = shutil.copytree(finished, tmp_path_factory.mktemp("audited") / "run")
    assert {audit(place, name).verdict for name in ("ledger", "artefacts")} == {"PASS"}
    return place


@pytest.fixture
def audited_run(audited, tmp_path):
    """A copy of the audited run."""
    return shutil.copytree(audited, tmp_path / "audited")
