"""`fedtree-secure audit`, and how it finds audits: through entry points, because nothing here may
import the audits' package.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from fedtree_secure.cli.screen import console

GROUP = "fedtree_secure.audits"
PAGES = "fedtree_secure.audit_pages"
FAIL, INCONCLUSIVE = 1, 2


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
    from fedtree_secure.errors import RunFolderError

    codes, found = [], installed_audits(name)
    if not (run / "job.json").is_file():
        raise RunFolderError(f"{run} holds no run: there is no job.json in it")
    for title, load in found.items():
        verdict, code, page = load().report(run)
        codes.append(code)
        console.print(f"[bold]{title:<20}[/] {verdict:<13} {page}", highlight=False, soft_wrap=True)
    for page in combined_pages(run, list(found)) if name == "all" else ():
        console.print(f"[bold]together:[/] {page}", highlight=False, soft_wrap=True)
    return worst(codes)


class Audit(Protocol):
    """What an entry point of the group names."""

    def report(self, path: Path) -> tuple[str, int, Path]:
        """Audit a run folder; return verdict, exit code and the page that was written."""
        ...


def installed_audits(name: str) -> dict[str, Callable[[], Audit]]:
    """Return loaders of one audit, or of all for ``all``, by name.

    Raises:
        ConfigurationError: There is no audit of this name; a close one is suggested.
    """
    from fedtree_secure.errors import ConfigurationError, suggest

    found = {entry.name: entry.load for entry in entry_points(group=GROUP)}
    if name == "all":
        return dict(sorted(found.items()))
    if name not in found:
        raise ConfigurationError(f"there is no audit {name!r}{suggest(name, [*found, 'all'])}")
    return {name: found[name]}


def combined_pages(run: Path, names: Sequence[str]) -> list[Path]:
    """Let the installed writers combine the reports of these audits into one page each, and return
    the pages.
    """
    return [
        entry.load()(run, names)[2]
        for entry in sorted(entry_points(group=PAGES), key=lambda entry: entry.name)
    ]


def worst(codes: Sequence[int]) -> int:
    """One failure fails all; without one, anything inconclusive leaves all inconclusive. No audit
    proves nothing.
    """
    if FAIL in codes:
        return FAIL
    return INCONCLUSIVE if INCONCLUSIVE in codes or not codes else 0
