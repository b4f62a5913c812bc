"""Where the commands write: results to standard output, progress and errors beside it."""

from pathlib import Path

from rich.console import Console

console = Console()
errors = Console(stderr=True)


def show_places(folder: Path) -> None:
    """Say where a run left its tree, its summary and its adapters."""
    console.print(
        f"Tree: {folder / 'tree.png'}   summary: {folder / 'summary.json'}   adapters: "
        f"{folder / 'adapters'}",
        highlight=False,
        markup=False,
    )
