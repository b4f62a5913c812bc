"""Whose turn a round is: a public draw that client and server repeat."""

import math

import pytest
from twelve import NAMES, make_terms

from fedtree_secure import Cohort, ConfigurationError
from fedtree_secure.agreed.schedule import opens, turn_of


@pytest.mark.parametrize("share", [0.6, 0.75, 1.0])
def test_late_client_share_of_the_roster_is_asked_from_the_second_round_on(share):
    terms = make_terms(cohort=Cohort(share=share))
    assert turn_of(terms, 0) == turn_of(terms, 1) == set(NAMES)
    turns = [turn_of(terms, number) for number in range(2, 402)]
    assert {len(turn) for turn in turns} == {math.ceil(share * 12)}
    often = [sum(name in turn for turn in turns) / 400 for name in NAMES]
    # 400 draws of a fraction: six standard deviations, one wrong in 10^8
    wide = 6 * (share * (1 - share) / 400) ** 0.5 + 1 / 12
    assert all(abs(found - share) <= wide for found in often)


def test_late_client_turns_are_equal_for_all_and_other_in_another_run():
    one, again = (make_terms(cohort=Cohort(share=0.75)) for _ in range(2))
    other = make_terms(cohort=Cohort(share=0.75), seed=1)
    assert [turn_of(one, n) for n in range(9)] == [turn_of(again, n) for n in range(9)]
    assert [turn_of(one, n) for n in range(9)] != [turn_of(other, n) for n in range(9)]


def test_late_client_turn_that_could_open_nothing_is_none():
    terms = make_terms(cohort=Cohort(share=0.75))
    assert opens(terms, NAMES[:3], NAMES[:6])
    assert not opens(terms, NAMES[:2], NAMES[:6])


def test_late_client_share_too_small_for_a_threshold_is_refused():
    with pytest.raises(ConfigurationError, match="asks 6 of 12 clients in a round; 7 must answer"):
        make_terms(cohort=Cohort(share=0.5))
    for share in (0, 1.5, float("nan"), True, "half"):
        with pytest.raises(ConfigurationError, match=r"cohort\.share"):
            Cohort(share=share)
