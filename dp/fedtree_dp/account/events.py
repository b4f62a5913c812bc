"""Mechanisms as immutable values: what was run on the data, in the words that every accountant
understands.

All events speak of one client's data set, of neighbours that differ by one record added or removed,
and of releases whose sensitivity to one record is 1 in units of `noise_multiplier` (noise standard
deviation over clipping norm, or over the L2 sensitivity).

Compatibility law: the meaning of a mechanism's name and of its fields never changes, because
ledgers keep them for years; a different mechanism gets a different name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from fedtree_dp import checks
from fedtree_dp.errors import ConfigurationError

# Far more than any job; beyond it accounting takes minutes.
_MOST_STEPS = 1_000_000
_MOST_SHARE = 65_535  # clients of one masking plan


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """DP-SGD steps: each record joins each step's batch by its own coin, sums are clipped and
    noised.

    Formal guarantee: that of `steps` compositions of the Poisson-subsampled Gaussian mechanism,
    every step's noised sum released (Abadi et al. 2016; Koskela et al. 2020). It holds for Poisson
    sampling only: shuffled or fixed-size batches are another mechanism with a larger epsilon (Chua
    et al. 2403.17673).

    Attributes:
        noise_multiplier: noise standard deviation over the clipping norm; 0 means no noise and an
            infinite epsilon.
        sample_rate: probability that one record joins one step, above 0 and at most 1; a public
            constant.
        steps: number of such steps, 1 to 1,000,000; steps with an empty batch count.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    mechanism: ClassVar[str] = "poisson_gaussian"
    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        noise = checks.real("noise_multiplier", self.noise_multiplier, at_least=0.0)
        object.__setattr__(self, "noise_multiplier", noise)
        object.__setattr__(
            self,
            "sample_rate",
            checks.real("sample_rate", self.sample_rate, above=0.0, at_most=1.0),
        )
        object.__setattr__(self, "steps", checks.count("steps", self.steps, at_most=_MOST_STEPS))

    def to_dict(self) -> dict[str, str | float | int]:
        """Return the canonical form, `from_dict`'s inverse."""
        return _to_dict(self)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """One release of a function of all records with Gaussian noise (a fingerprint, a metric).

    Formal guarantee: that of the Gaussian mechanism (Balle and Wang 2018); no sampling, no
        amplification.

    Attributes:
        noise_multiplier: noise standard deviation over the L2 distance by which one record more or
            less can move the function; 0 means no noise and an infinite epsilon.

    Raises:
        ConfigurationError: a value outside this range.
    """

    mechanism: ClassVar[str] = "gaussian"
    noise_multiplier: float

    def __post_init__(self) -> None:
        noise = checks.real("noise_multiplier", self.noise_multiplier, at_least=0.0)
        object.__setattr__(self, "noise_multiplier", noise)

    def to_dict(self) -> dict[str, str | float | int]:
        """Return the canonical form, `from_dict`'s inverse."""
        return _to_dict(self)


@dataclass(frozen=True, slots=True)
class TruncatedPoissonGaussian:
    """DP-SGD steps whose Poisson batches are cut to `cap` records, so that they fit a fixed memory.

    A batch with more records keeps a uniformly random `cap` of them. Then one record can push
    another out, which costs privacy: nothing to speak of with a cap six standard deviations above
    the mean batch, 1.5 to 2.7 times epsilon with one at 2.8 (measured; the analysis is that of
    2508.15089).

    Formal guarantee: as for `PoissonGaussian`, for neighbours in which one record is replaced by an
    empty one ("replace special"), so that the number of records is the same, and public.

    Attributes:
        noise_multiplier: noise standard deviation over the clipping norm.
        sample_rate: probability that one record is drawn for one step, above 0 and at most 1; a
            public constant.
        steps: number of such steps, 1 to 1,000,000.
        records: exact, public number of records, at least 1.
        cap: most records that stay in a step, at least 1.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    mechanism: ClassVar[str] = "truncated_poisson_gaussian"
    noise_multiplier: float
    sample_rate: float
    steps: int
    records: int
    cap: int

    def __post_init__(self) -> None:
        noise = checks.real("noise_multiplier", self.noise_multiplier, at_least=0.0)
        object.__setattr__(self, "noise_multiplier", noise)
        object.__setattr__(
            self,
            "sample_rate",
            checks.real("sample_rate", self.sample_rate, above=0.0, at_most=1.0),
        )
        object.__setattr__(self, "steps", checks.count("steps", self.steps, at_most=_MOST_STEPS))
        object.__setattr__(self, "records", checks.count("records", self.records))
        object.__setattr__(self, "cap", checks.count("cap", self.cap))

    def to_dict(self) -> dict[str, str | float | int]:
        """Return the canonical form, `from_dict`'s inverse."""
        return _to_dict(self)


