"""What one client may spend: epsilon at a delta, for one data set, over all jobs.

Unit of protection: one record of one client, or one `PrivacyUnit`; neighbouring data sets differ by
one of them added or removed. A budget is a number that is compared with; it never spends itself
(see `fedtree_dp.ledger.ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtree_dp import checks
from fedtree_dp.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class PrivacyBudget:
    """An (epsilon, delta) allowance: add-or-remove-one-record differential privacy of everything
    that is released.

    Attributes:
        epsilon: finite and above 0, in nats. Where noise is shared with other clients it holds
            while as many of them as each charge counts on are honest.
        delta: above 0 and below 1; meaningful only below one over the number of records
            (`check_records`).
        own_epsilon: what may be spent whatever all others do, by the client's own noise alone; at
            least `epsilon`. None: the same as `epsilon`, so that nothing may count on others.

    Raises:
        ConfigurationError: a value outside these ranges.

    >>> PrivacyBudget(epsilon=8, delta=1e-5)
    PrivacyBudget(epsilon=8.0, delta=1e-05)
    """

    epsilon: float
    delta: float
    own_epsilon: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", checks.real("epsilon", self.epsilon, above=0.0))
        object.__setattr__(self, "delta", checks.real("delta", self.delta, above=0.0, below=1.0))
        if self.own_epsilon is not None:
            own = checks.real("own_epsilon", self.own_epsilon, at_least=self.epsilon)
            object.__setattr__(self, "own_epsilon", own)

    def __repr__(self) -> str:
        own = "" if self.own_epsilon is None else f", own_epsilon={self.own_epsilon}"
        return f"PrivacyBudget(epsilon={self.epsilon}, delta={self.delta}{own})"

    @property
    def alone(self) -> PrivacyBudget:
        """What may be spent by own noise alone, as a budget."""
        own = self.epsilon if self.own_epsilon is None else self.own_epsilon
        return PrivacyBudget(epsilon=own, delta=self.delta)

    def check_records(self, records: int) -> None:
        """Refuse a delta under which publishing one whole record at random would count as private.

        Args:
            records: number of records of the client (or its public, declared number); of units,
                where a unit of several records is protected.

        Raises:
            ConfigurationError: delta is at least `1 / records`, or `records` is no whole number of
                at least 1.
        """
        size = checks.count("records", records)
        if self.delta * size >= 1.0:
            raise ConfigurationError(
                f"delta {self.delta:g} is not below 1/{size} = {1 / size:.3g} for {size} records: "
                "a mechanism that "
                f"publishes one record in full would satisfy it. Use at most {0.1 / size:.1g}, or "
                "more records"
            )

    def to_dict(self) -> dict[str, float]:
        """Return `{"epsilon": ..., "delta": ...}`, and `own_epsilon` where it is given."""
        own = {} if self.own_epsilon is None else {"own_epsilon": self.own_epsilon}
        return {"epsilon": self.epsilon, "delta": self.delta, **own}
