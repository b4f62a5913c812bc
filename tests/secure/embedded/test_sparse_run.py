"""Whole runs over a sparse graph on a tiny model: what is drawn, kept, said and refused."""

import dataclasses
import hashlib
import json

import pytest
from attendance import Attendance
from safetensors.numpy import load_file
from small_jobs import federation, lying, make_clients
from takeover import changed, hostile

from fedtree_secagg import beacon
from fedtree_secure import Cohort, Masking, PrivacyBudget, RunStopped, Topology, Training
from fedtree_secure.agreed import graph
from fedtree_secure.agreed.messages import (
    DrawKeep,
    DrawOpen,
    Protocol,
    Refused,
)
from fedtree_secure.client import store
from fedtree_secure.client.party import Party
from fedtree_secure.report.gate import Limits, decide
from fedtree_secure.report.statement import Statement

SPARSE = Masking(graph="sparse", dropouts=1)
QUIET = {
    "rounds": 1,
    "training": Training(records=40, head_steps=0, head="local", max_length=16),
    "topology": Topology(source="one_group"),
}
GONE = "t1-c2"  # it is lost when it has uploaded to nobody
DRAWS = ("draw-commit", "draw-open", "draw-keep")


def few(each=3):
    return make_clients(each=each, count=40)


def stages(place):
    lines = (place / "transcript.txt").read_text().splitlines()[1:]
    return list(dict.fromkeys(line.split()[3] for line in lines))


def record(place, name="t0-c0"):
    return json.loads((place / "clients" / name / "journal.json").read_text())


# --- the same sums --------------------------------------------------------------------------------


def run_over(kind, model, place, monkeypatch):
    """Run with all randomness that reaches an update fixed, and one client lost in the round."""
    monkeypatch.setenv("FEDTREE_STATE", str(place / "state"))
    monkeypatch.setenv("FEDTREE_HEADS", str(place / "heads"))
    monkeypatch.setattr(Party, "fresh", lambda party: hashlib.sha256(party.id.encode()).digest())

    class Seeds:
        given = 0

        @classmethod
        def token_bytes(cls, _size):
            cls.given += 1
            return hashlib.sha256(cls.given.to_bytes(4, "big")).digest()

    monkeypatch.setattr(store, "secrets", Seeds)
    wrap, _ = lying(place / "run", lost)
    settings = {
        **QUIET,
        "privacy": PrivacyBudget(epsilon=200, delta=1e-3),
        "topology": Topology(sketch_size=64, cut="silhouette"),
        "training": dataclasses.replace(QUIET["training"], head_steps=2, head="group"),
        "masking": dataclasses.replace(SPARSE, graph=kind),
    }
    clients = [dataclasses.replace(c, labels=("class-0", "class-1")) for c in few(7)]
    return federation(model, **settings).run(clients, place / "run", wrap_transport=wrap)


def lost(stage, name, message):
    return None if (stage, name) == ("round-1/mask", GONE) else message


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_bert):
    with pytest.MonkeyPatch.context() as patch:
        return {
            kind: run_over(kind, tiny_bert, tmp_path_factory.mktemp(kind), patch)
            for kind in ("sparse", "complete")
        }


def test_sparse_runs_open_bit_for_bit_the_sums_of_complete_ones(both):
    """A tree that splits, one head for all, and a client that drops out of the round."""
    for number in (0, 1):
        name = f"sums-{number}.safetensors"
        sums = {k: load_file(r.folder / "server" / name) for k, r in both.items()}
        assert sums["sparse"].keys() == sums["complete"].keys()
        for key, values in sums["complete"].items():
            assert values.tobytes() == sums["sparse"][key].tobytes()
    merged, opened = (entry["opened"] for entry in both["sparse"].data["rounds"])
    assert sorted(map(len, merged.values())) == [14]
    assert sorted(map(len, opened.values())) == [6, 7, 13]
    assert all(GONE not in survivors for survivors in opened.values())


