"""What cannot be used is refused in one sentence: exit code 2, nothing charged, nothing sent."""

import json
import shutil
import sqlite3
import stat

import pytest
from small_jobs import make_clients, write_job_file

from fedtree_dp import Ledger, PrivacyBudget
from fedtree_secure.cli.app import main
from fedtree_secure.client.data_sets import DataSets

NAME = "t0-c0"


@pytest.fixture
def job(tmp_path, tiny_bert):
    """A job file of three clients that would run."""
    return write_job_file(tmp_path, tiny_bert, head_steps=0)


def run(capsys, job, *more):
    """Exit code and what was said, white space folded."""
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(job), "--out", str(job.parent / "out"), *more])
    shown = capsys.readouterr()
    return stopped.value.code, " ".join((shown.out + shown.err).split())


def refused(capsys, job, told):
    code, shown = run(capsys, job)
    assert code == 2, shown
    assert "refused:" in shown
    assert told in shown
    assert "Traceback" not in shown
    for path in (job.parent / "state").glob("*/store.sqlite"):
        try:
            with Ledger.inspect(path) as ledger:
                assert ledger.events() == (), path
        except Exception:
            assert path.parent.name == NAME  # the one that the case is about
    assert [p.name for p in (job.parent / "out").glob("*")] in ([], [".lock"])  # free for another


def replaced(job, old, new):
    text = job.read_text()
    assert old in text
    job.write_text(text.replace(old, new, 1))


def store(stores, tmp_path):
    """A store that an earlier job made."""
    sets = DataSets(stores, tmp_path / "heads")
    with sets.opened(NAME, PrivacyBudget(epsilon=8, delta=1e-3), ["texts of its own"]):
        pass
    return sets.store_of(NAME)


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "nul", "caf\u00e9", "a..b", ""])
def test_hostile_names_and_files_no_name_leaves_its_folder(capsys, job, name):
    before = set(job.parent.parent.iterdir())
    field = "dataset" if name else "id"
    if name:
        replaced(job, f'id = "{NAME}"', f'id = "{NAME}"\ndataset = {json.dumps(name)}')
    else:
        replaced(job, f'id = "{NAME}"', 'id = ""')
    refused(capsys, job, field)
    assert set(job.parent.parent.iterdir()) == before


def edited(path):
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER entries_hold")
        database.execute("UPDATE entries SET body = CAST(replace(body, '8', '9') AS BLOB)")


def newer(path):
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")


STORES = {
    "edited": (edited, "store.sqlite"),
    "of a newer version": (newer, "schema 99"),
    "no database": (lambda path: path.write_bytes(b"no database" * 50), "store.sqlite"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "deleted": (lambda path: path.unlink(), "missing"),
}


@pytest.mark.parametrize("what", STORES)
def test_hostile_names_and_files_a_store_that_is_not_as_it_was(capsys, job, stores, tmp_path, what):
    change, told = STORES[what]
    change(store(stores, tmp_path))
    refused(capsys, job, told)


def test_a_store_with_another_budget_is_named(capsys, job, stores, tmp_path):
    store(stores, tmp_path)
    replaced(job, "epsilon = 8", "epsilon = 4")
    refused(capsys, job, "its budget is epsilon 8")


def test_a_store_in_use_is_refused(capsys, job, stores, tmp_path):
    sets = DataSets(stores, tmp_path / "heads")
    with sets.opened(NAME, PrivacyBudget(epsilon=8, delta=1e-3), ["texts of its own"]):
        refused(capsys, job, "in use by another process")


def test_rows_of_another_data_set_are_refused(capsys, job, stores, tmp_path):
    sets = DataSets(stores, tmp_path / "heads")
    texts = make_clients()[0].train["text"]
    with sets.opened("the-same", PrivacyBudget(epsilon=8, delta=1e-3), texts):
        pass
    refused(capsys, job, "are those of 'the-same'")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("pytorch_model.bin", b"\x80\x02}q\x00.", "pytorch_model.bin"),
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "code"),
    ],
)
def test_hostile_other_model_that_would_run_code(
    capsys, job, tiny_bert, tmp_path, name, content, told
):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    if isinstance(content, dict):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **content}))
    else:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)
    replaced(job, str(tiny_bert), str(folder))
    refused(capsys, job, told)


def test_a_key_file_must_be_its_owners_alone(capsys, job, tmp_path, monkeypatch):
    key = tmp_path / "at-rest.key"
    monkeypatch.setenv("FEDTREE_KEY_FILE", str(key))
    refused(capsys, job, "cannot be read")
    key.write_bytes(bytes(range(32)))
    key.chmod(0o644)
    refused(capsys, job, "readable by others")
    key.chmod(0o600)
    key.write_bytes(b"short")
    refused(capsys, job, "32 random bytes")


def test_secrets_at_rest_are_encrypted_with_the_operators_key(
    capsys, job, stores, tmp_path, monkeypatch
):
    key = tmp_path / "at-rest.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    monkeypatch.setenv("FEDTREE_KEY_FILE", str(key))
    code, shown = run(capsys, job)
    assert code == 0, shown
    identity = tmp_path / "out" / "clients" / NAME / "identity.key"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert identity.read_bytes()[:1] == b"E"
    with Ledger.inspect(stores / NAME / "store.sqlite") as ledger:
        (name,) = ledger.runs()
        assert ledger.get(name, "values")[:1] == b"E"
    monkeypatch.delenv("FEDTREE_KEY_FILE")
    code, shown = run(capsys, job, "--resume")
    assert code == 2
    assert "FEDTREE_KEY_FILE" in shown
