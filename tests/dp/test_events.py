"""Events: canonical form, strict reading, refused ranges."""

import math

import pytest

from fedtree_dp import ConfigurationError, Gaussian, PoissonGaussian, events

POISSON = {"mechanism": "poisson_gaussian", "noise_multiplier": 1.1, "sample_rate": 0.2, "steps": 30}


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
