"""Budgets of single clients: what a client of a job agrees to, where that is less than the job's.

They are part of the job, so of its digest: every party sees them, approves them and masks with
nobody who was told others. A client may promise less than the job's budget, never more, so that
the job's numbers bound all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fedtree_dp import PrivacyBudget
from fedtree_secure.checks import is_a
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.names import check_name


class Budgets(Mapping[str, PrivacyBudget]):
    """Budgets by client id: sorted, never changed, and hashable as all of a job is.

    Args:
        given: See above.

    Raises:
        ConfigurationError: No table, no client's name, or no budget.

    >>> Budgets({"b": PrivacyBudget(3, 1e-5)})
    Budgets({'b': PrivacyBudget(epsilon=3.0, delta=1e-05)})
    """

    def __init__(self, given: Mapping[str, PrivacyBudget]) -> None:
        if not isinstance(given, Mapping):
            raise ConfigurationError(
                f"budgets is {given!r}; allowed: a table of clients' budgets, such as "
                "clinic = {epsilon = 3, delta = 1e-5}"
            )
        for name, budget in given.items():
            check_name("a client in budgets", name)
            is_a(PrivacyBudget, f"budgets.{name}", budget)
        self._entries = {name: given[name] for name in sorted(given)}

    def __getitem__(self, client: str) -> PrivacyBudget:
        return self._entries[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return f"Budgets({self._entries!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a job file has them."""
        return {name: budget.to_dict() for name, budget in self._entries.items()}


def check_budgets(budgets: Budgets, most: PrivacyBudget, *, shared: bool) -> None:
    """Refuse a client's budget that the job's would not bound.

    Args:
        budgets: Of clients.
        most: The job's.
        shared: Whether noise is shared.

    Raises:
        ConfigurationError: It is above the job's, or says nothing of `own_epsilon` where noise is
            shared.
    """
    for name, budget in budgets.items():
        for what in ("epsilon", "delta"):
            given, bound = getattr(budget, what), getattr(most, what)
            if given > bound:
                raise ConfigurationError(
                    f"budgets.{name}: {what} is {given:g}; allowed: at most the job's {bound:g}, "
                    "which bounds every client's. Raise privacy of the job, and give those who "
                    "stay below it budgets of their own"
                )
        if not shared:
            continue
        if budget.own_epsilon is None:
            raise ConfigurationError(
                f'budgets.{name}: own_epsilon is not given; with noise = "shared" say which '
                "epsilon this client's own noise must keep whatever all others do"
            )
        if budget.own_epsilon > most.alone.epsilon:
            raise ConfigurationError(
                f"budgets.{name}: own_epsilon is {budget.own_epsilon:g}; allowed: at most the "
                f"job's {most.alone.epsilon:g}"
            )
