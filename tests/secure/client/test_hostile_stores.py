"""Attacks `restored-store` and `second-budget` (docs/threats.md): nothing spent is forgotten."""

import shutil
from pathlib import Path

import pytest
from small_jobs import Adversary, federation, make_clients
from takeover import spent

from fedtree_dp import BudgetExceeded, Ledger, LedgerError
from fedtree_secure import RunStopped, StoreError, Topology, Training
from fedtree_secure.client.data_sets import DataSets

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 3,
}
NAME = "t0-c0"


class Stop(Adversary):
    """Ends the run before a stage, after a copy of the client's files was taken at another."""

    def __init__(self, inner, copy, places, backup_at, stop_at):
        super().__init__(inner)
        self.copy, self.places, self.backup_at, self.stop_at = copy, places, backup_at, stop_at

    def exchange(self, stage, requests):
        if stage == self.backup_at:
            for place in self.places:
                shutil.copytree(place, self.copy / place.name, dirs_exist_ok=True)
        if stage == self.stop_at:
            raise OSError("stop")
        return super().exchange(stage, requests)


def interrupted(model, tmp_path, places):
    """A run that was backed up before round 2 and stopped after it."""
    out, copy = tmp_path / "run", tmp_path / "backup"
    job = federation(model, **ONE)
    with pytest.raises(OSError, match="stop"):
        job.run(
            make_clients(),
            out,
            wrap_transport=lambda t: Stop(t, copy, places, "round-2/mask", "round-3/mask"),
        )
    return job, out, copy


def restore(copy, place):
    shutil.rmtree(place)
    shutil.copytree(copy / place.name, place)


@pytest.mark.parametrize("which", ["state", "heads"])
def test_hostile_restored_store_of_either_half_is_refused(tiny_bert, tmp_path, which):
    """H3: rounds were uploaded again with fresh batches and noise under the old charges."""
    places = [tmp_path / "state", tmp_path / "heads"]
    job, out, copy = interrupted(tiny_bert, tmp_path, places)
    before = spent(tmp_path / "state" / NAME / "store.sqlite")
    assert before == ["round 1", "round 2"]
    restore(copy, tmp_path / which)
    with pytest.raises(LedgerError, match=r"restored|older|back"):
        job.run(make_clients(), out, resume=True)


def test_hostile_restored_store_with_its_head_is_noticed_by_the_server(tiny_bert, tmp_path):
    """All at once cannot be seen on the disk; but the server saw requests answered that the store
    does not know.
    """
    places = [tmp_path / "state", tmp_path / "heads"]
    job, out, copy = interrupted(tiny_bert, tmp_path, places)
    for place in places:
        restore(copy, place)
    with pytest.raises(RunStopped, match="0 of 6 clients joined"):
        job.run(make_clients(), out, resume=True)
    assert spent(tmp_path / "state" / NAME / "store.sqlite") == ["round 1"]


def test_hostile_restored_store_of_one_client_goes_on_without_it(tiny_bert, tmp_path):
    places = [tmp_path / "state", tmp_path / "heads"]
    job, out, copy = interrupted(tiny_bert, tmp_path, places)
    shutil.copytree(copy / "state" / NAME, tmp_path / "state" / NAME, dirs_exist_ok=True)
    for path in (copy / "heads").glob(f"{NAME}.json*"):
        shutil.copy(path, tmp_path / "heads" / path.name)
    result = job.run(make_clients(), out, resume=True)
    third = next(iter(result.data["rounds"][2]["opened"].values()))
    assert len(third) == 5
    assert NAME not in third


def test_hostile_restored_store_that_was_deleted_does_not_begin_anew(tiny_bert, tmp_path, stores):
    job = federation(tiny_bert, **ONE)
    job.run(make_clients(), tmp_path / "first")
    shutil.rmtree(stores / NAME)
    with pytest.raises((StoreError, LedgerError), match=r"missing|gone|no ledger"):
        job.run(make_clients(), tmp_path / "second")


def test_hostile_restored_store_two_processes_on_one_store(tiny_bert, tmp_path, stores):
    budget = federation(tiny_bert).job.privacy
    sets = DataSets(stores, tmp_path / "heads")
    with (
        sets.opened(NAME, budget, ["a text"]),
        pytest.raises(LedgerError, match="in use"),
        sets.opened(NAME, budget, ["a text"]),
    ):
        raise AssertionError("two hold it")