@dataclass(frozen=True, slots=True)
class SharedPoissonGaussian:
    """DP-SGD steps of which nobody sees more than a sum over several clients, each with noise of
    its own in it.

    Two guarantees, with different assumptions (`fedtree_dp.account.shared`):

    Formal guarantee (own noise): whatever all others do, that of `PoissonGaussian` with this
        `noise_multiplier`. It is what every function of this package computes with, unless it is
        told to assume more.
    Formal guarantee (shared noise): while every opened sum that holds a step of this client also
        holds the independent noise, of the same size, of at least `honest` - 1 others, and nobody
        who looks knows that noise: that of `PoissonGaussian` with `noise_multiplier` times the
        square root of `honest`.

    Attributes:
        noise_multiplier: standard deviation of this client's own noise over the clipping norm.
        sample_rate: as for `PoissonGaussian`.
        steps: as for `PoissonGaussian`; each is opened as a sum before the next is computed.
        honest: members of the smallest sum, this client among them, whose noise is counted on; 1
            to 65,535.

    Raises:
        ConfigurationError: a value outside these ranges.
    """

    mechanism: ClassVar[str] = "shared_poisson_gaussian"
    noise_multiplier: float
    sample_rate: float
    steps: int
    honest: int

    def __post_init__(self) -> None:
        own = PoissonGaussian(self.noise_multiplier, self.sample_rate, self.steps)
        for name in ("noise_multiplier", "sample_rate", "steps"):
            object.__setattr__(self, name, getattr(own, name))
        object.__setattr__(self, "honest", checks.count("honest", self.honest, at_most=_MOST_SHARE))

    @property
    def own(self) -> PoissonGaussian:
        """The same steps by this client's own noise alone."""
        return PoissonGaussian(self.noise_multiplier, self.sample_rate, self.steps)

    def together(self, honest: int | None = None) -> PoissonGaussian:
        """The same steps by the noise of so many members, this client among them.

        Args:
            honest: at least 1; as many as the event counts on if None. More are not believed.
        """
        asked = self.honest if honest is None else checks.count("honest", honest)
        counted = min(asked, self.honest)
        noise = self.noise_multiplier * math.sqrt(counted)
        return PoissonGaussian(noise, self.sample_rate, self.steps)

    def to_dict(self) -> dict[str, str | float | int]:
        """Return the canonical form, `from_dict`'s inverse."""
        return _to_dict(self)


Event = PoissonGaussian | Gaussian | TruncatedPoissonGaussian | SharedPoissonGaussian

MECHANISMS: dict[str, type[Event]] = {
    kind.mechanism: kind
    for kind in (PoissonGaussian, Gaussian, TruncatedPoissonGaussian, SharedPoissonGaussian)
}


def _to_dict(event: Event) -> dict[str, str | float | int]:
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"mechanism": event.mechanism, **values}


def from_dict(data: Mapping[str, object]) -> Event:
    """Read the canonical form strictly: every field present, none unknown, every value in range.

    Raises:
        ConfigurationError: anything else, with a suggestion for a name that is nearly right.
    """
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"an event must be a table with a 'mechanism', not {data!r:.80}")
    name = data.get("mechanism")
    kind = MECHANISMS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ConfigurationError(
            f"unknown mechanism {name!r}{checks.suggestion(str(name), MECHANISMS)}"
        )
    wanted = {field.name for field in fields(kind)}
    given = {key: value for key, value in data.items() if key != "mechanism"}
    for key in given.keys() - wanted:
        raise ConfigurationError(
            f"{name} has no field {key!r}{checks.suggestion(str(key), wanted)}"
        )
    if missing := sorted(wanted - given.keys()):
        raise ConfigurationError(f"{name} lacks {', '.join(missing)}")
    return kind(**given)  # type: ignore[arg-type]
