"""Budgets of single clients, for the whole of a job: whose they are, and what is said of them."""

import dataclasses
from collections.abc import Mapping, Sequence

from fedtree_dp import PrivacyBudget
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, suggest


def with_own(job: Job, own: Mapping[str, PrivacyBudget | None]) -> Job:
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


def check_known(job: Job, names: Sequence[str]) -> None:
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


def sentences(job: Job) -> list[str]:
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
