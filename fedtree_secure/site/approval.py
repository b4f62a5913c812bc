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

from fedtree_dp import (
    Event,
    Gaussian,
    Ledger,
    PoissonGaussian,
    PrivacyBudget,
    epsilon_of,
    given_honest,
)
from fedtree_dp.account.accounting import PLANNING_DISCRETIZATION
from fedtree_dp.account.shared import counted_on
from fedtree_dp.account.unit import name_of
from fedtree_secagg import Identity
from fedtree_secure.agreed.noise_plan import NoisePlan, plan_noise, stages
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.job_file import build
from fedtree_secure.key_file import verifies
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
        return Terms(self.settings(), roster.roster, roster.server_key, run)

    def _signed(self) -> bytes:
        content = msgspec.to_builtins(self)
        del content["signature"]
        return _TAG + rfc8785.dumps(content)


def planned_budget(job: Job, budget: PrivacyBudget) -> PrivacyBudget:
    """What a job may spend of a data set in all: the stricter of what it asks for and the data
    set's own, in epsilon and in delta.
    """
    return PrivacyBudget(
        epsilon=min(job.privacy.epsilon, budget.epsilon),
        delta=min(job.privacy.delta, budget.delta),
        own_epsilon=budget.own_epsilon,
    )


def planned_events(job: Job, plan: NoisePlan) -> list[Event]:
    """Everything that a job will charge at most."""
    found: list[Event] = [Gaussian(plan.fingerprint)] if plan.fingerprint else []
    for name, event in stages(job).items():
        found.append(PoissonGaussian(getattr(plan, name), event.sample_rate, event.steps))
    return found


def spent_of(ledger: Ledger, more: Sequence[Event] = ()) -> float:
    """Epsilon of a data set for people who look: a bound, on the grid of plans, which is quick."""
    events = [*ledger.events(), *more]
    if not events:
        return 0.0
    assumed = given_honest(events)  # what the budget's epsilon speaks of
    return epsilon_of(assumed, ledger.budget.delta, discretization=PLANNING_DISCRETIZATION)


def plan_for(job: Job, ledger: Ledger) -> NoisePlan:
    """Plan a job's noise within what is left of a data set.

    Raises:
        BudgetExceeded: What is left allows no useful plan.
        LedgerError: The data set's charges protect another unit than the job's would.
        ConfigurationError: The job, or an earlier one on the data set, shares noise, which
            deployments do not yet.
    """
    if job.noise == "shared":
        raise ConfigurationError(
            'noise is "shared"; in a deployment each site adds its own full noise: allowed is own'
        )
    if counted_on(ledger.events()) > 1:
        raise ConfigurationError(
            f"data set {ledger.dataset!r} was charged with noise that it shared; a deployment's "
            "report does not say yet what that assumes: use another data set"
        )
    ledger.check_unit(job.privacy_unit)
    return plan_noise(job, planned_budget(job, ledger.budget), ledger.events())


def statement_of(job: Job, roster: RosterFile, ledger: Ledger, plan: NoisePlan) -> list[str]:
    """The job's privacy statement in plain words, for the operator."""
    budget = ledger.budget
    before, after = spent_of(ledger), spent_of(ledger, planned_events(job, plan))
    masking, others = job.masking, len(roster.clients) - 1
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
        (
            f"The job asks each site for epsilon {job.privacy.epsilon:g} at delta "
            f"{job.privacy.delta:g}; the stricter of both holds here."
        ),
        (
            f"Leaves this site: updates with noise (multiplier {plan.rounds:.3f}) under masks. The "
            f"server sees sums over at least {masking.min_group} sites, while at most "
            f"{masking.colluders} sites work with it. In the open: the declared number of "
            f"{name_of(job.privacy_unit)}s, the number of labels, noise multipliers, and who took "
            "part."
        ),
        (
            "Stays at this site: rows, labels, the head, the final adapter, test results, this "
            "ledger."
        ),
    ]


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
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    given: Mapping[str, Any] = {
        "id": secrets.token_hex(8),
        "time": now,
        "site": site,
        "job": job.to_dict(),
        "roster": roster.digest,
        "statement": tuple(statement_of(job, roster, ledger, plan)),
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
