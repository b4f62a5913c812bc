"""Which graph of masks a round has: chosen from public numbers, by everybody alike.

In the complete graph every two members of a sum share a mask, and everybody holds a share of
everybody's secrets: a client's work grows with the number of clients. In the sparse graph
(secagg/SPEC.md, section 12) both are a few random neighbours. Who they are is drawn after the tree
is fixed, by all clients together, so that no server places a client between its accomplices.

The complete graph promises to withstand `colluders` and in fact withstands more; the sparse one is
sized for `colluders` and withstands no more, but with probability `FAILURE`. So ``auto`` never
takes it for a job that counts on fewer colluders than one client in `COMMON`: who wants that says
so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from fedtree_secagg import ConfigurationError as NoGraph
from fedtree_secagg import Node, Plan, Quantiser, Sparse
from fedtree_secagg.agreed.parameters import find_neighbourhood
from fedtree_secagg.beacon import CEREMONIES
from fedtree_secure.config import Masking
from fedtree_secure.errors import ConfigurationError

LEAST_OF_AUTO = 100  # clients; below, the complete graph costs less than drawing another
COMMON = 20  # one client in so many: dropouts where the job names none, least colluders of ``auto``
FAILURE = CEREMONIES * 2.0**-40  # a server may break off all draws of a tree but the last


@dataclass(frozen=True)
class Numbers:
    """What a sparse graph is sized by.

    Attributes:
        neighbours: Holders of a client's shares.
        threshold: Of these must answer.
        dropouts: Clients that may drop out.
    """

    neighbours: int
    threshold: int
    dropouts: int


def cohort_of(nodes: Iterable[Node]) -> int:
    """Number of clients in some nodes."""
    return len({name for node in nodes for name in node.members})


def _dropouts(masking: Masking, clients: int) -> int:
    return clients // COMMON if masking.dropouts is None else masking.dropouts


@lru_cache(maxsize=64)
def numbers_for(masking: Masking, clients: int) -> Numbers | None:
    """Return the narrowest sparse graph that keeps the bound; None where there is none."""
    gone = _dropouts(masking, clients)
    if clients < 3 or max(masking.colluders, gone) >= clients:
        return None
    shares = (Fraction(number, clients) for number in (masking.colluders, gone))
    try:
        found = find_neighbourhood(clients, *shares)
    except NoGraph:
        return None
    return Numbers(found.neighbours, found.threshold, gone)


def sparse_for(masking: Masking, clients: int) -> Numbers | None:
    """Return the sparse graph of a round with so many clients; None where it is complete.

    Where a tree leaves too few together for a sparse graph, theirs is complete: that withstands
    more.
    """
    if masking.graph == "complete":
        return None
    common = clients >= LEAST_OF_AUTO and masking.colluders * COMMON >= clients
    if masking.graph == "auto" and not common:
        return None
    return numbers_for(masking, clients)


def check_graph(masking: Masking, clients: int) -> None:
    """Refuse settings that no graph of all clients meets.

    Raises:
        ConfigurationError: A sparse graph is demanded and none keeps the bound; or more may drop
            out than the graph leaves.
    """
    if masking.graph == "sparse" and numbers_for(masking, clients) is None:
        gone = _dropouts(masking, clients)
        raise ConfigurationError(
            f'masking.graph is "sparse" for {clients} clients, of which {masking.colluders} may '
            f"collude and {gone} drop out: no sparse graph of so few fails with a probability of "
            "at most 2^-40; take more clients, fewer colluders or dropouts, or "
            'masking.graph = "complete"'
        )
    if masking.dropouts is None or sparse_for(masking, clients) is not None:
        return
    if not 0 <= masking.colluders <= clients - 2:
        return  # too few clients for anything, which is said where they are counted
    most = clients - Plan.full_threshold(clients, colluders=masking.colluders)
    if masking.dropouts > most:
        raise ConfigurationError(
            f"masking.dropouts is {masking.dropouts}; allowed: at most {most} of {clients} clients "
            f"with {masking.colluders} colluders, or a server could open two sums that differ by "
            "one client"
        )


def graph_bytes(masking: Masking, clients: int) -> bytes:
    """What the terms say of a sparse graph; nothing where it is complete, as it always was."""
    found = sparse_for(masking, clients)
    if found is None:
        return b""
    return f"\0graph\n{found.neighbours} {found.threshold} {found.dropouts}".encode()


def plan_over(
    masking: Masking,
    nodes: tuple[Node, ...],
    length: int,
    quantiser: Quantiser,
    context: bytes,
    *,
    sparse: bool,
) -> Plan:
    """Return the plan over some nodes, over the complete graph or a sparse one without its beacon.

    Args:
        sparse: Only where `sparse_for` has numbers for these nodes.
    """
    clients = cohort_of(nodes)
    found = sparse_for(masking, clients) if sparse else None
    if sparse and found is None:
        raise ConfigurationError(
            f"a sparse graph of {clients} clients, where the job has a complete one"
        )
    return Plan(
        length=length,
        nodes=nodes,
        min_group=masking.min_group,
        colluders=masking.colluders,
        threshold=(
            Plan.full_threshold(clients, colluders=masking.colluders)
            if found is None
            else found.threshold
        ),
        quantiser=quantiser,
        context=context,
        sparse=None if found is None else Sparse(found.neighbours, found.dropouts),
    )
