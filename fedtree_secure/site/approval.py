"""An operator's approval of a job: what it costs in plain words, signed with the site's key.

Nothing runs that was not approved. An approval is for one run: the first run of its job that asks
the site to join takes it, and this is written into the data set's store, where no restored backup
forgets it. Another run of the same job needs another approval.
"""

import datetime
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import rfc8785

from fedtree_dp import Event, Ledger, PrivacyBudget, epsilon_of, given_honest
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.account.shared import counted_on
from fedtree_dp.account.statements import condition
from fedtree_dp.account.unit import name_of
from fedtree_secagg import Identity
from fedtree_secure.agreed.head_release import head_release
from fedtree_secure.agreed.noise_plan import NoisePlan, events_of, plan_noise, shared_part
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.config import Job
from fedtree_secure.job_budgets import check_known, sentences
from fedtree_secure.job_file import build
from fedtree_secure.key_file import verifies
from fedtree_secure.report.head_release import LEAVES
from fedtree_secure.roster_file import RosterFile
from fedtree_secure.storage import write_json

log = logging.getLogger("fedtree_secure.site")
_TAG = b"fedtree-secure/approval/v1\n"
FORMAT = 1
APPROVED = "site/approved"  # in the store, beside the runs; no name of a run holds a slash


@dataclass(frozen=True)
class Approval:
    """A signed approval.

    Attributes:
        id: Random, 16 hexadecimal digits.
        time: When it was given, UTC.
        site: Whose it is.
        job: The job's public settings.
        roster: Digest of the roster.
        statement: What the operator was shown.
        plan: The noise that was planned for it, by stage.
        charges: How many charges the store held then; with more, the noise is planned anew.
        signature: Of the site's key over everything else, in hexadecimal.
    """

    id: str
    time: str
    site: str
    job: dict[str, Any]
    roster: str
    statement: tuple[str, ...]
    plan: NoisePlan
    charges: int
    signature: str = ""
    format: int = FORMAT

    def settings(self) -> Job:
        """The job."""
        return build(Job, self.job, "")

    def terms(self, roster: RosterFile, run: str) -> Terms:
        """What a run of this job is pinned to."""
        return roster.terms(self.settings(), run)

    def _signed(self) -> bytes:
        content = msgspec.to_builtins(self)
        del content["signature"]
        return _TAG + rfc8785.dumps(content)


def planned_budget(site: str, job: Job, budget: PrivacyBudget) -> PrivacyBudget:
    """What a job may spend of a site's data set in all: the stricter of what it says of the site
    and the data set's own, in epsilon, own epsilon and delta.
    """
    agreed, own = job.budget_of(site), budget.own_epsilon
    if agreed.own_epsilon is not None:
        own = min(agreed.own_epsilon, budget.alone.epsilon)
    return PrivacyBudget(
        epsilon=min(agreed.epsilon, budget.epsilon),
        delta=min(agreed.delta, budget.delta),
        own_epsilon=own,
    )


def spent_of(ledger: Ledger, more: Sequence[Event] = ()) -> float:
    """Epsilon of a data set for people who look: a bound, on the grid of plans, which is quick."""
    return _quick(given_honest([*ledger.events(), *more]), ledger)  # what the budget speaks of


def own_spent_of(ledger: Ledger, more: Sequence[Event] = ()) -> float:
    """The same of what holds whatever all others do."""
    return _quick([*ledger.events(), *more], ledger)


def _quick(events: Sequence[Event], ledger: Ledger) -> float:
    if not events:
        return 0.0
    return epsilon_of(events, ledger.budget.delta, discretization=PLANNING_DISCRETIZATION)


def plan_for(site: str, job: Job, ledger: Ledger) -> NoisePlan:
    """Plan a job's noise within what is left of a site's data set.

    Raises:
        BudgetExceeded: What is left allows no useful plan.
        LedgerError: The data set's charges protect another unit than the job's would.
    """
    ledger.check_unit(job.privacy_unit)
    budget = planned_budget(site, job, ledger.budget)
    return plan_noise(job, budget, ledger.events(), agreed=job.budget_of(site))


def statement_of(
    site: str, job: Job, roster: RosterFile, ledger: Ledger, plan: NoisePlan
) -> list[str]:
    """The job's privacy statement in plain words, for the operator of a site."""
    budget, others = ledger.budget, len(roster.clients) - 1
    before, after = spent_of(ledger), spent_of(ledger, events_of(job, plan))
    tree = {"one_group": "all sites in one group", "none": "no groups: nothing is shared"}.get(
        job.topology.source, f"found privately from the data ({job.topology.source})"
    )
    return [
        (
            f"Federation {roster.name}, version {roster.version} of its roster: this site and "
            f"{others} others ({', '.join(roster.clients)})."
        ),
        f"The server that may ask for work has the key {roster.server}.",
        f"Task: {job.task} with the model {job.backbone!r}, {job.rounds} rounds; tree: {tree}.",
        _protected(job),
        (
            f"Budget of the data set {ledger.dataset!r}: epsilon {budget.epsilon:g} at delta "
            f"{budget.delta:g}. Spent so far: {before:.3f}. After this job: at most {after:.3f}."
        ),
        *_counting_on(job, ledger, plan),
        _asked(site, job),
        *sentences(job),
        *_leaves(site, job, roster, plan),
    ]


