"""Whether a client was kept what its job promised it: the epsilon that all parties agreed on.

A data set's own budget is another number: it may allow more than this job may take.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedtree_dp import Event, PrivacyBudget, epsilon_of, given_honest
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION, merge
from fedtree_dp.account.shared import counted_on
from fedtree_dp.ledger.entries import Entry


def agreed_in(job: Mapping[str, Any], client: str) -> PrivacyBudget:
    """Return what the job of a run folder promises a client.

    Args:
        job: Settings as plain values.
        client: Its id.

    Raises:
        KeyError, TypeError, ConfigurationError: The settings hold no budget.
    """
    given = job.get("budgets", {}).get(client, job["privacy"])
    return PrivacyBudget(**given)


def until_last_charge(entries: Sequence[Entry], run: str) -> tuple[Event, ...]:
    """Return everything that was charged to a data set until a run's own last charge.

    Later jobs may spend more by promises of their own.
    """
    charged = [entry for entry in entries if entry.event is not None]
    own = [at for at, entry in enumerate(charged) if entry.job == run]
    until = charged[: own[-1] + 1] if own else []
    return tuple(entry.event for entry in until if entry.event is not None)


def broken(agreed: PrivacyBudget, charged: tuple[Event, ...]) -> Iterator[str]:
    """Say how charges are above what was agreed.

    Args:
        agreed: See `agreed_in`.
        charged: See `until_last_charge`.
    """
    bounds = [("epsilon", merge(given_honest(charged)), agreed.epsilon)]
    if counted_on(charged) > 1:
        bounds.append(("epsilon by its own noise alone", merge(charged), agreed.alone.epsilon))
    for what, events, allowed in bounds:
        if not within(events, agreed.delta, allowed):
            reached = epsilon_of(events, agreed.delta)
            yield (
                f"{what} is {reached:.4f} at delta {agreed.delta:g}, above {allowed:g}, which the "
                "job promises this client"
            )


def within(events: tuple[Event, ...], delta: float, allowed: float) -> bool:
    """The coarse grid only overstates, so that it may accept; only the fine one may refuse."""
    return spent(events, delta) <= allowed or epsilon_of(events, delta) <= allowed


@functools.lru_cache(maxsize=256)
def spent(events: tuple[Event, ...], delta: float) -> float:
    """Epsilon off the coarse grid, never below the true one; clients often hold equal events."""
    return epsilon_of(events, delta, discretization=PLANNING_DISCRETIZATION)
