"""What a finished run leaves at a site: the adapter, the site's own report, and evidence of both.
Private to the site.
"""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtree_dp import Ledger, statement
from fedtree_dp.account.shared import merged
from fedtree_secure.agreed.graph_facts import graphs_of
from fedtree_secure.client.adapter import save_adapter
from fedtree_secure.client.costs import outcome_of, own_noise_report
from fedtree_secure.client.participant import Participant
from fedtree_secure.report.head_release import release_report
from fedtree_secure.report.layers import layers_of
from fedtree_secure.report.party_folder import PartyRun, write_party_folder
from fedtree_secure.report.summary import guarantee
from fedtree_secure.roster_file import RosterFile
from fedtree_secure.site.approval import Approval
from fedtree_secure.storage import PRIVATE_FILE, write_json


def head_sharers(participant: Participant) -> tuple[str, ...]:
    """Members of the group that shares this site's head, itself among them; empty if none does."""
    groups = participant.party.terms.heads
    return next((group.members for group in groups if participant.id in group.members), ())


def deliver_run(
    place: Path,
    participant: Participant,
    approval: Approval,
    roster: RosterFile,
    ledger: Ledger,
) -> None:
    """Evaluate at home, save the adapter, and write report, evidence and their manifest, which is
    signed and last.

    Args:
        place: The run's folder at this site, 0700.
        participant: Of the finished run.
        approval: What the operator signed for it.
        roster: The roster that it was pinned to.
        ledger: Of the site's data set.
    """
    party = participant.party
    job, data, client = party.terms.job, party.member.data, party.member.client
    with participant.at_backbone():
        metric = party.backbone.evaluate(data)
        outcome = outcome_of(ledger, metric)
        save_adapter(party.backbone, place / "adapter", data.label_set, outcome)
    said = statement(ledger.events(), ledger.budget.delta, prv=False, unit=ledger.unit)
    dataset = client.dataset or client.id
    found: dict[str, Any] = {
        "dataset": dataset,
        "epsilon_spent": outcome.epsilon,
        "epsilon_allowed": ledger.budget.epsilon,
        "epsilon_promised": job.budget_of(client.id).epsilon,
        "delta": ledger.budget.delta,
        "events": [event.to_dict() for event in merged(ledger.events())],
        "statement": said.to_dict(),
        "metric": metric,
        "majority": data.majority,
        "labels": list(data.label_set),
        "labels_declared": data.labels_declared,
        **own_noise_report(ledger),
    }
    masks = graphs_of(party.terms, party.facts, party.tree(), party.store.record.beacons)
    shared = {
        "job": job.to_dict(),
        "guarantee": guarantee(job, {client.id: found}, masks),
        "model_sha256": party.backbone.digest.hex(),
    }
    report = {
        "format": 1,
        "site": participant.id,
        "run": party.terms.run,
        "roster": roster.digest,
        "approval": approval.id,
        **shared,
        **found,
        "head_shared_with": list(head_sharers(participant)),
        "record": party.store.record.public(),
    }
    write_json(place / "report.json", report, PRIVATE_FILE)
    _keep_evidence(place, participant, approval, ledger)
    summary = {
        **shared,
        "clients": {client.id: found},
        "layers": layers_of(party.tree(), party.facts.layer_names),
        "heads": [list(group.members) for group in party.terms.heads],
        **release_report(party.job),
    }
    own = {"dataset": dataset, "records": client.records}
    given = PartyRun(participant.id, party.terms.run, job, roster, party.member.identity, own)
    write_party_folder(place, given, summary)


def _keep_evidence(
    place: Path, participant: Participant, approval: Approval, ledger: Ledger
) -> None:
    """What auditors compare: the noise that was planned, the journal, the ledger and its head."""
    party = participant.party
    own = place / "clients" / participant.id
    write_json(own / "noise.json", dataclasses.asdict(party.member.noise_plan), PRIVATE_FILE)
    write_json(own / "journal.json", party.store.record.public(), PRIVATE_FILE)
    write_json(place / "approval.json", msgspec.to_builtins(approval), PRIVATE_FILE)
    client = party.member.client
    copy = place / "ledgers" / f"{client.dataset or client.id}.sqlite"
    copy.parent.mkdir(exist_ok=True)
    ledger.snapshot(copy)
    secret = party.member.identity.to_private_bytes()
    key = Ed25519PrivateKey.from_private_bytes(secret)
    ledger.keep_checkpoint(copy.with_suffix(".checkpoints"), key)
