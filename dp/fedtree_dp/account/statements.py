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

from fedtree_dp.account import shared
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
_HONEST = (
    "every opened sum that holds a step of this client also holds the noise of at least {} other "
    "client{} that {} honest and add{} it; epsilon with fewer stands beside it"
)


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
        honest_others: where noise is shared, `epsilon` for each number of other honest members of
            every sum, from the number that `epsilon` counts on down to none; else empty.
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
    honest_others: tuple[shared.Assumed, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return plain values for a report; an infinite epsilon becomes the string `"inf"`, which
        JSON can hold. `honest_others` is left out where it is empty.
        """
        values = {k: v for k, v in asdict(self).items() if k != "honest_others"}
        if self.honest_others:
            values["honest_others"] = [
                {"others": row.others, "epsilon": "inf" if row.epsilon == math.inf else row.epsilon}
                for row in self.honest_others
            ]
        return {key: "inf" if value == math.inf else value for key, value in values.items()}


def statement(
    events: Iterable[Event], delta: float, *, prv: bool = True, unit: PrivacyUnit | None = None
) -> Statement:
    """Return what a formal statement about these events has to say.

    Where noise is shared its epsilons are those that hold while others are honest; that they have
    to be is among its assumptions, and what holds with fewer stands in `honest_others`.

    Args:
        events: everything that was released about one data set (`Ledger.events`).
        delta: from 1e-12 to below 1.
        prv: whether to cross-check with Opacus, which takes seconds to import.
        unit: what every event was charged for (`Ledger.unit`); a record if None.

    Raises:
        ConfigurationError: delta out of range, or truncated batches of units.
    """
    given = tuple(events)
    merged, honest = merge(shared.given_honest(given)), shared.counted_on(given)
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
        releases=tuple(event.to_dict() for event in shared.merged(given)),
        assumptions=(
            *_ASSUMPTIONS,
            *((_SAMPLING.format(name_of(unit)),) if sampled else ()),
            *((_PUBLIC_SIZE,) if cut else ()),
            *((condition(honest),) if honest > 1 else ()),
        ),
        honest_others=shared.table(given, delta) if honest > 1 else (),
    )


def condition(honest: int) -> str:
    """Return what has to hold of others for a claim that counts on so many members of each sum.

    >>> condition(2).split(";")[0][-41:]
    '1 other client that is honest and adds it'
    """
    others = honest - 1
    one = others == 1
    return _HONEST.format(others, *(("", "is", "s") if one else ("s", "are", "")))


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
