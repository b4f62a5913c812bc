"""How an embedded run is set up: stores opened, noise planned, keys read, parties made.

Nothing is charged here. What is refused here leaves no trace in the run folder.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import BudgetExceeded, Ledger
from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed.head_groups import HeadGroup, head_groups
from fedtree_secure.agreed.noise_plan import NoisePlan, part_of, plan_noise
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.client.data import Client, texts_of
from fedtree_secure.client.data_sets import DataSets
from fedtree_secure.client.pacing import Pace
from fedtree_secure.client.participant import Participant
from fedtree_secure.client.party import Member, Workings
from fedtree_secure.client.state import initial_state
from fedtree_secure.client.store import Store
from fedtree_secure.config import Job
from fedtree_secure.embedded.folder import key_of, record_roster, server_key
from fedtree_secure.embedded.shared import Shared
from fedtree_secure.embedded.watching import Watch
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import ClientData
from fedtree_secure.storage import SecretBox, write_json


@dataclass(frozen=True)
class Parties:
    """Everything of the clients' side that a run needs, by client id."""

    participants: dict[str, Participant]
    ledgers: dict[str, Ledger]
    identities: dict[str, Identity]
    terms: Terms


@dataclass(frozen=True)
class Setting:
    """What the parts of a run have in common."""

    job: Job
    clients: Sequence[Client]
    folder: Path
    run: str
    data_sets: DataSets
    backbone: Backbone
    shared: Shared
    watch: Watch

    def place_of(self, client: str) -> Path:
        """The folder of a client in the run folder."""
        return self.folder / "clients" / client


def groups_of_heads(job: Job, data: Mapping[str, ClientData]) -> tuple[HeadGroup, ...]:
    """Say who shares a head: nobody whose label set was read from its rows.

    Raises:
        ConfigurationError: See `head_groups`.
    """
    if job.head != "group":
        return ()
    declared = {
        name: [str(label) for label in found.label_set]
        for name, found in data.items()
        if found.labels_declared
    }
    return head_groups(declared, job.masking.min_group)


def open_parties(
    stack: contextlib.ExitStack, setting: Setting, data: Mapping[str, ClientData]
) -> Parties:
    """Open all stores and plan all noise before anything is charged, then make the participants."""
    job, box = setting.job, SecretBox.from_environment()
    heads = groups_of_heads(job, data)
    texts = {client.id: texts_of(client) for client in setting.clients}
    ledgers = {
        client.id: stack.enter_context(
            setting.data_sets.opened(
                client.dataset or client.id, job.budget_of(client.id), texts[client.id]
            )
        )
        for client in setting.clients
    }
    for ledger in ledgers.values():  # all of them, before one is written
        ledger.check_unit(job.privacy_unit)
    for ledger in ledgers.values():
        ledger.use_unit(job.privacy_unit)
    plans = {c.id: _noise_plan(setting, c, ledgers[c.id]) for c in setting.clients}
    identities = {c.id: key_of(setting.place_of(c.id), box) for c in setting.clients}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    server = server_key(setting.folder, job, box)
    record_roster(setting.folder, roster, server.public_bytes)
    noise = _shared_noise(job, plans)
    terms = Terms(job, roster, server.public_bytes, setting.run, heads, noise)
    pace = Pace(job.pacing.minimum, job.pacing.interval) if job.pacing.interval else None
    participants = {}
    for client in setting.clients:
        member = Member(client, data[client.id], identities[client.id], plans[client.id])
        initial = initial_state(setting.backbone, len(member.data.label_set))
        participants[client.id] = Participant(
            terms,
            member,
            setting.backbone,
            Store(ledgers[client.id], setting.run, box, initial),
            workings=Workings(
                tick=lambda _client, _stage: setting.watch.step(),
                place=setting.place_of(client.id),
            ),
            cache=setting.shared.cache_of(client.id, job.privacy_unit),
            pace=pace,
        )
        stack.callback(participants[client.id].close)
    return Parties(participants, ledgers, identities, terms)


def _shared_noise(job: Job, plans: Mapping[str, NoisePlan]) -> float | None:
    """What each member of a sum adds, where noise is shared; all clients planned the same."""
    if job.noise != "shared":
        return None
    (together,) = {plan.rounds for plan in plans.values()}
    return part_of(job, together)


def _planned(job: Job, client: Client, ledger: Ledger) -> NoisePlan:
    """Plan with what the ledger leaves; say whose ledger it is where that is too little, and what
    it holds, without what was only planned.
    """
    agreed = job.budget_of(client.id)
    try:
        return plan_noise(job, agreed, ledger.events(), agreed=agreed)
    except BudgetExceeded as error:
        spent, budget = ledger.spent(), ledger.budget
        raise BudgetExceeded(
            f"client {client.id}: data set {ledger.dataset!r} ({ledger.path}): epsilon "
            f"{spent:.4f} of {budget.epsilon:g} is spent at delta {budget.delta:g}"
            f"{_own(ledger)}, and what is left is too little for this job. Raise the budget on "
            "purpose (fedtree-secure ledger set-budget), or stop here",
            spent=spent,
            requested_total=error.requested_total,
            allowed=error.allowed,
        ) from None


def _own(ledger: Ledger) -> str:
    """What holds whatever others do, where the budget says something of it."""
    budget = ledger.budget
    if budget.own_epsilon is None:
        return ""
    return f" (by its own noise alone {ledger.own_spent():.4f} of {budget.own_epsilon:g})"


def _noise_plan(setting: Setting, client: Client, ledger: Ledger) -> NoisePlan:
    """The client's plan: made once before anything is charged, kept in its store, never changed."""
    stored = ledger.get(setting.run, "plan")
    if stored is None:
        plan = _planned(setting.job, client, ledger)
        with ledger.transaction() as transaction:
            transaction.put(setting.run, "plan", plan.to_bytes())
    else:
        plan = NoisePlan.from_bytes(stored)
    write_json(setting.place_of(client.id) / "noise.json", dataclasses.asdict(plan))
    return plan
