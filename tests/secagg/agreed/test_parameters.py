"""The parameter finder: every reference value, and the tails against an independent sum."""

import math
from fractions import Fraction

import pytest

from fedtree_secagg import ConfigurationError
from fedtree_secagg.agreed.parameters import (
    Neighbourhood,
    _fewest_alive,
    _most_corrupt,
    find_neighbourhood,
    find_ring_graph,
)

REFERENCE = {
    (100, 20): ((12, 6), (16, 11)),
    (100, 10): ((22, 11), (32, 22)),
    (100, 5): ((40, 21), (62, 42)),
    (100, 3): ((68, 34), None),
    (1000, 20): ((30, 17), (52, 37)),
    (1000, 10): ((48, 27), (96, 67)),
    (1000, 5): ((98, 54), (302, 206)),
    (1000, 3): ((292, 154), None),
    (10000, 20): ((34, 20), (62, 44)),
    (10000, 10): ((54, 31), (122, 85)),
    (10000, 5): ((122, 67), (482, 328)),
    (10000, 3): ((442, 231), None),
}


@pytest.mark.parametrize(("n", "share"), REFERENCE)
@pytest.mark.parametrize("active", [False, True])
def test_reference_values(n, share, active):
    expected = REFERENCE[n, share][active]
    part = Fraction(1, share)
    if (
        expected is None and n == 10_000
    ):  # a search of all 5,000 even k takes a minute: look at some of each size
        for k in (444, 700, 1000, 2000, 5000, 9000, 9998):
            threshold = (_most_corrupt(n, n // 3, k, 40) + k) // 2 + 1
            assert threshold > _fewest_alive(n, n - n // 3, k, 20)
        return
    if expected is None:
        with pytest.raises(ConfigurationError, match="no even k below"):
            find_neighbourhood(n, part, part, active=active)
        return
    assert find_neighbourhood(n, part, part, active=active) == Neighbourhood(*expected)


@pytest.mark.parametrize(
    ("n", "marked", "k"), [(60, 9, 12), (60, 30, 20), (60, 0, 8), (61, 60, 30), (60, 5, 40)]
)
def test_tails_equal_their_definition(n, marked, k):
    def probability(marked, predicate):
        ways = sum(
            math.comb(marked, x) * math.comb(n - marked, k - x)
            for x in range(k + 1)
            if predicate(x)
        )
        return Fraction(ways, math.comb(n, k))

    for bits in (4, 10, 30):
        allowed = Fraction(1, n * 2 ** (bits + 1))
        least = next(
            x for x in range(k + 1) if probability(marked, lambda c, x=x: c > x) <= allowed
        )
        assert _most_corrupt(n, marked, k, bits) == least
        allowed = Fraction(1, n * 2**bits)
        most = max(x for x in range(k + 1) if probability(marked, lambda c, x=x: c < x) <= allowed)
        assert _fewest_alive(n, marked, k, bits) == most


@pytest.mark.parametrize("bad", [(2, 0, 0), (100, -0.1, 0), (100, 1, 0), (100, 0, 1.5)])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigurationError, match="neighbourhood"):
        find_neighbourhood(*bad)


@pytest.mark.parametrize(
    ("n", "corrupt", "dropouts"), [(60, 2, 4), (100, 10, 10), (300, 15, 15), (1000, 50, 50)]
)
def test_the_ring_meets_its_bounds_and_no_narrower_one_does(n, corrupt, dropouts):
    found = find_ring_graph(n, corrupt, dropouts)

    def tail(marked, draws, least):
        """P[at least `least` of the marked among the draws], from the definition."""
        ways = {0: Fraction(1)}  # distribution of the count, one draw after the other
        for i in range(draws):
            following = {}
            for count, p in ways.items():
                hit = Fraction(marked - count, n - i)
                following[count + 1] = following.get(count + 1, Fraction(0)) + p * hit
                following[count] = following.get(count, Fraction(0)) + p * (1 - hit)
            ways = following
        return sum((p for count, p in ways.items() if count >= least), Fraction(0))

    def safe(half, least):
        return Fraction(n * (n - 1), 2) * tail(corrupt, half, least) ** 2 <= Fraction(1, 2**42)

    def works(half, least):
        return n * tail(dropouts, half, half - least + 1) <= Fraction(1, 2**20)

    assert safe(found.half, found.least)
    assert works(found.half, found.least)
    assert not safe(found.half, found.least - 1)
    narrower = found.half - 1
    assert not any(safe(narrower, w) and works(narrower, w) for w in range(1, narrower + 1))


def test_where_half_of_all_pairs_would_not_do_the_node_takes_all_pairs():
    assert find_ring_graph(12, 2, 2) is None
    assert find_ring_graph(100, 33, 33) is None


def test_rings_of_a_plan_share_the_failure_probability():
    alone, shared = find_ring_graph(1000, 50, 50), find_ring_graph(1000, 50, 50, nodes=1000)
    assert (shared.half, shared.least) > (alone.half, alone.least)