def _asked(site: str, job: Job) -> str:
    """What the job says of this site."""
    agreed = job.budget_of(site)
    whom = "this site" if site in job.budgets else "each site"
    return (
        f"The job asks {whom} for epsilon {agreed.epsilon:g} at delta {agreed.delta:g}; the "
        "stricter of both holds here."
    )


def _counting_on(job: Job, ledger: Ledger, plan: NoisePlan) -> list[str]:
    """What epsilon assumes of other sites, where noise is shared or was."""
    events = events_of(job, plan)
    honest = counted_on([*ledger.events(), *events])
    if honest == 1:
        return []
    return [
        (
            f"That epsilon counts on other sites. It assumes: {condition(honest)}. Whatever all "
            f"others do, this site's own noise keeps {own_spent_of(ledger, events):.3f}; allowed "
            f"is {ledger.budget.alone.epsilon:g}."
        )
    ]


def _leaves(site: str, job: Job, roster: RosterFile, plan: NoisePlan) -> list[str]:
    """What leaves the site, and what stays."""
    masking, part = job.masking, shared_part(job)
    groups = roster.head_groups(masking.min_group) if job.head == "group" else ()
    shared = next((group.members for group in groups if site in group.members), ())
    noise = f"multiplier {plan.rounds:.3f}"
    if part is not None:
        noise = f"this site's part has the multiplier {part:.3f}, all counted on {plan.rounds:.3f}"
    labels = roster.clients[site].labels
    said = [
        (
            f"Leaves this site: updates with noise ({noise}) under masks. The "
            f"server sees sums over at least {masking.min_group} sites, while at most "
            f"{masking.colluders} sites work with it. In the open: the declared number of "
            f"{name_of(job.privacy_unit)}s, the number of labels, noise multipliers, and who took "
            "part."
        )
    ]
    if labels:
        said.append(f"On this site's card, which all read: its labels {', '.join(labels)}.")
    if shared:
        said.append(
            f"The head leaves this site in the same way: {', '.join(shared)} declare the same "
            f"labels and share one{_made(job)}."
        )
    said.append(
        f"Stays at this site: rows, labels of rows,{'' if shared else ' the head,'} the final "
        "adapter, test results, this ledger."
    )
    return said


def _made(job: Job) -> str:
    """How a shared head is made, where it is not trained at home first."""
    found = head_release(job)
    return "" if found.way != "class_sums" else f": {LEAVES[found.way]}, because {found.why}"


def _protected(job: Job) -> str:
    unit = job.privacy_unit
    if unit is None:
        return (
            "Protected: each single row of this site's training data, whatever else is known "
            "(differential privacy; neighbours differ by one row)."
        )
    return (
        f"Protected: each {unit.name} of this site's training data with all its rows, of which at "
        f"most {unit.at_most} are used, whatever else is known (differential privacy; neighbours: "
        f"{unit.neighbours})."
    )


def approve(
    site: str, identity: Identity, job: Job, roster: RosterFile, ledger: Ledger, plan: NoisePlan
) -> Approval:
    """Return a signed approval of one run, with the statement in it.

    Args:
        site: Its name.
        identity: Its key.
        job: What is approved.
        roster: With whom.
        ledger: Of its data set.
        plan: The job's noise, see `plan_for`.

    Raises:
        ConfigurationError: The job has a budget of a site that the roster does not name.
    """
    check_known(job, list(roster.clients))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    given: Mapping[str, Any] = {
        "id": secrets.token_hex(8),
        "time": now,
        "site": site,
        "job": job.to_dict(),
        "roster": roster.digest,
        "statement": tuple(statement_of(site, job, roster, ledger, plan)),
        "plan": plan,
        "charges": len(ledger.events()),
    }
    return Approval(**given, signature=identity.sign(Approval(**given)._signed()).hex())


def keep_approval(folder: Path, approval: Approval) -> Path:
    """Write an approval where the site looks for it."""
    path = folder / f"{approval.id}.json"
    write_json(path, msgspec.to_builtins(approval))
    return path


def read_approvals(folder: Path, identity: Identity) -> dict[str, Approval]:
    """Return the approvals of a folder that this key signed, by id.

    What is damaged, changed, or signed by another key approves nothing and is named in the log; so
    a rotated key takes all older approvals with it.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            given = msgspec.json.decode(path.read_bytes(), type=Approval)
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the approval %s is damaged and approves nothing: %s", path, error)
            continue
        key = identity.public_bytes.hex()
        if given.format != FORMAT or not verifies(key, given.signature, given._signed()):
            log.warning("the approval %s is not signed by this key and approves nothing", path)
            continue
        found[given.id] = given
    return found
