"""The second bookkeeping notices one bit in any value that a client keeps or delivers."""

import contextlib
import copy

import numpy as np
import pytest

from fedtree_audits.checks import accounted
from fedtree_audits.checks.accounted import NAMES, Setup, _keep_books, _run
from fedtree_audits.rigs import accounts
from fedtree_audits.rigs.parties import scratch


@pytest.fixture(scope="module")
def job():
    """A job that is over, and every client's books."""
    with scratch() as place, contextlib.ExitStack() as stack:
        finished = _run(stack, Setup(), place, b"k" * 32)
        yield finished, {name: _keep_books(finished, name) for name in NAMES}


def one_bit(values):
    flat = np.array(values).reshape(-1)
    flat.view(np.uint8)[0] ^= 1
    return flat.reshape(np.shape(values))


def kept(state):
    """Every value of a client: where it is kept, and what sets it."""
    for name in ("own", "external", "mixing_logits"):
        yield name, lambda value, name=name: setattr(state, name, value)
    for group in ("head", "adam"):
        for key in getattr(state, group):
            yield f"{group} {key}", getattr(state, group).__setitem__, key
    for key, node in state.nodes.items():
        for part in ("values", "first", "second"):
            yield f"{key} {part}", lambda value, node=node, part=part: setattr(node, part, value)


def read(state, name):
    group, _, key = name.partition(" ")
    if not key:
        return getattr(state, group)
    held = getattr(state, group, None)
    return held[key] if isinstance(held, dict) else getattr(state.nodes[group], key)


@pytest.mark.parametrize("client", ["c0", "c4"])
def test_one_bit_in_any_kept_value_is_named(job, client):
    finished, books = job
    state = finished.parties.participants[client].party.store.state
    assert books[client].compare(state) == []
    names = [name for name, *_ in kept(state)]
    assert len(names) > 10
    for name in names:
        changed = copy.deepcopy(state)
        ((put, *key),) = [how for found, *how in kept(changed) if found == name]
        put(*key, one_bit(read(changed, name)))
        assert books[client].compare(changed) == [name]


def test_clients_differ_in_what_is_shared(job):
    """The job has what it should: shared, split and own layers, mixing weights, moments."""
    _, books = job
    first, last = books["c0"].expected(), books["c4"].expected()
    assert len(first.nodes) == 2
    assert len(last.nodes) == 2  # of two layers, which one group covers
    assert {name.partition("/")[0] for name in first.adam} >= {"lam1", "lam2", "layer2.0"}
    assert not any(name.startswith("layer") for name in last.adam)
    assert first.mixing_logits[0] != first.mixing_logits[1]


def test_values_left_over_are_named(job):
    finished, books = job
    state = copy.deepcopy(finished.parties.participants["c0"].party.store.state)
    state.pending, state.adam["counts"] = state.own.copy(), np.ones(2, dtype=np.float32)
    assert books["c0"].compare(state) == ["adam counts", "pending"]


def test_a_tensor_that_only_one_side_has_differs():
    held, wanted = {"a": np.ones(2), "b": np.ones(1)}, {"a": np.ones(2), "c": np.ones(1)}
    assert accounts.differing(held, wanted) == ["b", "c"]
    assert accounts.differing({"a": np.zeros(1)}, {"a": np.zeros(2)}) == ["a"]


def test_the_report_says_what_is_strange():
    result = accounted.AUDIT.mutants["one more tensor delivered"](3)
    told = {check.name: check.detail for check in result.checks if not check.holds}
    assert set(told) == {f"{name}: adapter" for name in NAMES}
    assert told["c2: adapter"] == "not accounted for: base_model.model.counts"
