"""What a data set's ledger says of a finished run: for the adapter and for a report."""

from typing import Any

from fedtree_dp import Ledger
from fedtree_dp.account.shared import counted_on
from fedtree_dp.account.statements import condition
from fedtree_secure.client.adapter import Outcome


def own_noise_report(ledger: Ledger) -> dict[str, Any]:
    """What holds whatever others do, where a ledger counts on them; nothing where it does not."""
    if counted_on(ledger.events()) == 1:
        return {}
    return {
        "own_epsilon_spent": ledger.own_spent(),
        "own_epsilon_allowed": ledger.budget.alone.epsilon,
    }


def outcome_of(ledger: Ledger, metric: dict[str, Any] | None) -> Outcome:
    """What a delivered adapter says of its cost."""
    spent, delta, honest = ledger.spent(), ledger.budget.delta, counted_on(ledger.events())
    if honest == 1:
        return Outcome(spent, delta, metric)
    return Outcome(spent, delta, metric, ledger.own_spent(), condition(honest))
