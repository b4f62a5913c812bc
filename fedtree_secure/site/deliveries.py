"""What a finished run leaves at a site: the adapter, and the site's own report. Private to it."""

from pathlib import Path
from typing import Any

from fedtree_dp import Ledger, statement
from fedtree_dp.account.shared import merged
from fedtree_secure.agreed.graph_facts import graphs_of
from fedtree_secure.client.adapter import Outcome, save_adapter
from fedtree_secure.client.participant import Participant
from fedtree_secure.report.summary import guarantee
from fedtree_secure.roster_file import RosterFile
from fedtree_secure.site.approval import Approval
from fedtree_secure.storage import PRIVATE_FILE, write_json


def deliver_run(
    place: Path,
    participant: Participant,
    approval: Approval,
    roster: RosterFile,
    ledger: Ledger,
) -> None:
    """Evaluate at home, save the adapter, and write ``report.json`` last.

    Args:
        place: The run's folder at this site, 0700.
        participant: Of the finished run.
        approval: What the operator signed for it.
        roster: The roster that it was pinned to.
        ledger: Of the site's data set.
    """
    party = participant.party
    data, client = party.member.data, party.member.client
    with participant.at_backbone():
        metric = party.backbone.evaluate(data)
        said = statement(ledger.events(), ledger.budget.delta, prv=False, unit=ledger.unit)
        outcome = Outcome(said.epsilon, ledger.budget.delta, metric)
        save_adapter(party.backbone, place / "adapter", data.label_set, outcome)
    report: dict[str, Any] = {
        "format": 1,
        "site": participant.id,
        "run": party.terms.run,
        "roster": roster.digest,
        "approval": approval.id,
        "job": party.terms.job.to_dict(),
        "guarantee": guarantee(
            party.terms.job,
            {client.id: {"labels_declared": data.labels_declared}},
            graphs_of(party.terms, party.facts, party.tree(), party.store.record.beacons),
        ),
        "dataset": client.dataset or client.id,
        "epsilon_spent": said.epsilon,
        "epsilon_allowed": ledger.budget.epsilon,
        "delta": ledger.budget.delta,
        "events": [event.to_dict() for event in merged(ledger.events())],
        "statement": said.to_dict(),
        "metric": metric,
        "majority": data.majority,
        "labels": list(data.label_set),
        "labels_declared": data.labels_declared,
        "record": party.store.record.public(),
        "model_sha256": party.backbone.digest.hex(),
    }
    ledger.snapshot(place / "ledger.sqlite")
    write_json(place / "report.json", report, PRIVATE_FILE)
