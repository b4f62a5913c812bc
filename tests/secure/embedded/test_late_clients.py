"""A cohort as hospitals have it: some come late, some leave, some miss rounds and come back.

Whole runs on a tiny model through the real coordinator and participants (docs/cohort.md).
"""

import dataclasses
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from attendance import Attendance
from small_jobs import federation, make_clients

from fedtree_audits import audit
from fedtree_dp import Ledger
from fedtree_secure import Cohort, RunFolderError, Topology, Training
from fedtree_secure.agreed.cohort import leave_bytes
from fedtree_secure.agreed.messages import Left, encode
from fedtree_secure.embedded.progress import Silent
from fedtree_secure.job_file import build

LATE = ("t1-c3", "t1-c4", "t1-c5")  # absent until round 2
LEAVE = {"t0-c4": 3, "t0-c5": 3}
MISSING = ("t0-c2", "t1-c0")  # miss rounds from 4 on
RETURNS = "t0-c3"  # misses round 2, and the change before it
AWAY = {**dict.fromkeys(LATE, range(2)), **dict.fromkeys(MISSING, range(4, 9)), RETURNS: (2,)}
QUICK = Training(records=60, sample_rate=0.5, head_steps=0, max_length=16)
# Noise alone splits a group once in 800 layers: no test here is about another tree.
CERTAIN = Topology(sketch_size=64, cut="silhouette", significance=0.9999)
TAKES = {"cohort": Cohort(late=True), "training": QUICK, "topology": CERTAIN}


def charges(place, client):
    """How often each purpose was charged to a client's data set."""
    with Ledger.inspect(place / f"{client}.sqlite") as ledger:
        return Counter(entry.purpose for entry in ledger.entries() if entry.purpose)


