"""What a statement says of the graphs of masks that a run had, from public values alone."""

from collections.abc import Mapping
from typing import Any

from fedtree_secagg import Beacon, Plan
from fedtree_secure.agreed.graph import FAILURE, cohort_of
from fedtree_secure.agreed.round_plan import draft_of_round, nodes_of_round
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.model.facts import ModelFacts


def graphs_of(
    terms: Terms, facts: ModelFacts, tree: Tree, beacons: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the graph of the merge round and that of later ones, each if there are such rounds.

    Where one of these rounds fell back to the complete graph, the sparse one is named all the same:
    it promises less.

    Args:
        terms, facts, tree: Of the run.
        beacons: What drew each sparse graph, by the tree that it was drawn for, in hexadecimal.
    """
    kinds = (("merge", terms.merges), ("training", terms.job.rounds > 0))
    return [
        _described(terms, facts, tree, beacons, kind)
        for kind, held in kinds
        if held and nodes_of_round(tree, facts.layout, terms.job, merge=kind == "merge")
    ]


def _described(
    terms: Terms, facts: ModelFacts, tree: Tree, beacons: Mapping[str, str], kind: str
) -> dict[str, Any]:
    masking, merge = terms.job.masking, kind == "merge"
    draft = draft_of_round(terms, facts, tree, merge=merge)
    if draft is not None and (value := beacons.get(draft.tree.hex())) is not None:
        plan = draft.with_beacon(Beacon(bytes.fromhex(value), draft.tree))
        assert plan.sparse is not None
        return {
            "rounds": kind,
            "graph": "sparse",
            "clients": len(plan.cohort),
            "neighbours": plan.sparse.neighbours,
            "threshold": plan.threshold,
            "most_contacts": max(len(plan.graph.contacts(name)) - 1 for name in plan.cohort),
            "colluders": masking.colluders,
            "dropouts": plan.sparse.dropouts,
            "failure": FAILURE,
        }
    clients = cohort_of(nodes_of_round(tree, facts.layout, terms.job, merge=merge))
    threshold = Plan.full_threshold(clients, colluders=masking.colluders)
    return {
        "rounds": kind,
        "graph": "complete",
        "clients": clients,
        "neighbours": clients - 1,
        "threshold": threshold,
        "most_contacts": clients - 1,
        "colluders": masking.colluders,
        "dropouts": clients - threshold,
        "failure": 0.0,
    }
