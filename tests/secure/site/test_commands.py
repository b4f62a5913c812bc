"""The operators' commands, in one process; `docs/deploy.md` is run as a whole with Flower."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "cli")]

from command_line import call  # noqa: E402

from fedtree_dp import Ledger  # noqa: E402


@pytest.fixture
def job(clinics):
    clinics.write_job()
    return clinics.folder / "job.toml"


def store(clinics, name="t0-c0"):
    return clinics.site(name) / "state" / name / "store.sqlite"


def test_init_makes_the_store_once_with_the_budget_given(clinics, capsys):
    place = clinics.site("t0-c0")
    for name in ("state", "heads"):
        shutil.rmtree(place / name)
    assert call("site", "init", place, "--epsilon", "2", "--delta", "1e-3") == 0
    with Ledger.inspect(store(clinics)) as ledger:
        assert (ledger.budget.epsilon, ledger.budget.delta) == (2.0, 1e-3)
    assert call("site", "init", place, "--epsilon", "8", "--delta", "1e-3") == 2
    assert "has a store already" in capsys.readouterr().err.replace("\n", " ")


def test_init_refuses_a_delta_that_would_publish_a_row(clinics):
    place = clinics.site("t0-c0")
    for name in ("state", "heads"):
        shutil.rmtree(place / name)
    assert call("site", "init", place, "--epsilon", "2", "--delta", "0.02") == 2
    assert not store(clinics).exists()


def test_check_ticks_what_is_well_and_names_what_is_not(clinics, job, capsys):
    place = clinics.site("t0-c0")
    assert call("site", "check", place, "--job", job) == 0
    shown = capsys.readouterr().out
    assert shown.count("✓") == 8
    clinics.policy("t0-c0", "0" * 64, largest_epsilon=1.0)
    assert call("site", "check", place, "--job", job) == 1
    shown = capsys.readouterr().out
    assert shown.count("✗") == 2
    assert "largest_epsilon" in shown


def test_check_says_that_nobody_listens(clinics, capsys):
    place = clinics.site("t0-c0")
    code = call("site", "check", place, "--superlink", "127.0.0.1:1", "--insecure")
    assert code == 1
    assert "cannot be reached" in " ".join(capsys.readouterr().out.split())


def test_approve_shows_the_cost_in_words_and_signs(clinics, job, capsys):
    place = clinics.site("t0-c0")
    before = set((place / "approvals").iterdir())
    assert call("site", "approve", place, job, "--yes") == 0
    shown = capsys.readouterr().out
    assert "epsilon 8 at delta 0.001. Spent so far: 0.000. After this job: at most" in shown
    assert len(set((place / "approvals").iterdir()) - before) == 1


def test_approve_asks_and_takes_no_for_an_answer(clinics, job, monkeypatch):
    place = clinics.site("t0-c0")
    before = set((place / "approvals").iterdir())
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert call("site", "approve", place, job) == 1
    assert set((place / "approvals").iterdir()) == before


def test_what_the_policy_forbids_cannot_be_approved(clinics, job, capsys):
    clinics.policy("t0-c0", clinics.digest, most_rounds=1)
    assert call("site", "approve", clinics.site("t0-c0"), job, "--yes") == 2
    assert "most_rounds" in capsys.readouterr().err


def test_a_job_that_asks_for_less_than_the_budget_is_planned_for_what_it_asks(clinics):
    from fedtree_secure.site.approval import plan_for, statement_of

    less = dataclasses.replace(
        clinics.job, privacy=dataclasses.replace(clinics.job.privacy, epsilon=2.0)
    )
    with Ledger.inspect(store(clinics)) as ledger:
        told = " ".join(
            statement_of("t0-c0", less, clinics.roster, ledger, plan_for("t0-c0", less, ledger))
        )
        after = float(told.partition("at most ")[2].partition(". ")[0].rstrip("."))
        assert after <= 2.0
        assert ledger.events() == ()


def test_status_shows_what_is_spent(clinics, capsys):
    assert call("site", "status", clinics.site("t0-c0")) == 0
    assert "epsilon 0.0000 of 8 spent" in capsys.readouterr().out


def test_keys_commands_make_a_roster_and_its_next_versions(tmp_path, capsys):
    place = tmp_path / "keys"
    place.mkdir()
    assert call("keys", "new", place / "server.key") == 0
    cards = []
    for name in ("a", "b", "c"):
        assert call("keys", "new", place / f"{name}.key") == 0
        card = place / f"{name}.json"
        assert call("keys", "show", place / f"{name}.key", "--name", name, "--out", card) == 0
        cards.append(card)
    server = ("--key", place / "server.key")
    first, second, third = (place / f"roster-{n}.json" for n in (1, 2, 3))
    assert call("keys", "roster", *cards, *server, "--name", "x", "--out", first) == 0
    assert 'roster = "' in capsys.readouterr().out
    card = place / "a2.json"
    new = place / "a2.key"
    assert call("keys", "rotate", place / "a.key", new, "--name", "a", "--out", card) == 0
    chain = ("--name", "x", "--previous", first, "--out", second)
    assert call("keys", "roster", card, *server, *chain) == 0
    assert call("keys", "revoke", "b", "--roster", second, *server, "--out", third) == 0
    assert "version 3 without b: a, c" in capsys.readouterr().out
    assert call("keys", "new", place / "server.key") == 2


def test_flower_commands_say_what_is_missing(clinics, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert call("node", clinics.site("t0-c0"), "--superlink", "x:1", "--insecure") == 2
    assert "constraints-flower.txt" in capsys.readouterr().err
