"""`fedtree-secure ledger`: read, check and adopt ledgers of data sets, and set their budgets."""

from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts
from rich.markup import escape
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
    from fedtree_dp.account.shared import counted_on
    from fedtree_dp.account.statements import condition

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
        if (honest := counted_on(ledger.events())) > 1:
            console.print(
                f"while {condition(honest)}; whatever they do: ε {ledger.own_spent():.4f} of "
                f"{ledger.budget.alone.epsilon:g}"
            )
    return 0


def _what(entry: "Entry") -> str:
    """The mechanism of a charge, the budget that an entry puts into force, or the unit."""
    if entry.event is not None:
        return ", ".join(f"{name} {value}" for name, value in entry.event.to_dict().items())
    if entry.budget is not None:
        signed = f", signed by {entry.key[:16]}..." if entry.key else ""
        why = f" ({entry.reason})" if entry.reason else ""
        own = entry.budget.own_epsilon
        alone = "" if own is None else f", own ε {own:g}"
        return f"budget ε {entry.budget.epsilon:g}, δ {entry.budget.delta:g}{alone}{why}{signed}"
    if entry.unit is not None:
        return f"all charges protect {entry.unit.text}"
    return ""


@ledger_app.command
def verify(path: Path) -> int:
    """Check a ledger, or all ledgers of a folder: hash chains, checkpoints, epsilon and budgets.

    A single ledger: epsilon by three accountants; exit code 1 where the budget is exceeded. A
    folder: an upper bound of each epsilon, at once; exit code 10 where a budget is exceeded, 12
    where a ledger is changed or damaged.

    Parameters
    ----------
    path
        A ledger; or a run folder, a folder of stores, or one of ledgers.
    """
    if path.is_dir():
        return _verify_folder(path)
    from fedtree_dp import Ledger, epsilon_of, given_honest

    with Ledger.inspect(path) as ledger:
        ledger.verify()
        delta, charged, alone = ledger.budget.delta, ledger.events(), ledger.budget.alone
        events = given_honest(charged)
        found = {name: epsilon_of(events, delta, accountant=name) for name in ("pld", "prv", "rdp")}
        console.print(
            f"[green]chain of {len(ledger.entries())} entries holds[/green]; data set "
            f"{ledger.dataset}"
        )
        values = ", ".join(f"ε by {name.upper()} {value:.4f}" for name, value in found.items())
        console.print(f"{values} at δ = {delta:g}")
        own = epsilon_of(charged, delta)
        if events != charged:
            console.print(f"whatever others do: ε {own:.4f}, own ε {alone.epsilon:g} allowed")
        within = found["pld"] <= ledger.budget.epsilon and own <= alone.epsilon
        verdict = "[green]kept[/green]" if within else "[red]EXCEEDED[/red]"
        console.print(f"budget ε {ledger.budget.epsilon:g}: {verdict}")
    return 0 if within else 1


def _verify_folder(folder: Path) -> int:
    from fedtree_secure.report.exit_codes import Exit, worst
    from fedtree_secure.report.ledger_check import check_ledgers

    table = Table(title=f"ledgers of {folder}", title_justify="left")
    for title in ("data set", "lines", "ε at most", "of", "δ", "budget signed by", "verdict"):
        table.add_column(title, overflow="fold")
    codes = []
    for found in check_ledgers(folder):
        codes.append(Exit.SIGNATURE if found.problem else Exit.OK if found.kept else Exit.BUDGET)
        verdict = found.problem or ("kept" if found.kept else "EXCEEDED")
        figures = (
            ("", "", "", "", "")
            if found.problem
            else (
                str(found.lines),
                f"{found.epsilon:.4f}",
                f"{found.allowed:g}",
                f"{found.delta:g}",
                found.key[:16] or "nobody",
            )
        )
        style = "green" if codes[-1] is Exit.OK else "red"
        table.add_row(escape(found.dataset), *figures, f"[{style}]{escape(verdict)}")
    console.print(table)
    return worst(codes)


@ledger_app.command
def set_budget(
    dataset: str,
    *,
    epsilon: float,
    delta: float,
    reason: str,
    key: Path,
    own_epsilon: float | None = None,
    state: Path | None = None,
) -> int:
    """Change the budget of a data set, signed by whoever answers for it.

    The change is a line of the ledger's chain, a lower budget as well as a higher one. The first
    signed change pins its key: later ones need it.

    Parameters
    ----------
    dataset
        Name of the data set.
    epsilon, delta
        Its budget from here on.
    own_epsilon
        What may be spent whatever all other clients do, for jobs that share noise with them.
    reason
        Why, for those who read the ledger.
    key
        Ed25519 private key in PEM, readable by its owner alone:
        openssl genpkey -algorithm ed25519 -out officer.pem
    state
        Folder of the stores, as for `run`.
    """
    from fedtree_dp import PrivacyBudget
    from fedtree_secure.client.data_sets import DataSets
    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.names import check_name
    from fedtree_secure.storage import read_signing_key

    budget = PrivacyBudget(epsilon=epsilon, delta=delta, own_epsilon=own_epsilon)
    signer = read_signing_key(key)
    check_name("the data set", dataset)
    with DataSets.of_user(state).existing(dataset) as ledger:
        before, spent = ledger.budget, ledger.spent()
        if before.own_epsilon is not None and own_epsilon is None:
            raise ConfigurationError(
                f"the ledger of {dataset} has own_epsilon {before.own_epsilon:g}; say with "
                "--own-epsilon what it is from here on"
            )
        entry = ledger.set_budget(budget, reason=reason, key=signer)
    console.print(
        f"line {entry.sequence} of the ledger of {dataset}: budget ε {before.epsilon:g} at δ = "
        f"{before.delta:g} becomes ε {epsilon:g} at δ = {delta:g}; {spent:.4f} is spent; signed by "
        f"{(entry.key or '')[:16]}...",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0
