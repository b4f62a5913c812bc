"""Command line: `fedtree-secure demo | run | budget | audit | ledger`.

Exit codes: 0 done, 1 stopped or failed, 2 refused input (nothing was started or charged), 130
interrupted; of `audit` 0 PASS, 1 FAIL, 2 INCONCLUSIVE.
"""

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

app = cyclopts.App(
    name="fedtree-secure",
    help="Fine-tune language models together without showing anyone the data.",
    version=lambda: importlib.metadata.version("fedtree-secure"),
)
ledger_app = cyclopts.App(name="ledger", help="Read and check privacy ledgers.")
app.command(ledger_app)
budget_app = cyclopts.App(
    name="budget", help="What a plan costs, and the noise, epsilon, rounds or batch that it lacks."
)
app.command(budget_app)
console = Console()
errors = Console(stderr=True)


@app.command
def demo(out: Path = Path("runs/demo"), *, resume: bool = False) -> int:
    """Run the main job on MiniLM and real text, nine clients on three tasks, with references.

    Parameters
    ----------
    out
        Run folder; an earlier demo there is replaced.
    resume
        Go on with an interrupted demo.
    """
    from fedtree_secure.demo.job import run_demo
    from fedtree_secure.embedded.progress import Bars

    with Bars(errors) as bars:
        result = run_demo(out, bars, resume=resume)
    result.summary(console)
    _show_places(result.folder)
    console.print(
        "Next: [bold]fedtree-secure ledger verify "
        f"{next(iter(sorted((result.folder / 'ledgers').glob('*.sqlite'))))}[/bold], or a job of "
        "your own: "
        "[bold]fedtree-secure run examples/job.toml --out runs/first[/bold]",
        highlight=False,
    )
    return 0


@app.command
def run(
    job: Path,
    *,
    out: Path,
    resume: bool = False,
    simulate: bool = False,
    ledgers: Path | None = None,
    auditable: bool = False,
    canaries: int = 0,
) -> int:
    """Run a job file: all clients in this process, nothing but protocol bytes between them and the
    server.

    Parameters
    ----------
    job
        TOML job file, see examples/job.toml.
    out
        Run folder, new or empty.
    resume
        Go on with an interrupted run of the same job.
    simulate Research mode: ledgers inside the run folder, references trained for comparison,
        nothing released.
    ledgers Folder of the data sets' ledgers, shared by all jobs on these data; by default `ledgers`
        beside OUT.
    auditable Keep every message, so that audits can look at the run's own uploads. Costs disk;
        nothing else is kept.
    canaries With --auditable: plant this many coins of random records in each client's rows,
        committed to beforehand. Costs no epsilon, but about half of them take part in training.
    """
    from fedtree_secure.embedded.progress import Bars
    from fedtree_secure.federation import Federation

    federation, clients = Federation.from_toml(job)
    with Bars(errors) as bars:
        result = federation.run(
            clients,
            out,
            resume=resume,
            simulate=simulate,
            ledgers=ledgers,
            auditable=auditable,
            canaries=canaries,
            observer=bars,
        )
    result.summary(console)
    _show_places(result.folder)
    return 0


@budget_app.default
def budget(
    *,
    epsilon: float,
    delta: float,
    records: int,
    batch: float,
    rounds: int,
    local_steps: int = 1,
    trained_values: Annotated[
        int, Parameter(help="Trained values d, for the noise column.")
    ] = 9216,
) -> int:
    """Show the noise multiplier that a plan needs, and what other choices would cost.

    Parameters
    ----------
    epsilon, delta
        Budget of each client.
    records
        Declared training records n of a client.
    batch
        Expected records in a step, q n.
    rounds
        Aggregation rounds.
    local_steps
        DP-SGD steps of a client in a round.
    """
    from fedtree_secure.report.priced_plan import budget_table

    console.print(budget_table(epsilon, delta, records, batch, rounds, local_steps, trained_values))
    return 0