def test_sparse_graphs_are_drawn_once_before_the_round_and_journalled(both):
    place, other = both["sparse"].folder, both["complete"].folder
    asked = stages(place)
    assert [s for s in asked if "draw" in s] == [f"round-{n}/{d}" for n in (0, 1) for d in DRAWS]
    for number in (0, 1):  # the merge round sums the head alone, and has a graph of its own
        kept, begun = (asked.index(f"round-{number}/{s}") for s in ("draw-keep", "advertise"))
        assert kept + 1 == begun
    assert not any("draw" in s for s in stages(other))
    state = json.loads((place / "server" / "state.json").read_text())
    assert len(state["beacons"]) == 2
    for client in both["sparse"].data["clients"]:
        assert record(place, client)["beacons"] == state["beacons"]
    assert record(other)["beacons"] == {}


def test_sparse_statements_carry_graph_degree_and_failure_probability(both):
    statement = Statement.of(both["sparse"].folder)
    merge, said = statement.masks
    assert (merge["rounds"], merge["graph"]) == ("merge", "sparse")
    assert (said["graph"], said["clients"], said["colluders"]) == ("sparse", 14, 1)
    assert (said["neighbours"], said["threshold"], said["failure"]) == (4, 3, 2.0**-36)
    assert 4 <= said["most_contacts"] < 13
    assert "a sparse graph that all 14 clients drew together" in statement.guarantee["observers"]
    page = (both["sparse"].folder / "report.html").read_text()
    assert "1.5e-11" in page  # of a graph; two add up
    assert "fails with a probability of at most 2.9e-11" in page
    for complete in Statement.of(both["complete"].folder).masks:
        assert (complete["graph"], complete["failure"]) == ("complete", 0.0)
    for result in both.values():
        assert not decide(result.folder, Limits(201)).troubles


# --- what a client refuses ------------------------------------------------------------------------


def test_hostile_chosen_graph_a_sparse_one_that_a_client_did_not_draw_is_refused(
    tiny_bert, tmp_path
):
    def script(server, requests):
        victim = "t0-c0"
        honest, party = requests[victim], server.party(victim)
        drawn = honest.beacon
        for lie in (bytes(32), drawn[::-1], drawn[:31]):  # chosen by the server
            assert server.send(victim, changed(honest, beacon=lie)) == Refused("graph")
        assert server.send(victim, changed(honest, beacon=b"")) == Refused("graph")
        assert server.charges(victim) == []
        assert isinstance(server.send(victim, honest), Protocol)
        (kept,) = party.store.record.beacons.values()
        assert kept == drawn.hex()

    hostile(
        tiny_bert,
        tmp_path / "run",
        "round-1/advertise",
        script,
        clients=few(),
        **QUIET | {"masking": SPARSE},
    )


def test_hostile_chosen_graph_sparse_draws_are_numbered_and_need_the_clients_own_part(
    tiny_bert, tmp_path
):
    def script(server, requests):
        victim, journal = "t0-c0", server.party("t0-c0").store.journal
        honest = requests[victim]
        assert server.send(victim, DrawOpen(b"")) is None  # nothing was committed to
        assert server.send(victim, changed(honest, merge=True)) == Refused("graph")
        assert server.send(victim, changed(honest, number=beacon.CEREMONIES)) is None
        assert isinstance(server.send(victim, honest), Protocol)
        assert server.send(victim, honest) is None  # the number was used
        assert isinstance(server.send(victim, changed(honest, number=5)), Protocol)
        assert server.send(victim, changed(honest, number=4)) is None
        assert server.send(victim, DrawKeep(b"")) is None  # its part is not out
        party = server.party(victim)
        draft = party_draft(party)
        names = draft.cohort
        instance = beacon.instance_of(party.terms.roster, draft, 5)
        listed = beacon.Listed(instance, bytes(32 * len(names)))  # without its own commitment
        assert server.send(victim, DrawOpen(beacon.messages.encode(listed))) is None
        assert party.store.record.beacons == {}
        assert server.charges(victim) == []
        lines = [json.loads(line) for line in journal._records.read()]
        assert [line["ceremony"] for line in lines] == [0, 5]

    hostile(
        tiny_bert,
        tmp_path / "run",
        "round-1/draw-commit",
        script,
        clients=few(),
        **QUIET | {"masking": SPARSE},
    )


