"""The parameter finder: every reference value, and the tails against an independent sum."""

import math
from fractions import Fraction

import pytest

from fedtree_secagg import ConfigurationError
from fedtree_secagg.parameters import Neighbourhood, _fewest_alive, _most_corrupt, find_neighbourhood

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
    if expected is None and n == 10_000:  # a search of all 5,000 even k takes a minute: look at some of each size
        for k in (444, 700, 1000, 2000, 5000, 9000, 9998):
            threshold = (_most_corrupt(n, n // 3, k, 40) + k) // 2 + 1
            assert threshold > _fewest_alive(n, n - n // 3, k, 20)
        return
    if expected is None:
        with pytest.raises(ConfigurationError, match="no even k below"):
            find_neighbourhood(n, part, part, active=active)
        return
    assert find_neighbourhood(n, part, part, active=active) == Neighbourhood(*expected)


@pytest.mark.parametrize(("n", "marked", "k"), [(60, 9, 12), (60, 30, 20), (60, 0, 8), (61, 60, 30), (60, 5, 40)])
def test_tails_equal_their_definition(n, marked, k):
    def probability(marked, predicate):
        ways = sum(math.comb(marked, x) * math.comb(n - marked, k - x) for x in range(k + 1) if predicate(x))
        return Fraction(ways, math.comb(n, k))

    for bits in (4, 10, 30):
        allowed = Fraction(1, n * 2 ** (bits + 1))
        least = next(x for x in range(k + 1) if probability(marked, lambda c, x=x: c > x) <= allowed)
        assert _most_corrupt(n, marked, k, bits) == least
        allowed = Fraction(1, n * 2**bits)
        most = max(x for x in range(k + 1) if probability(marked, lambda c, x=x: c < x) <= allowed)
        assert _fewest_alive(n, marked, k, bits) == most


@pytest.mark.parametrize("bad", [(2, 0, 0), (100, -0.1, 0), (100, 1, 0), (100, 0, 1.5)])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigurationError, match="neighbourhood"):
        find_neighbourhood(*bad)
