"""How many neighbours and which threshold a sparse graph of masks needs.

In a graph where each client has k random neighbours, masks and shares cost k instead of n. Two things must hold but
with probability 2^-sigma: the graph of honest survivors stays connected, and no honest client has so many corrupt
neighbours that they rebuild its secrets; and the round must succeed but with probability 2^-eta. All tails are summed
in exact integers. Source: Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS 2020, section 3 and appendix.

What the numbers assume: corrupt clients are fixed before the graph is drawn, and neighbours are uniform. They bound
a group of n drawn as a whole; a server that chooses small clusters after it has seen the graph is not covered, so
nodes below a few hundred members take the full graph.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

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


def find_neighbourhood(
    n: int, corrupt: float | Fraction, dropout: float | Fraction, *, active: bool = True, sigma: int = 40, eta: int = 20
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
        ConfigurationError: no even k below n meets the bounds; use the full graph or fewer corrupt clients.

    >>> find_neighbourhood(1000, Fraction(1, 10), Fraction(1, 10), active=False)
    Neighbourhood(neighbours=48, threshold=27)
    """
    if n < 3 or not (0 <= corrupt < 1 and 0 <= dropout < 1 and sigma > 0 and eta > 0):
        raise ConfigurationError(
            f"neighbourhood: n {n}, corrupt {corrupt}, dropout {dropout}; n must be at least 3, the shares in [0, 1)"
        )
    bad, gone = math.floor(Fraction(corrupt) * n), math.floor(Fraction(dropout) * n)
    for k in range(2, n, 2):
        if not _stays_connected(n, bad + gone, k, sigma):
            continue
        most = _most_corrupt(n, bad, k, sigma)
        threshold = (most + k) // 2 + 1 if active else most + 1
        if threshold <= _fewest_alive(n, n - gone, k, eta):
            return Neighbourhood(k, threshold)
    raise ConfigurationError(
        f"neighbourhood: no even k below {n} holds for {bad} corrupt clients and {gone} dropouts; use the full graph"
    )


def _stays_connected(n: int, removed: int, k: int, sigma: int) -> bool:
    """Union bound: some two clients that are not neighbours are cut off by k particular removed clients."""
    if k > removed:
        return True
    return n * (n - k - 1) * math.perm(removed, k) << sigma < math.perm(n, k)  # both sides times 2


def _most_corrupt(n: int, corrupt: int, k: int, sigma: int) -> int:
    """Return t1: the least x that the number of corrupt neighbours exceeds with probability 2^-(sigma+1) / n."""
    total, tail = math.comb(n, k), 0
    counts = _hypergeometric_down(n, corrupt, k)
    return next(x for x, ways in counts if (tail := tail + ways) * n << (sigma + 1) > total)


def _fewest_alive(n: int, alive: int, k: int, eta: int) -> int:
    """Return t2: the largest x that the number of neighbours alive falls below with probability 2^-eta / n."""
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