def party_draft(party):
    from fedtree_secure.agreed.round_plan import draft_of_round

    return draft_of_round(party.terms, party.facts, party.tree(), merge=False)


# --- who must be there ----------------------------------------------------------------------------


def away(stage, name, message):
    return None if (stage, name) == ("round-1/draw-open", "t0-c1") else message


def once_without_the_last_message():
    """All but one keep a graph: else they would mask over another than the one that did not."""
    lost = []

    def lie(stage, name, message):
        if (stage, name) == ("round-1/draw-keep", "t0-c1") and not lost:
            lost.append(message)
            return None
        return message

    return lie


def test_sparse_graphs_that_not_all_draw_stop_a_run_that_demands_one(tiny_bert, tmp_path):
    out = tmp_path / "run"
    job = federation(tiny_bert, masking=SPARSE, **QUIET)
    with pytest.raises(RunStopped, match="the graph of round 1 was not drawn: all its 6 clients"):
        job.run(few(), out, wrap_transport=lying(out, away)[0])
    assert not any(
        json.loads(p.read_text())["releases"] for p in out.glob("clients/*/journal.json")
    )
    again = lying(out, once_without_the_last_message())[0]
    result = job.run(few(), out, resume=True, wrap_transport=again)
    assert [list(map(len, e["opened"].values())) for e in result.data["rounds"]] == [[6]]
    state = json.loads((out / "server" / "state.json").read_text())
    assert list(state["ceremonies"].values()) == [4]  # three were broken off, and count
    for client in result.data["clients"]:
        assert record(out, client)["beacons"] == state["beacons"]


def test_sparse_graphs_that_not_all_draw_leave_auto_with_the_complete_one(
    tiny_bert, tmp_path, monkeypatch
):
    monkeypatch.setattr(graph, "LEAST_OF_AUTO", 6)
    out, begun = tmp_path / "run", []

    def lie(stage, name, message):
        if stage.endswith("/advertise") and name == "t0-c0":
            begun.append(len(message.beacon))
        return away(stage.replace("round-2", "round-1"), name, message)

    masking = dataclasses.replace(SPARSE, graph="auto")
    job = federation(tiny_bert, masking=masking, **QUIET | {"rounds": 3})
    result = job.run(few(), out, wrap_transport=lying(out, lie)[0])
    # Drawn before the third round, when nobody was away. A draw in vain costs the keys that were
    # dealt for the second: its clients gave them up.
    assert begun == [0, 0, 32]
    assert [list(map(len, e["opened"].values())) for e in result.data["rounds"]] == [[6]] * 3
    (said,) = result.data["guarantee"]["masks"]
    assert said["graph"] == "sparse"  # which promises less


# --- a cohort that changes ------------------------------------------------------------------------


def test_sparse_graphs_are_drawn_anew_for_late_clients(tiny_bert, tmp_path):
    """Three come before round 2; the tree that takes them in has a graph that all of it drew."""
    clients, made = few(7), []
    late = [client.id for client in clients if client.id.startswith("t1")][-3:]
    job = federation(
        tiny_bert,
        **{
            **QUIET,
            "rounds": 2,
            "masking": SPARSE,
            "cohort": Cohort(late=True),
            "topology": Topology(sketch_size=64, cut="silhouette", significance=0.9999),
        },
    )
    result = job.run(
        clients,
        tmp_path / "run",
        wrap_transport=lambda t: made.append(Attendance(t, dict.fromkeys(late, (0, 1)))) or made[0],
    )
    first, second = (set().union(*r["opened"].values()) for r in result.data["rounds"])
    assert second - first == set(late)
    asked = {
        stage: set(requests) for stage, requests, _ in made[0].seen if stage.endswith(DRAWS[0])
    }
    assert asked == {f"round-1/{DRAWS[0]}": first, f"round-2/{DRAWS[0]}": second}
    old, new = record(tmp_path / "run")["beacons"].values()
    assert old != new
    for name in late:
        assert new in record(tmp_path / "run", name)["beacons"].values()
    assert result.data["guarantee"]["masks"][-1]["clients"] == len(clients)
