"""How much each job cost, read from a ledger's lines; a report, never a decision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedtree_dp.account.accounting import epsilon_of
from fedtree_dp.account.shared import given_honest
from fedtree_dp.ledger.entries import Entry


@dataclass(frozen=True, slots=True)
class Reading:
    """What one job cost.

    Attributes:
        job: its name.
        events: number of its charges.
        epsilon: of its events alone, at the budget's delta; of shared noise while others are
            honest, as `Ledger.spent`.
        total: of everything charged up to its last charge; epsilons of jobs do not add up to it.
    """

    job: str
    events: int
    epsilon: float
    total: float


def readings(entries: Iterable[Entry], delta: float) -> tuple[Reading, ...]:
    """Return one reading for each job, in the order of their first charges.

    Raises:
        ConfigurationError: delta outside 1e-12 to 1.
    """
    charges = [
        (entry.job, given_honest([entry.event])[0])
        for entry in entries
        if entry.job is not None and entry.event is not None
    ]
    found = []
    for job in dict.fromkeys(name for name, _ in charges):
        last = max(index for index, (name, _) in enumerate(charges) if name == job)
        own = [event for name, event in charges if name == job]
        total = epsilon_of((event for _, event in charges[: last + 1]), delta)
        found.append(Reading(job=job, events=len(own), epsilon=epsilon_of(own, delta), total=total))
    return tuple(found)
