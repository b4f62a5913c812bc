"""Which graph of masks a job leads to, what is refused, and what plans and terms are bound to."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from small_jobs import federation, make_clients, make_job

from fedtree_secagg import Beacon, Identity, Plan, Roster
from fedtree_secure import ConfigurationError, Masking
from fedtree_secure.agreed.graph import check_graph, graph_bytes, numbers_for, sparse_for
from fedtree_secure.agreed.graph_facts import graphs_of
from fedtree_secure.agreed.messages import NodeDigest
from fedtree_secure.agreed.round_plan import draft_of_round, enough_votes, plan_of_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.clients import check_clients
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout
from fedtree_secure.report.masks import graph_troubles, sparse_said

COUNT = 20
NAMES = tuple(f"c{i:02d}" for i in range(COUNT))
SPARSE = Masking(graph="sparse", dropouts=1)
# One group in the first layer, two in the second, and two clients that keep that one at home.
TREE = Tree(NAMES, ((0,) * COUNT, (0,) * 9 + (1,) * 9 + (2, 3)), 3)
VALUE = bytes(range(32))
FACTS = ModelFacts(bytes(32), Layout(((0, 4), (4, 8))), 16, 2, (0, 1), np.zeros(8, np.float32))
DIGESTS = (NodeDigest("node", bytes(32), bytes(32)),)


def key(number):
    return Identity.generate(bytes([number, *range(1, 32)])).public_bytes


def terms(masking=SPARSE, count=COUNT, **changes):
    roster = Roster({name: key(i) for i, name in enumerate(NAMES[:count])})
    job = make_job("unused", masking=masking, **changes)
    return Terms(job, roster, key(99), "run")


def plan(masking=SPARSE, beacon=VALUE, **changes):
    made = terms(masking)
    given = (made, FACTS, changes.pop("tree", TREE), "", 3.0, DIGESTS)
    return plan_of_round(*given, merge=False, beacon=beacon)


@pytest.mark.parametrize(
    ("masking", "clients", "sparse"),
    [
        (Masking(), 5000, False),  # whoever counts on one colluder keeps what withstands more
        (Masking(min_group=7, colluders=5), 100, True),
        (Masking(min_group=7, colluders=5), 99, False),
        (Masking(min_group=6, colluders=4), 100, False),
        (Masking(min_group=52, colluders=50), 1000, True),
        (Masking(min_group=52, colluders=50, graph="complete"), 1000, False),
        (Masking(graph="sparse"), 20, True),
    ],
)
def test_sparse_is_chosen_by_cohort_and_colluders(masking, clients, sparse):
    assert (sparse_for(masking, clients) is not None) == sparse


def test_sparse_numbers_are_those_of_the_specification():
    found = numbers_for(Masking(min_group=52, colluders=50, dropouts=50), 1000)
    assert (found.neighbours, found.threshold) == (52, 37)  # secagg/SPEC.md's bounds, active
    assert numbers_for(Masking(min_group=52, colluders=50), 1000) == found  # one in 20


def test_sparse_where_the_cohort_is_too_small_is_refused_in_a_sentence(tmp_path):
    masking = Masking(min_group=4, colluders=2, graph="sparse", dropouts=2)
    clients = make_clients(each=3)
    said = r'"sparse" for 6 clients, of which 2 may collude and 2 drop out: .* 2\^-40; take more'
    with pytest.raises(ConfigurationError, match=said) as error:
        federation("nowhere", masking=masking).run(clients, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []  # no run folder, no store: nothing was charged
    with pytest.raises(ConfigurationError, match=said):
        terms(masking, count=6)


def test_sparse_more_dropouts_than_a_complete_graph_leaves_are_refused():
    check_clients(make_job("unused", masking=Masking(dropouts=2)), make_clients(each=3))
    with pytest.raises(ConfigurationError, match="dropouts is 3; allowed: at most 2 of 6 clients"):
        check_graph(Masking(dropouts=3), 6)
    for bad in ({"graph": "ring"}, {"dropouts": -1}, {"dropouts": True}):
        with pytest.raises(ConfigurationError, match=f"masking.{next(iter(bad))} is "):
            Masking(**bad)


def test_sparse_settings_are_agreed_and_older_jobs_read_as_before(monkeypatch):
    usual, asked = terms(Masking()), terms()
    assert usual.job.to_dict()["masking"] == {"min_group": 3, "colluders": 1}
    assert asked.job.to_dict()["masking"]["graph"] == "sparse"
    assert usual.digest != asked.digest
    # another version of the choice would be noticed before anything is computed
    assert graph_bytes(SPARSE, COUNT) == b"\0graph\n4 3 1"
    assert graph_bytes(Masking(), COUNT) == b""
    monkeypatch.setattr("fedtree_secure.agreed.terms.graph_bytes", lambda *_: b"\0graph\n6 4 1")
    assert terms().digest != asked.digest


def test_sparse_plans_have_the_rounds_nodes_and_another_beacon_another_hash():
    made, draft = plan(), draft_of_round(terms(), FACTS, TREE, merge=False)
    assert [(n.name, n.members, n.ranges) for n in made.nodes] == [
        (n.name, n.members, n.ranges) for n in plan(beacon=b"").nodes
    ]
    assert made.sparse.beacon == Beacon(VALUE, draft.tree)
    assert made.tree == draft.tree
    assert made.hash != plan(beacon=VALUE[::-1]).hash
    assert made.hash != plan(beacon=b"").hash
    assert len(made.graph.holders(NAMES[0])) == 4 < COUNT - 1


def test_sparse_draws_are_for_one_tree():
    other = Tree(NAMES, ((0,) * COUNT, (0,) * 10 + (1,) * 10), 3)
    first, second = (draft_of_round(terms(), FACTS, t, merge=False) for t in (TREE, other))
    assert first.tree != second.tree
    assert draft_of_round(terms(Masking()), FACTS, TREE, merge=False) is None


def test_sparse_without_enough_clients_in_groups_is_complete():
    """That withstands more; the job was refused where its whole cohort was too small."""
    few = Tree(NAMES, ((0,) * 4 + tuple(range(1, 17)),) * 2, 3)
    assert draft_of_round(terms(), FACTS, few, merge=False) is None
    with pytest.raises(ConfigurationError, match="sparse graph of 4 clients"):
        plan(tree=few)


def test_sparse_graphs_are_said_with_their_degree_and_failure_probability():
    draft = draft_of_round(terms(), FACTS, TREE, merge=False)
    (said,) = graphs_of(terms(), FACTS, TREE, {draft.tree.hex(): VALUE.hex()})
    contacts = [len(plan().graph.contacts(name)) - 1 for name in NAMES]
    assert said == {
        "rounds": "training",
        "graph": "sparse",
        "clients": COUNT,
        "neighbours": 4,
        "threshold": 3,
        "most_contacts": max(contacts),
        "colluders": 1,
        "dropouts": 1,
        "failure": 2.0**-36,
    }
    text = sparse_said([said], shared=False)
    assert f"at most {max(contacts)} others" in text
    assert "1 colluding client this wall fails with a probability of at most 1.5e-11" in text
    assert "adds to delta" in sparse_said([said], shared=True)
    assert graph_troubles(SPARSE, [said]) == []


def test_sparse_graphs_that_do_not_follow_from_the_job_are_no_statement():
    draft = draft_of_round(terms(), FACTS, TREE, merge=False)
    (said,) = graphs_of(terms(), FACTS, TREE, {draft.tree.hex(): VALUE.hex()})
    (complete,) = graphs_of(terms(), FACTS, TREE, {})  # drawn by nobody
    assert (complete["graph"], complete["neighbours"], complete["failure"]) == ("complete", 19, 0)
    assert complete["threshold"] == Plan.full_threshold(COUNT)
    assert graph_troubles(SPARSE, [complete]) == []
    for changes in ({"neighbours": 6}, {"threshold": 4}, {"failure": 0.0}, {"clients": 4}):
        assert graph_troubles(SPARSE, [{**said, **changes}])
    assert "does not follow" in graph_troubles(Masking(graph="complete"), [said])[0]
    assert "is said to have" in graph_troubles(SPARSE, [{**complete, "failure": 1e-9}])[0]


def test_sparse_last_experts_need_the_committee_or_as_many_as_ever():
    given = (terms(), FACTS, TREE)
    draft = draft_of_round(*given, merge=False)
    drawn = {draft.tree.hex(): VALUE.hex()}
    committee = plan().graph.committee
    others = [name for name in NAMES if name not in committee]
    assert enough_votes(*given, drawn, NAMES) == tuple(sorted(committee))[:3]
    assert set(enough_votes(*given, drawn, [*others, *committee[:3]])) == set(committee[:3])
    # two of the committee and few others are no majority of anything
    few = [*committee[:2], *others[:7]]
    assert enough_votes(*given, drawn, few) == ()
    assert len(enough_votes(*given, drawn, [*few, *others[7:9]])) == Plan.full_threshold(COUNT)
    # of a graph that was never drawn nobody is in a committee
    assert enough_votes(*given, {}, committee) == ()


def test_sparse_settings_of_the_page_on_choosing_are_read():
    text = (Path(__file__).parents[3] / "docs" / "choosing.md").read_text()
    (block,) = (b for b in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "graph" in b)
    masking = Masking(**tomllib.loads(block)["masking"])
    assert sparse_for(masking, 1000) == numbers_for(masking, 1000) is not None
