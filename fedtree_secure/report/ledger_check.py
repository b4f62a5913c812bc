"""All ledgers of a folder at once: chains, checkpoints, and whether each budget is kept.

Epsilon is read off the coarse grid, which only overstates; the fine one is asked where the coarse
one says that a budget is exceeded. So a folder takes a second or two, however exact the verdict.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import Event, Ledger, LedgerError, PrivacyBudget, epsilon_of, given_honest
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.account.shared import counted_on
from fedtree_dp.ledger.entries import budget_key
from fedtree_secure.errors import ConfigurationError

PLACES = ("*.sqlite", "ledgers/*.sqlite", "*/store.sqlite")
INDEX = "rows.sqlite"  # beside the stores; no ledger


@dataclass(frozen=True)
class LedgerCheck:
    """What was found of one ledger.

    Attributes:
        dataset: Its name; that of its file where it cannot be read.
        problem: What is wrong with it; empty where nothing is, and the rest is then meaningful.
        lines: Of its chain.
        epsilon: Spent, at most.
        allowed, delta: Its budget.
        key: That changes of the budget need, hexadecimal; empty while none was signed.
        own, own_allowed: The same whatever all others do, where charges count on them; else None.
    """

    dataset: str
    problem: str = ""
    lines: int = 0
    epsilon: float = 0.0
    allowed: float = 0.0
    delta: float = 0.0
    key: str = ""
    own: float | None = None
    own_allowed: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether the budget is kept."""
        own = self.own is None or self.own <= self.own_allowed
        return not self.problem and own and self.epsilon <= self.allowed


def check_ledgers(folder: Path) -> Iterator[LedgerCheck]:
    """Check every ledger of a run folder, a folder of stores, or one of ledgers.

    Raises:
        ConfigurationError: There is none.
    """
    paths = sorted({p for place in PLACES for p in folder.glob(place) if p.name != INDEX})
    if not paths:
        raise ConfigurationError(
            f"{folder} holds no ledger; name a run folder, a folder of stores, or a ledger"
        )
    for path in paths:
        try:
            yield _check(path)
        except LedgerError as error:
            name = path.parent.name if path.name == "store.sqlite" else path.stem
            yield LedgerCheck(name, str(error))


def _check(path: Path) -> LedgerCheck:
    with Ledger.inspect(path) as ledger:
        checkpoints = path.with_suffix(".checkpoints")
        if checkpoints.is_file():
            ledger.verify_kept(checkpoints)
        events, budget = ledger.events(), ledger.budget
        return LedgerCheck(
            ledger.dataset,
            lines=len(ledger.entries()),
            epsilon=_spent(given_honest(events), budget),
            allowed=budget.epsilon,
            delta=budget.delta,
            key=budget_key(ledger.entries()) or "",
            own=_spent(events, budget.alone) if counted_on(events) > 1 else None,
            own_allowed=budget.alone.epsilon,
        )


def _spent(events: tuple[Event, ...], budget: PrivacyBudget) -> float:
    epsilon = epsilon_of(events, budget.delta, discretization=PLANNING_DISCRETIZATION)
    return epsilon if epsilon <= budget.epsilon else epsilon_of(events, budget.delta)