@budget_app.command
def plan(
    *,
    job: Path | None = None,
    epsilon: float | None = None,
    noise: float | None = None,
    rounds: int | None = None,
    batch: float | None = None,
    delta: float | None = None,
    records: int | None = None,
    local_steps: int | None = None,
    solve: Literal["noise", "epsilon", "rounds", "batch"] | None = None,
    trained_values: Annotated[
        int, Parameter(help="Trained values d, for the noise column.")
    ] = 9216,
    plot: Path | None = None,
) -> int:
    """Complete a plan by the one number that it lacks; show epsilon against rounds, batch and
    noise.

    Give three of --epsilon, --noise, --rounds and --batch together with --delta and --records, or a
    job file.

    Parameters
    ----------
    job
        TOML job file: its stages, clients and budgets are planned; solves for the noise unless
            --solve says otherwise.
    epsilon, delta
        Budget of each client.
    noise
        Noise multiplier of a step in the rounds.
    rounds
        Aggregation rounds.
    batch
        Expected records in a step, q n.
    records
        Declared training records n of a client.
    local_steps
        DP-SGD steps of a client in a round; 1 if not given.
    solve
        With --job: the number that is solved for; all but `noise` need --noise.
    plot
        PNG file for the three curves.
    """
    from fedtree_secure.report.priced_plan import (
        outlook_of_job,
        outlook_of_numbers,
        require_numbers,
    )

    numbers = {
        "epsilon": epsilon,
        "noise": noise,
        "rounds": rounds,
        "batch": batch,
        "delta": delta,
        "records": records,
        "local-steps": local_steps,
    }
    require_numbers(numbers, solve, has_job=job is not None)
    if job is not None:
        found = outlook_of_job(
            job, noise_multiplier=noise, unknown=solve or "noise", parameters=trained_values
        )
    else:
        assert delta is not None
        assert records is not None
        found = [
            outlook_of_numbers(
                epsilon=epsilon,
                noise_multiplier=noise,
                rounds=rounds,
                batch=batch,
                delta=delta,
                records=records,
                local_steps=local_steps or 1,
                parameters=trained_values,
            )
        ]
    if plot is not None:
        from fedtree_secure.report.plan_curves import draw_outlooks

        draw_outlooks(found, plot)
    for outlook in found:
        console.print(outlook.table())
    if plot is not None:
        console.print(f"Plot: {plot}", highlight=False)
    return 0


@app.command
def audit(name: str = "all", *, run: Path) -> int:
    """Attack a finished run and compare what leaks with what was claimed; exit code 0 PASS, 1 FAIL,
    2 INCONCLUSIVE.

    Parameters
    ----------
    name
        One audit, or all of them; all of them write one page together as well.
    run
        Run folder; reports are written to its `audits` folder.
    """
    from fedtree_secure.cli.audit import combined_pages, installed_audits, worst

    codes, found = [], installed_audits(name)
    for title, load in found.items():
        verdict, code, page = load().report(run)
        codes.append(code)
        console.print(f"[bold]{title:<20}[/] {verdict:<13} {page}", highlight=False, soft_wrap=True)
    for page in combined_pages(run, list(found)) if name == "all" else ():
        console.print(f"[bold]together:[/] {page}", highlight=False, soft_wrap=True)
    return worst(codes)


@ledger_app.command
def show(path: Path) -> int:
    """List a ledger's entries and what is spent."""
    from fedtree_dp import Ledger

    with Ledger.inspect(path) as ledger:
        table = Table(title=f"data set {ledger.dataset}", title_justify="left")
        for title in ("#", "time", "job", "purpose", "mechanism"):
            table.add_column(title)
        for entry in ledger.entries():
            what = (
                ""
                if entry.event is None
                else ", ".join(f"{k} {v}" for k, v in entry.event.to_dict().items())
            )
            budget_text = (
                ""
                if entry.budget is None
                else f"budget ε {entry.budget.epsilon:g}, δ {entry.budget.delta:g}"
            )
            table.add_row(
                str(entry.sequence),
                entry.time,
                entry.job or "",
                entry.purpose or entry.kind,
                what or budget_text,
            )
        console.print(table)
        console.print(
            f"ε {ledger.spent():.4f} of {ledger.budget.epsilon:g} spent at δ = "
            f"{ledger.budget.delta:g}"
        )
    return 0


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
        console.print(
            ", ".join(f"ε by {name.upper()} {value:.4f}" for name, value in found.items())
            + f" at δ = {delta:g}"
        )
        within = found["pld"] <= ledger.budget.epsilon
        console.print(
            f"budget ε {ledger.budget.epsilon:g}: "
            + ("[green]kept[/green]" if within else "[red]EXCEEDED[/red]")
        )
    return 0 if within else 1


def _show_places(folder: Path) -> None:
    console.print(
        f"Tree: {folder / 'tree.png'}   summary: {folder / 'summary.json'}   adapters: "
        f"{folder / 'adapters'}",
        highlight=False,
    )


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn known errors into one clear sentence and an exit code."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    # peft 0.21 asks transformers 5.23 in its old way; nothing that a user of this command could
    # change.
    warnings.filterwarnings(
        "ignore", message=r".is_gradient_checkpointing. is deprecated", category=FutureWarning
    )
    sys.exit(_guarded(lambda: app(arguments, result_action="return_value")))


def _guarded(command: Callable[[], Any]) -> int:
    from fedtree_dp import DPError
    from fedtree_secagg import SecAggError
    from fedtree_secure.errors import FedTreeError, RunStopped

    try:
        return int(command() or 0)
    except RunStopped as error:
        errors.print(f"[bold yellow]stopped:[/] {error}", highlight=False)
        return 1
    except (FedTreeError, DPError, SecAggError) as error:
        errors.print(f"[bold red]refused:[/] {error}", highlight=False, markup=True)
        return 2
    except KeyboardInterrupt:
        errors.print(
            "[bold yellow]interrupted:[/] the ledgers are valid; go on with --resume",
            highlight=False,
        )
        return 130
