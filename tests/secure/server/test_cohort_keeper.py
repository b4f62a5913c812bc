"""Who is declared gone, and what a keeper does with farewells: without a run."""

from types import SimpleNamespace

from twelve import NAMES, make_terms

from fedtree_secure import Cohort
from fedtree_secure.server.cohort import CohortKeeper
from fedtree_secure.server.state import ServerState


def keeper(state, **cohort):
    channel = SimpleNamespace(left={})
    terms = make_terms(cohort=Cohort(**cohort))
    return CohortKeeper(terms, None, channel, state, lambda: None, lambda *_: {})


def test_late_client_is_declared_gone_after_so_many_missed_rounds_in_a_row():
    state = ServerState()
    found = keeper(state, gone_after=2)
    everyone, without = frozenset(NAMES), frozenset(NAMES[1:])
    for began in (without, everyone, without):
        found.missed(everyone, began)
    assert state.gone == {}  # it came back in between
    found.missed(everyone, without)
    assert state.gone == {NAMES[0]: ""}


def test_late_client_that_is_not_asked_misses_nothing():
    state = ServerState()
    found = keeper(state, gone_after=1)
    found.missed(frozenset(NAMES[:4]), frozenset(NAMES[:4]))
    assert state.gone == {}


def test_late_client_is_never_declared_gone_where_the_job_does_not_say_so():
    state = ServerState()
    found = keeper(state)
    for _ in range(50):
        found.missed(frozenset(NAMES), frozenset())
    assert state.gone == {}
