"""Writes what an officer reads and a pipeline checks: from a run's `Statement`, and nothing else.

At the end of a run: ``privacy.yaml``, ``report.html``, ``sbom.json`` and the model cards, all of
which the run's manifest then lists. Later, when audits have run: the same into ``report/``, with an
addendum to the manifest, so that audits are signed, too.
"""

from collections.abc import Mapping
from pathlib import Path

from fedtree_secagg import Identity
from fedtree_secure.report.card import NO_FACTS, Facts, card_text
from fedtree_secure.report.manifest import write_addendum
from fedtree_secure.report.model_card import write_model_card
from fedtree_secure.report.page import render
from fedtree_secure.report.sbom import bill_of_materials
from fedtree_secure.report.statement import Statement
from fedtree_secure.storage import write_atomically, write_json

CARD, PAGE, BILL = "privacy.yaml", "report.html", "sbom.json"
LATER = "report"
UNNAMED = "no-names"


def write_evidence(folder: Path) -> Statement:
    """Write everything at the end of a run, before its manifest.

    Args:
        folder: Of a run whose summary, ledgers and adapters are written.

    Raises:
        RunFolderError: Something is missing or damaged.
    """
    statement = Statement.of(folder)
    _write_pages(folder, statement, NO_FACTS)
    write_json(folder / BILL, bill_of_materials(statement.date))
    for client in statement.clients:
        write_model_card(folder / "adapters" / client.name, statement, client)
    return statement


def write_report(
    folder: Path,
    identities: Mapping[str, Identity],
    *,
    facts: Facts = NO_FACTS,
    named: bool = True,
) -> Path:
    """Write the report of a finished run anew, with its audits, and sign both.

    Args:
        folder: Of the run; the report goes to ``report/``, or ``report/no-names/``.
        identities: Of the clients whose keys are here; each signs.
        facts: What the run does not know.
        named: False leaves out the names of clients and data sets.

    Returns:
        Folder of the report.

    Raises:
        RunFolderError: The run is not finished, or a file is missing or damaged.
    """
    statement = Statement.of(folder)
    place = folder / LATER if named else folder / LATER / UNNAMED
    _write_pages(place, statement if named else statement.without_names(), facts)
    if identities:
        write_addendum(folder, identities)
    return place


def _write_pages(place: Path, statement: Statement, facts: Facts) -> None:
    for name, text in ((CARD, card_text(statement, facts)), (PAGE, render(statement))):
        data = text.encode()
        write_atomically(place / name, lambda target, data=data: target.write_bytes(data))  # type: ignore[misc]