@pytest.fixture(scope="module")
def run(tiny_bert, tmp_path_factory):
    """3 of 12 come late, 2 leave, 3 miss rounds and one of these returns."""
    place, made = tmp_path_factory.mktemp("late"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        result = federation(tiny_bert, rounds=4, **TAKES).run(
            make_clients(each=6),
            place / "run",
            observer=Silent(),
            wrap_transport=lambda inner: made.append(Attendance(inner, AWAY, LEAVE)) or made[0],
        )
        yield result, made[0]


def test_late_client_job_runs_to_its_end(run):
    result, _ = run
    everyone = {client.id for client in make_clients(each=6)}
    found = {
        record["round"]: set().union(*record["opened"].values()) for record in result.data["rounds"]
    }
    assert not any(record["error"] for record in result.data["rounds"])
    assert found == {
        1: everyone - set(LATE),
        2: everyone - {RETURNS},
        3: everyone - set(LEAVE),
        4: everyone - set(LEAVE) - set(MISSING),
    }


def test_late_client_ledgers_hold_exactly_what_was_computed(run):
    result, _ = run
    rounds = {record["round"]: record["opened"] for record in result.data["rounds"]}
    for client in result.data["clients"]:
        made = charges(result.folder / "ledgers", client)
        uploaded = [n for n, opened in rounds.items() if any(client in s for s in opened.values())]
        assert made == {
            "fingerprint": 1,
            **{f"round {number}": 1 for number in uploaded},
        }


@pytest.mark.parametrize("name", ["disclosure", "secagg_transcript"])
def test_late_client_run_passes_the_audit(run, name):
    result, _ = run
    found = audit(result.folder, name)
    assert found.verdict == "PASS", [c for c in found.checks if not c.holds]


def test_late_client_memberships_are_what_disclosure_looks_at(run):
    result, _ = run
    moves = [
        check for check in audit(result.folder, "disclosure").checks if "members" in check.name
    ]
    assert [check.detail for check in moves] == [
        "2 memberships, none differs from the others by fewer than 3"
    ] * len(result.data["layers"])


def test_late_client_holds_the_values_of_those_who_were_there(run):
    """It was told all sums since the beginning, and moved its nodes by them itself."""
    result, transport = run
    members = [n for n in result.data["clients"] if n not in LEAVE and n not in MISSING]
    states = [transport.participant(name).party.store.state for name in members]
    (name,) = states[0].nodes
    for before, after in pairwise(states):
        assert np.array_equal(before.nodes[name].values, after.nodes[name].values)
        assert before.nodes[name].steps == after.nodes[name].steps == 4


def test_late_client_result_says_who_came_and_left(run):
    told = run[0].data["cohort"]
    assert told["late"] == dict.fromkeys(LATE, 2)
    assert (told["left"], told["declared_gone"], told["waiting"]) == (sorted(LEAVE), [], [])
    assert [tree["first_round"] for tree in told["trees"]] == [0, 2]
    assert told["sentences"][0] == "t1-c3 came late and is in sums from round 2"
    assert told["sentences"][-1] == (
        "t0-c5 left for good and still counts as a member that misses every round, because fewer "
        "than 3 left its sums"
    )


def test_late_client_that_left_answers_nothing_else(run):
    """What it left is asked once more, answered with a farewell, and then never again."""
    _, transport = run
    after = [stage for stage, asked, _ in transport.seen if "t0-c4" in asked]
    assert after[-1] == "round-3/advertise"
    assert transport.participant("t0-c4").party.store.record.leaving


def test_late_client_tree_is_one_that_nothing_was_dealt_ahead_of(run):
    """Keys for round 2 were dealt under the tree before it; all deal others, with the newcomers."""
    _, transport = run
    asked = {stage: set(requests) for stage, requests, _ in transport.seen}
    assert asked["round-2/advertise"] >= set(LATE)


# --- a small group of one task ------------------------------------------------------------------

EIGHT = {"topology": CERTAIN, "rounds": 2}


def test_late_client_waits_where_it_is_too_few_and_pays_nothing(tiny_bert, tmp_path, stores):
    """Two came late, one was declared gone, and one missed that the tree was adopted."""
    late, gone, missed = ("t0-c6", "t0-c7"), "t0-c5", "t0-c0"
    away = {**dict.fromkeys(late, range(1)), gone: range(1, 9)}

    class Lossy(Attendance):
        def exchange(self, stage, requests):
            if stage == "adopt":
                requests = {n: r for n, r in requests.items() if n != missed}
            replies = super().exchange(stage, requests)
            if stage == "prepare":  # a farewell that another one signed is none
                liar = self.participant("t0-c1").party
                signature = liar.member.identity.sign(leave_bytes(liar.terms, "t0-c2"))
                replies["t0-c2"] = encode(Left(signature))
            return replies

    made = []
    result = federation(
        tiny_bert, cohort=Cohort(late=True, gone_after=1), training=QUICK, **EIGHT
    ).run(
        make_clients(tasks=1, each=8),
        tmp_path / "run",
        wrap_transport=lambda inner: made.append(Lossy(inner, away)) or made[0],
    )
    five = sorted(set(result.data["clients"]) - {*late, gone})
    assert [sorted(s) for r in result.data["rounds"] for s in r["opened"].values()] == [five] * 2
    for client in late:
        with Ledger.inspect(stores / client / "store.sqlite") as ledger:
            assert [entry.purpose for entry in ledger.entries() if entry.purpose] == []
    taught = [sorted(asked) for stage, asked, _ in made[0].seen if stage == "round-1/learn"]
    assert taught == [[missed, *late]]
    assert not any("round-2" in stage and gone in asked for stage, asked, _ in made[0].seen)
    left, waited = result.data["cohort"]["sentences"]
    assert left.startswith("t0-c5 was declared gone by the server and still counts as a member")
    assert waited.startswith("t0-c6, t0-c7 came late and had to wait: a batch has at least 3")
    assert audit(result.folder, "disclosure").verdict == "PASS"


def test_late_client_comes_in_over_a_crash_and_takes_its_group_s_head(
    tiny_bert, tmp_path, stores, caplog
):
    """The server goes down when some have learnt of the change. It goes on with that very change;
    late clients take the head that their group has averaged, and pay for none of their own.
    """
    late = ("t0-c5", "t0-c6", "t0-c7")
    clients = declared(make_clients(tasks=1, each=8))
    job = federation(
        tiny_bert,
        cohort=Cohort(late=True),
        training=Training(records=60, sample_rate=0.5, head_steps=2, max_length=16),
        **EIGHT,
    )
    made = []

    class Crash(Attendance):
        def exchange(self, stage, requests):
            if stage == "round-2/learn" and len(requests) == len(clients):
                super().exchange(stage, dict(list(requests.items())[:4]))
                raise OSError("the server went down")
            return super().exchange(stage, requests)

    away = dict.fromkeys(late, range(2))
    with pytest.raises(OSError, match="went down"):
        job.run(clients, tmp_path / "run", wrap_transport=lambda inner: Crash(inner, away))
    elsewhere = [dataclasses.replace(clients[0], dataset="another"), *clients[1:]]
    with pytest.raises(RunFolderError, match="another"):
        job.run(elsewhere, tmp_path / "run", resume=True)
    result = job.run(
        clients,
        tmp_path / "run",
        resume=True,
        wrap_transport=lambda inner: made.append(Attendance(inner)) or made[0],
    )
    stages = [stage for stage, _, _ in made[0].seen]
    assert not any("sketch" in stage or "change" in stage for stage in stages)
    assert result.data["cohort"]["late"] == dict.fromkeys(late, 2)
    last = result.data["rounds"][-1]
    assert last["round"] == 2
    assert [len(survivors) for survivors in last["opened"].values()] == [8, 8]
    heads = [made[0].participant(c.id).party.store.state.head for c in clients]
    for head in heads[1:]:
        assert all(np.array_equal(head[name], heads[0][name]) for name in head)
    for client in clients:
        with Ledger.inspect(stores / client.id / "store.sqlite") as ledger:
            made_of = Counter(entry.purpose for entry in ledger.entries() if entry.purpose)
        early = {} if client.id in late else {"head": 1, "round 1": 1}
        assert made_of == {"fingerprint": 1, "round 2": 1, **early}
    assert audit(result.folder, "disclosure").verdict == "PASS"


def test_late_client_group_that_shrinks_below_the_least_closes(tiny_bert, tmp_path):
    """Two of a head's four members leave: it is never opened again, and stays where it was."""
    leave, stay = {"t1-c0": 2, "t1-c1": 2}, ("t1-c2", "t1-c3")
    made, held = [], {}
    clients = [
        dataclasses.replace(client, labels=LABELS[: 2 + client.id.startswith("t1")])
        for client in make_clients(each=4)
    ]

    class Watch(Attendance):
        def exchange(self, stage, requests):
            if stage == "round-3/advertise":
                held.update({n: dict(self.participant(n).party.store.state.head) for n in stay})
            return super().exchange(stage, requests)

    result = federation(
        tiny_bert,
        rounds=3,
        topology=Topology(source="one_group"),
        training=Training(records=60, sample_rate=0.5, head_steps=2, max_length=16),
    ).run(
        clients,
        tmp_path / "run",
        wrap_transport=lambda inner: made.append(Watch(inner, leaves=leave)) or made[0],
    )
    opened = [sorted(map(len, record["opened"].values())) for record in result.data["rounds"]]
    assert opened == [[4, 4], [4, 4, 8], [4, 6], [4, 6]]
    assert [len(record["closed"]) for record in result.data["rounds"]] == [0, 0, 1, 0]
    told = result.data["cohort"]
    (closed,) = told["closed"]
    assert closed["members"] == [*sorted(leave), *stay]
    assert told["sentences"][-1].startswith(f"{closed['node']} closed before round 3: fewer than 3")
    for name in stay:
        party = made[0].participant(name).party
        assert closed["node"] not in party.store.state.nodes
        assert any((party.store.state.head[k] != v).any() for k, v in held[name].items())  # at home
    assert audit(result.folder, "disclosure").verdict == "PASS"


LABELS = ("class-0", "class-1", "class-2")


def declared(clients):
    """The same clients, who say which labels they have."""
    return [dataclasses.replace(c, labels=("class-0", "class-1")) for c in clients]


def test_late_client_settings_of_the_page_are_read():
    page = (Path(__file__).parents[3] / "docs" / "cohort.md").read_text("utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert build(Cohort, tomllib.loads(text)["cohort"], "") == Cohort(
        late=True, gone_after=5, share=0.75
    )
