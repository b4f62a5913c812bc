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


def audit(
    name: str = "all",
    *,
    run: Path | None = None,
    site: Path | None = None,
    server: Path | None = None,
) -> int:
    """Attack a finished run and compare what leaks with what was claimed; exit code 0 PASS, 1 FAIL,
    2 INCONCLUSIVE.

    Parameters
    ----------
    name
        One audit, or all of them; all of them write one page together as well.
    run
        Run folder; reports are written to its `audits` folder.
    site
        In a deployment: folder of site.toml, or of one run in its `runs`. Only audits whose
        evidence a site has are made.
    server
        The same of the folder of a job; only audits whose evidence a server has.
    """
    codes, found, unseen = [], installed_audits(name), []
    place, party = _place(run, site, server)
    for title, load in list(found.items()):
        audited = load()
        if party and party not in getattr(audited, "parties", ()):
            unseen.append(title)
            del found[title]
            continue
        verdict, code, page = audited.report(place)
        codes.append(code)
        console.print(f"[bold]{title:<20}[/] {verdict:<13} {page}", highlight=False, soft_wrap=True)
    if unseen:
        said = f"a {party}'s folder has no evidence for: {', '.join(unseen)}"
        console.print(said, highlight=False, soft_wrap=True)
    for page in combined_pages(place, list(found)) if name == "all" else ():
        console.print(f"[bold]together:[/] {page}", highlight=False, soft_wrap=True)
    return worst(codes)


def _place(run: Path | None, site: Path | None, server: Path | None) -> tuple[Path, str]:
    """The folder to audit, and whose it is; empty for that of a whole run."""
    from fedtree_secure.errors import ConfigurationError, RunFolderError
    from fedtree_secure.storage import read_json

    given = [(p, kind) for p, kind in ((run, ""), (site, "site"), (server, "server")) if p]
    if len(given) != 1:
        raise ConfigurationError("name one folder: --run, --site or --server")
    ((place, party),) = given
    if party and not (place / "job.json").is_file():
        runs = sorted(path.parent for path in place.glob("runs/*/job.json"))
        if len(runs) > 1:
            names = ", ".join(path.name for path in runs)
            raise ConfigurationError(f"{place} has several runs ({names}); name {runs[0]}, or such")
        place = runs[0] if runs else place
    if not (place / "job.json").is_file():
        raise RunFolderError(f"{place} holds no run: there is no job.json in it")
    job = read_json(place / "job.json")
    owner = ("site" if job.get("clients") else "server") if job.get("party") else ""
    if owner != party:
        kind = f"a {owner}'s run (--{owner})" if owner else "a whole run (--run)"
        raise ConfigurationError(f"{place} holds {kind}")
    return place, party


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
