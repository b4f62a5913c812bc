"""`fedtree-secure init | check`: from a folder of files to a job that can run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedtree_secure.cli.screen import console

if TYPE_CHECKING:
    from fedtree_secure.home.check import Report

AT_HOME = "The table was read from your rows: keep it at home. Nothing was charged."


def init(
    folder: Path,
    *,
    epsilon: float,
    delta: float | None = None,
    backbone: Annotated[str, Parameter(help="Folder, .gguf file or hub id of the model.")] = "",
    text: str = "",
    label: str = "",
    out: Path | None = None,
) -> int:
    """Write a job file for a folder of CSV, JSON, JSONL or Parquet files: clients, columns, label
    sets, splits and sizes as the files show them.

    `heart-train.csv` and `heart-test.csv`, or `heart/train.csv` and `heart/test.csv`, are the rows
    of a client `heart`. Nothing is charged.

    Parameters
    ----------
    folder
        Where the files lie.
    epsilon
        Budget of each client; no file shows it.
    delta
        Of the budget; if not given, a power of ten, a tenth of 1/records at most.
    backbone
        If not given, sentence-transformers/all-MiniLM-L6-v2. A path is relative to this folder.
    text, label
        Names of the columns, where they cannot be told from the rows.
    out
        Job file to write; FOLDER/job.toml if not given. One that is there is not touched.
    """
    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.home.folder import Wanted, look
    from fedtree_secure.home.job_text import Choices, job_text

    place = out or folder / "job.toml"
    if place.exists():
        raise ConfigurationError(f"{place} is there already; name another file with --out")
    model = str(Path(backbone).expanduser().resolve()) if _is_place(backbone) else backbone
    found = look(folder, Wanted(text, label))
    content = job_text(found, folder, place, Choices(epsilon, delta, model))
    place.write_text(content, "utf-8")
    table = _table("client", "training rows", "test rows", "text", "label", "labels")
    for c in found:
        table.add_row(c.id, str(c.rows), str(c.test_rows or "-"), c.text, c.label, _few(c.labels))
    console.print(table)
    if not any(c.label for c in found):
        _say(
            "No column looks like a label: a language model is trained. For a classifier say "
            "--label COLUMN.",
            style="yellow",
        )
    without = [c.id for c in found if c.test is None]
    if without:
        console.print(
            f"No test file for {', '.join(without)}: their adapters will not be measured.",
            style="yellow",
            soft_wrap=True,
        )
    _say(f"Job file: {place}. It is public in a run: read its labels and sizes. {AT_HOME}")
    _say(f"Next: fedtree-secure check {place}")
    return 0


def check(job: Path, *, state: Path | None = None) -> int:
    """Say all that is wrong with a job and its clients' rows, and what a run would be like: class
    balance, duplicates, texts that are cut, noise against signal, time, memory and bytes.

    Nothing is charged and no store is written. Exit code 0, or 2 with every error.

    Parameters
    ----------
    job
        TOML job file.
    state
        Folder of the data sets' stores, to know what is left of their budgets; see `run`.
    """
    from fedtree_secure.home.check import examine

    report = examine(job, state)
    _show(report)
    return 2 if report.errors else 0


def _show(report: "Report") -> None:
    if report.clients:
        table = _table(
            "client",
            "rows",
            "declared",
            "test",
            "rarest/most label",
            "twice",
            "in both",
            "cut",
        )
        for c in report.clients:
            table.add_row(
                c.id,
                str(c.rows),
                str(c.declared),
                str(c.test_rows or "-"),
                c.balance,
                str(c.twice),
                str(c.in_both),
                f"{c.cut:.0%}",
            )
        console.print(table)
    for line in report.facts:
        _say(line)
    for line in report.advice:
        _say(f"advice: {line}", style="yellow")
    for line in report.errors:
        _say(f"error: {line}", style="red")
    if not report.errors:
        _say("No error was found.", style="green")
    _say(f"{AT_HOME} No store was written.")


def _is_place(backbone: str) -> bool:
    return bool(backbone) and (
        backbone.startswith((".", "/", "~")) or Path(backbone).expanduser().exists()
    )


def _few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _say(text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
