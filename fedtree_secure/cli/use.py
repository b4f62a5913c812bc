"""`fedtree-secure predict | compare`: what came out of a run."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedtree_secure.cli.screen import console, errors


def predict(
    *,
    adapter: Path,
    file: Path,
    text: str = "text",
    label: Annotated[str, Parameter(help="Column of the true labels, to measure.")] = "",
    backbone: str | None = None,
    out: Path | None = None,
) -> int:
    """Use a delivered adapter on a file: its rows as a CSV, with label and probability (or the
    perplexity of each text) behind them. Texts are cut as in training.

    Parameters
    ----------
    adapter
        Folder of the adapter, in a run folder's `adapters`.
    file
        CSV, JSON, JSONL or Parquet.
    text
        Name of the column with the texts.
    backbone
        Where the backbone lies on this machine, if not where it lay during the run.
    out
        CSV to write; standard output if not given.
    """
    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.home.predict import predict_file

    if out is not None and out.exists():
        raise ConfigurationError(f"{out} is there already; name another file with --out")
    found = predict_file(adapter, file, text=text, label=label, backbone=backbone)
    if out is None:
        found.write(sys.stdout)
    else:
        with out.open("w", encoding="utf-8", newline="") as handle:
            found.write(handle)
        console.print(f"{len(found.answers)} rows: {out}", highlight=False, soft_wrap=True)
    if found.metric is not None:
        low, high = found.metric["interval"]
        errors.print(
            f"accuracy {found.metric['value']:.3f} ({low:.3f} to {high:.3f}, 95%), macro F1 "
            f"{found.metric['macro_f1']:.3f}, {found.metric['rows']} rows",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def compare(*runs: Path) -> int:
    """Show finished runs side by side: settings that differ, epsilon and metric of each client, and
    the paired difference to the first.

    Parameters
    ----------
    runs
        Run folders, two or more.
    """
    from fedtree_secure.report.comparison import compare_runs

    found = compare_runs(runs)
    titles = [run.name for run in found.runs]
    settings = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("setting", *titles):
        settings.add_column(name, overflow="fold")
    for name, values in found.settings.items():
        settings.add_row(name, *(str(value) for value in values))
    if found.settings:
        console.print(settings)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    table.title = f"ε and {found.metric or 'metric'}"
    table.add_column("client", overflow="fold")
    for name in titles:
        table.add_column(name, justify="right", overflow="fold")
    for client, outcomes in found.clients.items():
        table.add_row(client, *map(_outcome, outcomes))
    console.print(table)
    for line in found.said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _outcome(outcome: Any) -> str:
    if outcome is None:
        return "-"
    epsilon, value = outcome
    return f"{epsilon:.2f}  {'-' if value is None else f'{value:.3f}'}"
