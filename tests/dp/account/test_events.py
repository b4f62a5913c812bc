"""Events: canonical form, strict reading, refused ranges."""

import json
import math

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtree_dp import ConfigurationError, Gaussian, PoissonGaussian
from fedtree_dp.account import events
from fedtree_dp.account.accounting import merge

POISSON = {
    "mechanism": "poisson_gaussian",
    "noise_multiplier": 1.1,
    "sample_rate": 0.2,
    "steps": 30,
}


def test_round_trip():
    event = PoissonGaussian(noise_multiplier=1.1, sample_rate=0.2, steps=30)
    assert event.to_dict() == POISSON
    assert events.from_dict(POISSON) == event
    release = Gaussian(noise_multiplier=20)
    assert release.to_dict() == {"mechanism": "gaussian", "noise_multiplier": 20.0}
    assert events.from_dict(release.to_dict()) == release


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", "1"),
        ("sample_rate", 0.0),
        ("sample_rate", 1.0001),
        ("sample_rate", True),
        ("steps", 0),
        ("steps", 2.0),
        ("steps", 10**6 + 1),
    ],
)
def test_refused_values(field, value):
    with pytest.raises(ConfigurationError, match=field):
        events.from_dict(POISSON | {field: value})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (POISSON | {"sample_rat": 0.1}, "did you mean 'sample_rate'"),
        ({"mechanism": "gausian", "noise_multiplier": 1}, "did you mean 'gaussian'"),
        ({"mechanism": "laplace??"}, "known: gaussian"),
        ({"noise_multiplier": 1.0}, "unknown mechanism None"),
        ({"mechanism": "poisson_gaussian", "steps": 3}, "lacks noise_multiplier, sample_rate"),
        ([1, 2], "must be a table"),
        ({"mechanism": ["gaussian"]}, "unknown mechanism"),
    ],
)
def test_strict_reading(data, text):
    with pytest.raises(ConfigurationError, match=text.replace("?", r"\?")):
        events.from_dict(data)


def test_truncated_round_trip():
    data = POISSON | {"mechanism": "truncated_poisson_gaussian", "records": 1000, "cap": 300}
    event = events.from_dict(data)
    assert event.to_dict() == data
    for field in ("records", "cap"):
        with pytest.raises(ConfigurationError, match=field):
            events.from_dict(data | {field: 0})


NOISE = st.floats(min_value=0.1, max_value=1e3)
EVENTS = st.one_of(
    st.builds(Gaussian, noise_multiplier=NOISE),
    st.builds(
        PoissonGaussian,
        noise_multiplier=st.sampled_from([0.5, 1.0, 3.0]),
        sample_rate=st.sampled_from([0.1, 0.5, 1.0]),
        steps=st.integers(1, 100),
    ),
    st.builds(
        events.TruncatedPoissonGaussian,
        noise_multiplier=NOISE,
        sample_rate=st.sampled_from([0.1, 1.0]),
        steps=st.integers(1, 100),
        records=st.just(50),
        cap=st.sampled_from([20, 50, 99]),
    ),
)


@settings(derandomize=True, deadline=None)
@given(st.lists(EVENTS, max_size=6), st.randoms(use_true_random=False))
def test_merging_is_one_composition_in_any_order(given_events, draw):
    shuffled = draw.sample(given_events, len(given_events))
    once = merge(given_events)
    assert once == merge(shuffled) == merge(once)
    assert [events.from_dict(json.loads(rfc8785.dumps(event.to_dict()))) for event in once] == list(
        once
    )

    def precision(them):  # what Gaussian releases add up in
        return math.fsum(
            event.noise_multiplier**-2 for event in them if isinstance(event, Gaussian)
        )

    full = [event for event in given_events if getattr(event, "sample_rate", 1.0) == 1.0]
    whole = [
        e
        for e in full
        if not (isinstance(e, events.TruncatedPoissonGaussian) and e.cap < e.records)
    ]
    expected = math.fsum(getattr(event, "steps", 1) / event.noise_multiplier**2 for event in whole)
    assert precision(once) == pytest.approx(expected, rel=1e-12)
    assert sum(e.steps for e in once if not isinstance(e, Gaussian)) == sum(
        e.steps for e in given_events if not isinstance(e, Gaussian) and e not in whole
    )
