"""How the command line finds audits: through entry points, because nothing here may import the
audits' package.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from fedtree_secure.errors import ConfigurationError, suggest

GROUP = "fedtree_secure.audits"
PAGES = "fedtree_secure.audit_pages"
FAIL, INCONCLUSIVE = 1, 2


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
