"""`fedtree-secure site`: what one party's operator does. Nothing here charges a ledger."""

from pathlib import Path

import cyclopts
from rich.table import Table

from fedtree_secure.cli.screen import console

site_app = cyclopts.App(name="site", help="One party of a deployment: set up, check, approve.")
OUTCOMES = {True: "[green]✓[/]", False: "[red]✗[/]"}


@site_app.command
def init(site: Path, *, epsilon: float, delta: float, own_epsilon: float | None = None) -> int:
    """Make the store of a site's data set, once, with the budget of all jobs on it together.

    Parameters
    ----------
    site
        Folder of site.toml.
    epsilon, delta
        Budget of the data set.
    own_epsilon
        What may be spent whatever all other sites do; without it no job may count on their noise.
    """
    from fedtree_dp import PrivacyBudget
    from fedtree_secure.client.data import texts_of
    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.site.settings import load_site

    settings = load_site(site)
    budget = PrivacyBudget(epsilon=epsilon, delta=delta, own_epsilon=own_epsilon)
    budget.check_records(settings.file.records)
    data_sets, dataset = settings.data_sets(), settings.dataset
    place = data_sets.store_of(dataset)
    if place.exists():
        raise ConfigurationError(
            f"the data set {dataset!r} has a store already: {place}. What was spent stays spent; "
            "`fedtree-secure site status` shows it"
        )
    with data_sets.opened(dataset, budget, texts_of(settings.client(budget))):
        pass
    _say(f"The store of {dataset} is {place}; its signed head is {data_sets.head_of(dataset)}")
    return 0


@site_app.command
def check(
    site: Path,
    *,
    job: Path | None = None,
    superlink: str | None = None,
    root_certificates: Path | None = None,
    insecure: bool = False,
) -> int:
    """Look at key, roster, policy, rows, store, model and connection; exit code 0 if all is well.

    Parameters
    ----------
    site
        Folder of site.toml.
    job
        A job file: compared with the policy; its model is loaded and its digest shown.
    superlink
        HOST:PORT to connect to.
    root_certificates
        PEM file of the authority that signed the SuperLink's certificate.
    insecure
        Without TLS; for tests on one machine alone.
    """
    from fedtree_secure.job_file import load_public_job
    from fedtree_secure.site.check import Link, check_site
    from fedtree_secure.site.settings import load_site

    settings = load_site(site)
    link = None if superlink is None else Link(superlink, root_certificates, insecure)
    table, well = Table(title=f"site {settings.name}", title_justify="left"), True
    for title in ("", "what", "found"):
        table.add_column(title, overflow="fold")
    given = None if job is None else load_public_job(job)
    for line in check_site(settings, given, link):
        table.add_row(OUTCOMES[line.holds], line.what, line.detail)
        well = well and line.holds
    console.print(table)
    return 0 if well else 1


@site_app.command
def status(site: Path) -> int:
    """Show what is spent of the data set, and the runs that this site joined.

    Parameters
    ----------
    site
        Folder of site.toml.
    """
    import msgspec

    from fedtree_dp import Ledger
    from fedtree_secure.site.approval import APPROVED, spent_of
    from fedtree_secure.site.settings import load_site

    settings = load_site(site)
    with Ledger.inspect(settings.data_sets().store_of(settings.dataset)) as ledger:
        budget = ledger.budget
        _say(
            f"data set {ledger.dataset}: epsilon {spent_of(ledger):.4f} of {budget.epsilon:g} "
            f"spent at delta {budget.delta:g}"
        )
        table = Table(title="runs", title_justify="left")
        for title in ("run", "approval", "last round begun", "delivered"):
            table.add_column(title)
        for run in ledger.names(APPROVED):
            stored = ledger.get(run, "record")
            number = "-" if stored is None else str(msgspec.json.decode(stored)["round"])
            delivered = (settings.runs / run / "manifest.json").exists()
            approval = (ledger.get(APPROVED, run) or b"").decode()
            table.add_row(run, approval, number, "yes" if delivered else "no")
        console.print(table)
    return 0


@site_app.command
def approve(site: Path, job: Path, *, yes: bool = False) -> int:
    """Show what a job costs and shows of this site, in plain words, and sign the approval.

    An approval is for one run of the job. Nothing runs that was not approved.

    Parameters
    ----------
    site
        Folder of site.toml.
    job
        The job file, as the server's operator sent it.
    yes
        Do not ask on the terminal.
    """
    from fedtree_dp import Ledger
    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.job_file import load_public_job
    from fedtree_secure.key_file import read_identity
    from fedtree_secure.roster_file import read_roster
    from fedtree_secure.site import approval
    from fedtree_secure.site.policy import load_policy
    from fedtree_secure.site.settings import load_site
    from fedtree_secure.storage import SecretBox

    settings, given = load_site(site), load_public_job(job)
    roster, identity = (
        read_roster(settings.roster),
        read_identity(settings.key, SecretBox.from_environment()),
    )
    broken = load_policy(settings.policy).against(settings.name, given, roster)
    if broken:
        raise ConfigurationError(f"the policy forbids this job: {'; '.join(broken)}")
    settings.model(given.backbone)
    with Ledger.inspect(settings.data_sets().store_of(settings.dataset)) as ledger:
        plan = approval.plan_for(settings.name, given, ledger)
        made = approval.approve(settings.name, identity, given, roster, ledger, plan)
    for line in made.statement:
        _say(f"- {line}")
    if not yes and input("Approve one run of this job? [y/N] ").strip().lower() not in ("y", "yes"):
        _say("Not approved.")
        return 1
    _say(f"Approved: {approval.keep_approval(settings.approvals, made)}")
    return 0


@site_app.command
def leave(site: Path, run: str, *, yes: bool = False) -> int:
    """End this site's part in a run, for good. Stop its node first, and start it again after.

    The node then answers the run's requests with a signed farewell. Nothing more is charged for it;
    what was uploaded stays in the sums, and there is no way back.

    Parameters
    ----------
    site
        Folder of site.toml.
    run
        Name of the run, as `fedtree-secure site status` shows it.
    yes
        Do not ask on the terminal.
    """
    from fedtree_secure.site.site import Site

    with Site.open(site) as opened:
        question = f"Leave run {run} for good? There is no way back. [y/N] "
        if not yes and input(question).strip().lower() not in ("y", "yes"):
            _say("Nothing was changed.")
            return 1
        opened.leave(run)
    _say(f"Left run {run}. Start the node again, so that it says so to the server.")
    return 0


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
