"""`fedtree-secure demo`: the main job on a real model and real text."""

from pathlib import Path

from fedtree_secure.cli.screen import console, show_places


def demo(out: Path = Path("runs/demo"), *, resume: bool = False, quiet: bool = False) -> int:
    """Run the main job on MiniLM and real text, nine clients on three tasks, with references.

    Parameters
    ----------
    out
        Run folder; an earlier demo there is replaced.
    resume
        Go on with an interrupted demo.
    quiet
        Show no progress.
    """
    from fedtree_secure.demo.job import run_demo
    from fedtree_secure.embedded.progress import Notes

    result = run_demo(out, Notes() if quiet else None, resume=resume)
    result.summary(console)
    show_places(result.folder)
    first = min((result.folder / "ledgers").glob("*.sqlite"))
    console.print(
        f"Next: [bold]fedtree-secure ledger verify {first}[/bold], or files of your own: "
        "[bold]fedtree-secure init FOLDER --epsilon 8[/bold]",
        highlight=False,
    )
    return 0
