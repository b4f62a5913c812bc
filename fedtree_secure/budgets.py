"""Budgets of single clients: what a client of a job agrees to, where that is less than the job's.

They are part of the job, so of its digest: every party sees them, approves them and masks with
nobody who was told others. A client may promise less than the job's budget, never more, so that
the job's numbers bound all of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedtree_dp import PrivacyBudget
from fedtree_secure.checks import is_a
from fedtree_secure.errors import ConfigurationError, suggest
from fedtree_secure.names import check_name

if TYPE_CHECKING:
    from fedtree_secure.config import Job


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
        self._entries = tuple((name, given[name]) for name in sorted(given))

    def __getitem__(self, client: str) -> PrivacyBudget:
        return dict(self._entries)[client]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        return f"Budgets({dict(self._entries)!r})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a job file has them."""
        return {name: budget.to_dict() for name, budget in self._entries}


def check_budgets(job: "Job") -> None:
    """Refuse a client's budget that the job's would not bound.

    Raises:
        ConfigurationError: It is above the job's, or says nothing of `own_epsilon` where noise is
            shared.
    """
    most = job.privacy
    for name, budget in job.budgets.items():
        for what in ("epsilon", "delta"):
            given, bound = getattr(budget, what), getattr(most, what)
            if given > bound:
                raise ConfigurationError(
                    f"budgets.{name}: {what} is {given:g}; allowed: at most the job's {bound:g}, "
                    "which bounds every client's. Raise privacy of the job, and give those who "
                    "stay below it budgets of their own"
                )
        if job.noise != "shared":
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


def with_own(job: "Job", own: Mapping[str, PrivacyBudget | None]) -> "Job":
    """Return the job with clients' own budgets in it, where everybody sees them.

    Args:
        job: Of all.
        own: What each client says of itself; None for the job's.

    Raises:
        ConfigurationError: It is another than the job says, or above the job's.
    """
    said = {name: budget for name, budget in own.items() if budget is not None}
    for name, budget in said.items():
        if job.budgets.get(name, budget) != budget:
            raise ConfigurationError(
                f"client {name}: its privacy is {budget}, and budgets.{name} of the job is "
                f"{job.budgets[name]}; say one of them"
            )
    new = {name: budget for name, budget in said.items() if budget != job.privacy}
    if new.keys() <= job.budgets.keys():
        return job
    return dataclasses.replace(job, budgets={**job.budgets, **new})


def check_known(job: "Job", names: Sequence[str]) -> None:
    """Refuse a budget of nobody: a name that was mistyped would leave its client the job's.

    Args:
        job: Whose budgets.
        names: All clients of the run.

    Raises:
        ConfigurationError: See above.
    """
    for name in job.budgets:
        if name not in names:
            raise ConfigurationError(
                f"budgets names {name!r}, which is no client of this run{suggest(name, names)}"
            )


def sentences(job: "Job") -> list[str]:
    """Say who promises what, where budgets differ; nothing where all have the job's."""
    if not job.budgets:
        return []
    most = job.privacy
    shown = "; ".join(f"{name}: {_numbers(budget)}" for name, budget in job.budgets.items())
    said = [
        (
            f"Budgets differ by client, and all parties read them: {shown}; every other client: "
            f"{_numbers(most)}."
        )
    ]
    if job.noise == "own":
        said.append("Each client adds the noise of its own budget, whatever the others' are.")
    else:
        said.append(
            "In sums every member adds the part that the strictest of these budgets asks for, so "
            "that the strictest promise holds for all of them: a client that allows more spends "
            "less than it allows."
        )
    return said


def _numbers(budget: PrivacyBudget) -> str:
    own = "" if budget.own_epsilon is None else f", own_epsilon {budget.own_epsilon:g}"
    return f"epsilon {budget.epsilon:g} at delta {budget.delta:g}{own}"
