"""The graphs of masks in a statement: what they promise in words, and whether they fit the job."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedtree_secagg import Plan
from fedtree_secure.agreed.graph import FAILURE, numbers_for
from fedtree_secure.config import Masking


def sparse_said(graphs: Iterable[Mapping[str, Any]], *, shared: bool) -> str:
    """Say what sparse graphs promise; nothing where all are complete.

    Args:
        shared: Whether epsilon counts on what the masks hide.
    """
    found = [graph for graph in graphs if graph["graph"] == "sparse"]
    if not found:
        return ""
    worst, total = (
        max(found, key=lambda graph: graph["clients"]),
        sum(g["failure"] for g in found),
    )
    colluders = f"{worst['colluders']} colluding client" + "s" * (worst["colluders"] != 1)
    text = (
        f". Masks are over a sparse graph that all {worst['clients']} clients drew together: each "
        f"shares masks and secrets with at most {worst['most_contacts']} others, and "
        f"{worst['threshold']} of its {worst['neighbours']} holders open one. Against "
        f"{colluders} this wall fails with a probability of at most "
        f"{total:.1e}; against more it promises nothing"
    )
    return text + (" and that probability adds to delta" if shared else "")


def graph_troubles(masking: Masking, graphs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say where a statement's graphs are not those that the job leads to."""
    found = []
    for graph in graphs:
        clients, sparse = graph["clients"], graph["graph"] == "sparse"
        numbers = numbers_for(masking, clients) if sparse else None
        if sparse and (numbers is None or masking.graph == "complete"):
            found.append(f"a sparse graph of {clients} clients does not follow from the job")
            continue
        expected = (
            (clients - 1, Plan.full_threshold(clients, colluders=masking.colluders), 0.0)
            if numbers is None
            else (numbers.neighbours, numbers.threshold, FAILURE)
        )
        said = (graph["neighbours"], graph["threshold"], graph["failure"])
        if said != expected:
            found.append(
                f"a {graph['graph']} graph of {clients} clients is said to have (neighbours, "
                f"threshold, failure) {said}; the job's has {expected}"
            )
    return found
