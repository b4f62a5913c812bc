"""`fedtree-secure ledger`: read, check and adopt the ledgers of data sets."""

from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts
from rich.table import Table

from fedtree_secure.cli.screen import console

if TYPE_CHECKING:
    from fedtree_dp.ledger.entries import Entry

ledger_app = cyclopts.App(name="ledger", help="Read and check privacy ledgers.")


@ledger_app.command
def adopt(path: Path, *, dataset: str, state: Path | None = None) -> int:
    """Move a ledger of an earlier version into its data set's store, with all that was spent.

    Parameters
    ----------
    path
        The ledger, as `ledgers/NAME.sqlite` beside an earlier run.
    dataset
        Name of the data set.
    state
        Folder of the stores, as for `run`.
    """
    from fedtree_secure.client.data_sets import DataSets

    place = DataSets.of_user(state).adopt(path, dataset)
    console.print(f"The store of {dataset} is {place}", highlight=False, markup=False)
    return 0


@ledger_app.command
def show(path: Path) -> int:
    """List a ledger's entries and what is spent."""
    from fedtree_dp import Ledger

    with Ledger.inspect(path) as ledger:
        table = Table(title=f"data set {ledger.dataset}", title_justify="left")
        for title in ("#", "time", "job", "purpose", "mechanism"):
            table.add_column(title)
        for entry in ledger.entries():
            table.add_row(
                str(entry.sequence),
                entry.time,
                entry.job or "",
                entry.purpose or entry.kind,
                _what(entry),
            )
        console.print(table)
        console.print(
            f"ε {ledger.spent():.4f} of {ledger.budget.epsilon:g} spent at δ = "
            f"{ledger.budget.delta:g}"
        )
    return 0


def _what(entry: "Entry") -> str:
    """The mechanism of a charge, or the budget that an entry puts into force."""
    if entry.event is not None:
        return ", ".join(f"{name} {value}" for name, value in entry.event.to_dict().items())
    if entry.budget is not None:
        return f"budget ε {entry.budget.epsilon:g}, δ {entry.budget.delta:g}"
    return ""


@ledger_app.command
def verify(path: Path) -> int:
    """Check a ledger's hash chain and recompute epsilon with three accountants."""
    from fedtree_dp import Ledger, epsilon_of

    with Ledger.inspect(path) as ledger:
        ledger.verify()
        delta, events = ledger.budget.delta, ledger.events()
        found = {name: epsilon_of(events, delta, accountant=name) for name in ("pld", "prv", "rdp")}
        console.print(
            f"[green]chain of {len(ledger.entries())} entries holds[/green]; data set "
            f"{ledger.dataset}"
        )
        values = ", ".join(f"ε by {name.upper()} {value:.4f}" for name, value in found.items())
        console.print(f"{values} at δ = {delta:g}")
        within = found["pld"] <= ledger.budget.epsilon
        verdict = "[green]kept[/green]" if within else "[red]EXCEEDED[/red]"
        console.print(f"budget ε {ledger.budget.epsilon:g}: {verdict}")
    return 0 if within else 1