# --- second-budget ------------------------------------------------------------------------------


def test_hostile_second_budget_for_the_same_rows_under_another_name(tiny_bert, tmp_path):
    job, clients = federation(tiny_bert, **ONE), make_clients()
    job.run(clients, tmp_path / "first")
    renamed = [type(c)(f"new-{c.id}", train=c.train, records=60) for c in clients]
    with pytest.raises(StoreError, match=r"are those of 't0-c0'"):
        job.run(renamed, tmp_path / "second")


def test_hostile_second_budget_for_most_of_the_rows(tmp_path, stores):
    """A few rows left out or added, another order, other spaces: the same rows."""
    sets = DataSets(stores, tmp_path / "heads")
    budget = federation("unused").job.privacy
    texts = [f"text number {i}" for i in range(1000)]
    with sets.opened("first", budget, texts):
        pass
    again = [text.replace(" ", "  ") for text in reversed(texts[100:])] + ["new"] * 50
    with pytest.raises(StoreError, match="'first'"):
        sets.check_rows("second", again)
    sets.check_rows("first", again)  # its own name
    sets.check_rows("third", [f"other {i}" for i in range(1000)])


def test_a_sketch_of_rows_tells_nothing_without_the_key(tmp_path, stores):
    sets = DataSets(stores, tmp_path / "heads")
    budget = federation("unused").job.privacy
    with sets.opened("first", budget, ["a secret text", "another one"]):
        pass
    other = DataSets(tmp_path / "elsewhere", tmp_path / "heads2")
    assert sets._sketch(["a secret text"]) != other._sketch(["a secret text"])
    for path in stores.rglob("*"):
        if path.is_file():
            assert b"secret text" not in path.read_bytes()


def test_hostile_second_budget_beside_an_earlier_versions_ledger(tiny_bert, tmp_path, stores):
    """A ledger that lies beside the run folder is adopted by hand, never forgotten."""
    job = federation(tiny_bert, **ONE)
    (tmp_path / "ledgers").mkdir()
    old = tmp_path / "ledgers" / f"{NAME}.sqlite"
    with Ledger.open(old, dataset=NAME, budget=job.job.privacy) as ledger:
        from fedtree_dp import Gaussian

        ledger.charge(Gaussian(0.8), job="earlier", purpose="statistics")
    with pytest.raises(LedgerError, match="ledger adopt"):
        job.run(make_clients(), tmp_path / "run")
    DataSets.of_user().adopt(old, NAME)
    result = job.run(make_clients(), tmp_path / "run")
    assert any(
        e == {"mechanism": "gaussian", "noise_multiplier": 0.8} or e.get("noise_multiplier") == 0.8
        for e in result.data["clients"][NAME]["events"]
    )


def test_the_default_place_belongs_to_the_user_and_not_to_a_run(monkeypatch):
    monkeypatch.delenv("FEDTREE_STATE", raising=False)
    monkeypatch.delenv("FEDTREE_HEADS", raising=False)
    first = DataSets.of_user()
    assert first == DataSets.of_user()
    assert "fedtree-secure" in str(first.stores)
    assert first.heads not in first.stores.parents
    assert not first.heads.is_relative_to(first.stores)
    assert DataSets.of_user(Path("/elsewhere")).stores == Path("/elsewhere")
    assert DataSets.of_user(Path("/elsewhere")).heads != first.heads


def test_everything_private_is_its_owners_alone(tiny_bert, tmp_path, stores):
    """0600 in 0700 folders (rule R9)."""
    out = tmp_path / "run"
    federation(tiny_bert, **ONE).run(make_clients(), out)
    heads = tmp_path / "heads"
    private = [heads, *stores.rglob("*"), *heads.rglob("*")]
    private += [out / "server", *(out / "server").glob("*"), *(out / "clients").glob("*")]
    private += list((out / "clients").glob("*/identity.key"))
    assert len(private) > 30
    for path in private:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_budget_is_spent_once_over_all_jobs(tiny_bert, tmp_path):
    job = federation(tiny_bert, **ONE)
    job.run(make_clients(), tmp_path / "a" / "run")
    with pytest.raises(BudgetExceeded):
        job.run(make_clients(), tmp_path / "b" / "run")
