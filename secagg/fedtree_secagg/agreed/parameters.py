"""How many neighbours and which threshold a sparse graph of masks needs.

In a graph where each client has k random neighbours, masks and shares cost k instead of n. Two
things must hold but with probability 2^-sigma: the graph of honest survivors stays connected, and
no honest client has so many corrupt neighbours that they rebuild its secrets; and the round must
succeed but with probability 2^-eta. All tails are summed in exact integers. Source: Bell, Bonawitz,
Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS
2020, section 3 and appendix.

What the numbers assume: corrupt clients and the tree are fixed before the graph is drawn, and
neighbours are uniform. Bell et al. also let those who drop out be fixed before; an active server
chooses them when it knows the graph, and `find_ring_graph` is for that: no choice of dropouts cuts
such a ring of masks in two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from fedtree_secagg.errors import ConfigurationError


@dataclass(frozen=True)
class Neighbourhood:
    """A choice of k and t.

    Attributes:
        neighbours: k, even.
        threshold: t of the k neighbours rebuild a secret.
    """

    neighbours: int
    threshold: int


@cache
def threshold_range(
    n: int,
    corrupt: int,
    dropouts: int,
    k: int,
    *,
    active: bool = True,
    sigma: int = 40,
    eta: int = 20,
) -> tuple[int, int]:
    """Return the least safe and the largest reachable threshold among k random neighbours; empty
    where least > largest.

    Arguments are those of `find_neighbourhood`, with counts in place of shares.
    """
    most = _most_corrupt(n, corrupt, k, sigma)
    return (most + k) // 2 + 1 if active else most + 1, _fewest_alive(n, n - dropouts, k, eta)


@dataclass(frozen=True)
class RingGraph:
    """A ring of masks that no choice of dropouts parts (`graph.Rings.holds_together`).

    Attributes:
        half: each client shares masks with that many clients on either side.
        least: survivors that every `half` neighbouring places must have, or the node is not opened.
    """

    half: int
    least: int


def find_neighbourhood(
    n: int,
    corrupt: float | Fraction,
    dropout: float | Fraction,
    *,
    active: bool = True,
    sigma: int = 40,
    eta: int = 20,
) -> Neighbourhood:
    """Return the first even k, and its t, that meet all bounds.

    Args:
        n: clients.
        corrupt: share of clients that collude with the server, gamma; floor(gamma n) of them.
        dropout: share of clients that may drop out, delta.
        active: whether the server may show different survivor sets and ask for both kinds of share.
        sigma: bits of security.
        eta: bits of correctness.

    Raises:
        ConfigurationError: no even k below n meets the bounds; use the full graph or fewer corrupt
            clients.

    >>> find_neighbourhood(1000, Fraction(1, 10), Fraction(1, 10), active=False)
    Neighbourhood(neighbours=48, threshold=27)
    """
    if n < 3 or not (0 <= corrupt < 1 and 0 <= dropout < 1 and sigma > 0 and eta > 0):
        raise ConfigurationError(
            f"neighbourhood: n {n}, corrupt {corrupt}, dropout {dropout}; "
            "n must be at least 3, the shares in [0, 1)"
        )
    bad, gone = math.floor(Fraction(corrupt) * n), math.floor(Fraction(dropout) * n)
    for k in range(2, n, 2):
        if not _stays_connected(n, bad + gone, k, sigma):
            continue
        least, most = threshold_range(n, bad, gone, k, active=active, sigma=sigma, eta=eta)
        if least <= most:
            return Neighbourhood(k, least)
    raise ConfigurationError(
        f"neighbourhood: no even k below {n} holds for {bad} corrupt clients and {gone} dropouts; "
        "use the full graph"
    )


@cache
def find_ring_graph(
    n: int, corrupt: int, dropouts: int, *, nodes: int = 1, sigma: int = 40, eta: int = 20
) -> RingGraph | None:
    """Return the narrowest ring that holds together, or None where half of all pairs would not do.

    With q the probability that `half` places have at least `least` corrupt clients
    (hypergeometric): two such stretches somewhere among n places have probability at most n (n - 1)
    / 2 * q^2, since counts in disjoint stretches are negatively associated (Joag-Dev and Proschan
    1983); it must be at most 2^-(sigma + 2) over all nodes. Survivors fall below `least` somewhere,
    when dropouts are random, with probability at most 2^-eta.

    Args:
        n: members of the node.
        corrupt: corrupt clients among them, at most.
        dropouts: dropouts among them that the round should survive.
        nodes: nodes that share the failure probability.
        sigma: bits of security.
        eta: bits of correctness.

    >>> find_ring_graph(10_000, 500, 500)
    RingGraph(half=25, least=13)
    """
    for half in range(1, (n - 1) // 4 + 1):
        total = math.comb(n, half)
        most, tail = min(corrupt, half) + 1, 0  # the least count that is improbable enough
        for count, ways in _hypergeometric_down(n, corrupt, half):
            tail += ways
            if n * (n - 1) * nodes * tail * tail << (sigma + 1) > total * total:
                break
            most = count
        gone = next((x for x, ways in _cumulated(n, dropouts, half) if ways * n << eta > total), 0)
        if most <= half - gone:
            return RingGraph(half, most)
    return None


def _cumulated(n: int, marked: int, k: int) -> Iterator[tuple[int, int]]:
    """Yield (x, ways to draw k of n with at least x of the marked), from the largest x down."""
    tail = 0
    for x, ways in _hypergeometric_down(n, marked, k):
        tail += ways
        yield x, tail


def _stays_connected(n: int, removed: int, k: int, sigma: int) -> bool:
    """Union bound: k removed clients cut off some two clients that are not neighbours."""
    if k > removed:
        return True
    return n * (n - k - 1) * math.perm(removed, k) << sigma < math.perm(n, k)  # both sides times 2


def _most_corrupt(n: int, corrupt: int, k: int, sigma: int) -> int:
    """Return t1: the least x with P[more than x neighbours are corrupt] <= 2^-(sigma+1) / n."""
    total, tail = math.comb(n, k), 0
    counts = _hypergeometric_down(n, corrupt, k)
    return next(x for x, ways in counts if (tail := tail + ways) * n << (sigma + 1) > total)


def _fewest_alive(n: int, alive: int, k: int, eta: int) -> int:
    """Return t2: the largest x with P[fewer than x neighbours are alive] <= 2^-eta / n."""
    total, tail = math.comb(n, k), 0
    # neighbours alive = k - neighbours gone: walk the number gone from its largest value down
    counts = _hypergeometric_down(n, n - alive, k)
    return k - next(gone for gone, ways in counts if (tail := tail + ways) * n << eta > total)


def _hypergeometric_down(n: int, marked: int, k: int) -> Iterator[tuple[int, int]]:
    """Yield (x, ways to draw k of n with x of the marked), from the largest x down."""
    x = min(marked, k)
    ways = math.comb(marked, x) * math.comb(n - marked, k - x)
    while x >= max(0, k - (n - marked)):
        yield x, ways
        ways = ways * x * (n - marked - k + x) // ((marked - x + 1) * (k - x + 1))
        x -= 1
