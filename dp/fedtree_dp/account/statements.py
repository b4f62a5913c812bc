"""What a privacy claim must say to be checked: the hyperparameters of a formal statement, as plain
values.

After NIST SP 800-226 and Ponomareva et al. 2023 (2303.00654): unit, neighbours, delta, epsilon with
and without amplification by sampling, what is released, which accountant, and what has to hold for
it to be true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version

from fedtree_dp.account.accounting import STATEMENT_DISCRETIZATION, epsilon_of, merge, times_of
from fedtree_dp.account.events import Event, Gaussian, TruncatedPoissonGaussian
from fedtree_dp.account.unit import RECORD_NEIGHBOURS, PrivacyUnit, name_of, text_of
from fedtree_dp.errors import ConfigurationError

_ASSUMPTIONS = (
    (
        "each listed release happened at most as often as listed, and nothing else about the data "
        "set "
        "was released"
    ),
    (
        "clipping norms, sample rates, numbers of steps and declared sizes were chosen without "
        "looking "
        "at the data"
    ),
    "the events were fixed before they ran",
    "noise is unpredictable, independent between releases, and never shown",
)
_SAMPLING = (
    "every step's batch was drawn by an independent coin per {} (Poisson), "
    "and is not shown to anyone"
)
_PUBLIC_SIZE = "the exact number of records is public"


@dataclass(frozen=True, slots=True)
class Statement:
    """The hyperparameters of one formal privacy statement.

    Attributes:
        unit: what is protected.
        neighbours: the neighbouring relation.
        delta: at which all epsilons here hold.
        epsilon: the claim: by privacy loss distributions, rounded up by the accountant.
        epsilon_without_amplification: the same with every record in every batch, or for who knows
            the batches.
        epsilon_rdp: cross-check by Rényi DP, an upper bound; `None` for truncated batches.
        epsilon_prv: cross-check by Opacus' accountant; `None` for truncated batches, or when not
            asked for.
        discretization: grid of the privacy loss, in nats.
        accountants: libraries and their versions.
        releases: the events, equal ones merged, in their canonical form.
        assumptions: what has to be true.
    """

    unit: str
    neighbours: str
    delta: float
    epsilon: float
    epsilon_without_amplification: float
    epsilon_rdp: float | None
    epsilon_prv: float | None
    discretization: float
    accountants: dict[str, str]
    releases: tuple[dict[str, str | float | int], ...]
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a report; an infinite epsilon becomes the string `"inf"`, which
        JSON can hold.
        """
        return {key: "inf" if value == math.inf else value for key, value in asdict(self).items()}


def statement(
    events: Iterable[Event], delta: float, *, prv: bool = True, unit: PrivacyUnit | None = None
) -> Statement:
    """Return what a formal statement about these events has to say.

    Args:
        events: everything that was released about one data set (`Ledger.events`).
        delta: from 1e-12 to below 1.
        prv: whether to cross-check with Opacus, which takes seconds to import.
        unit: what every event was charged for (`Ledger.unit`); a record if None.

    Raises:
        ConfigurationError: delta out of range, or truncated batches of units.
    """
    merged = merge(events)
    cut = any(isinstance(event, TruncatedPoissonGaussian) for event in merged)
    sampled = any(not isinstance(event, Gaussian) for event in merged)
    if cut and unit is not None:
        raise ConfigurationError(
            f"truncated batches are accounted for records alone, not for the unit {unit.name!r}; "
            "draw units with PoissonSampler without a cap"
        )
    libraries = ("dp-accounting", "opacus") if prv and not cut else ("dp-accounting",)
    return Statement(
        unit=text_of(unit),
        neighbours=_neighbours(unit, cut=cut),
        delta=delta,
        epsilon=epsilon_of(merged, delta),
        epsilon_without_amplification=epsilon_of(_unsampled(merged), delta),
        epsilon_rdp=None if cut else epsilon_of(merged, delta, accountant="rdp"),
        epsilon_prv=epsilon_of(merged, delta, accountant="prv") if "opacus" in libraries else None,
        discretization=STATEMENT_DISCRETIZATION,
        accountants={name: version(name) for name in libraries},
        releases=tuple(event.to_dict() for event in merged),
        assumptions=(
            *_ASSUMPTIONS,
            *((_SAMPLING.format(name_of(unit)),) if sampled else ()),
            *((_PUBLIC_SIZE,) if cut else ()),
        ),
    )


def _neighbours(unit: PrivacyUnit | None, *, cut: bool) -> str:
    if cut:
        return "replace one record by an empty one"
    return RECORD_NEIGHBOURS if unit is None else unit.neighbours


def _unsampled(merged: tuple[Event, ...]) -> list[Event]:
    """Return the events without amplification; where truncation lets a record push one out,
    sensitivity is doubled.
    """
    plain: list[Event] = []
    for event in merged:
        weaker = 2.0 if isinstance(event, TruncatedPoissonGaussian) else 1.0
        noise = event.noise_multiplier / weaker / math.sqrt(times_of(event))
        plain.append(Gaussian(noise))
    return plain
