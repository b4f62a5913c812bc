"""``site check``: everything that a site needs before a job, looked at one by one.

Nothing is charged, and nothing is sent but a connection to the SuperLink if one is named.
"""

import dataclasses
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import Ledger
from fedtree_secure.client.data import prepare, texts_of
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, FedTreeError, StoreError
from fedtree_secure.job_budgets import check_known
from fedtree_secure.key_file import Card, read_identity
from fedtree_secure.reach import clock_is_off, reach
from fedtree_secure.roster_file import read_roster
from fedtree_secure.site.approval import read_approvals, spent_of
from fedtree_secure.site.policy import load_policy
from fedtree_secure.site.settings import SiteSettings
from fedtree_secure.storage import SecretBox


@dataclass(frozen=True)
class Ticked:
    """One line of the table.

    Attributes:
        what: What was looked at.
        holds: Whether it is as it should be.
        detail: What was found, or what to do.
    """

    what: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Link:
    """The SuperLink that a site will connect to; see `reach`."""

    address: str
    certificates: Path | None = None
    insecure: bool = False


def check_site(
    settings: SiteSettings, job: Job | None = None, link: Link | None = None
) -> Iterator[Ticked]:
    """Look at everything; yield a line for each thing.

    Args:
        settings: The site's.
        job: A job that it may take part in, approved or not: its model is loaded and compared.
        link: Where to try to connect.
    """
    looks: list[tuple[str, Callable[[], str]]] = [
        ("key", lambda: _key(settings)),
        ("roster", lambda: _roster(settings)),
        ("policy", lambda: _policy(settings)),
        ("rows", lambda: _rows(settings)),
        ("store", lambda: _store(settings)),
        ("approvals", lambda: _approvals(settings)),
    ]
    if job is not None:
        looks += [
            ("job and policy", lambda: _job(settings, job)),
            ("model", lambda: _model(settings, job)),
        ]
    if link is not None:
        looks.append(("superlink", lambda: _link(link)))
    for what, look in looks:
        try:
            yield Ticked(what, True, look())
        except (FedTreeError, OSError) as error:
            yield Ticked(what, False, str(error))


def _key(settings: SiteSettings) -> str:
    box = SecretBox.from_environment()
    key = read_identity(settings.key, box).public_bytes.hex()
    return f"{key[:16]}..., {'encrypted' if box.encrypts else 'plain'} at rest"


def _roster(settings: SiteSettings) -> str:
    roster, key = read_roster(settings.roster), read_identity(settings.key, _box()).public_bytes
    card = roster.clients.get(settings.name)
    if card is None or card.key != key.hex():
        raise ConfigurationError(
            f"version {roster.version} does not name {settings.name!r} with this key"
        )
    settings.check_labels(card)
    return f"{roster.name}, version {roster.version}, {len(roster.clients)} sites{_shared(card)}"


def _shared(card: Card) -> str:
    return f", {len(card.labels)} labels declared" if card.labels else ", no labels declared"


def _policy(settings: SiteSettings) -> str:
    policy, roster = load_policy(settings.policy), read_roster(settings.roster)
    if policy.roster != roster.digest:
        raise ConfigurationError(
            f"names the roster {policy.roster[:16]}; {settings.roster.name} is {roster.digest}"
        )
    if policy.server != roster.server:
        raise ConfigurationError(
            f"names the server {policy.server[:16]}; the roster {roster.server[:16]}"
        )
    return f"epsilon up to {policy.largest_epsilon:g}, groups of {policy.smallest_group} or more"


def _rows(settings: SiteSettings) -> str:
    count, file = len(texts_of(settings.client(None))), settings.file
    units = f" units (column {file.unit!r})" if file.unit else ""
    return f"{count} texts to train on, declared as {file.records}{units}"


def _store(settings: SiteSettings) -> str:
    with _inspected(settings) as ledger:
        budget = ledger.budget
        budget.check_records(settings.file.records)
        return (
            f"epsilon {spent_of(ledger):.3f} of {budget.epsilon:g} spent at delta {budget.delta:g}"
        )


def _inspected(settings: SiteSettings) -> Ledger:
    path = settings.data_sets().store_of(settings.dataset)
    if not path.exists():
        raise StoreError(f"there is none at {path}; make it with `fedtree-secure site init`")
    return Ledger.inspect(path)


def _approvals(settings: SiteSettings) -> str:
    found = read_approvals(settings.approvals, read_identity(settings.key, _box()))
    if not found:
        return "none yet; nothing runs that was not approved"
    return f"{len(found)}, the last of {max(a.time for a in found.values())}"


def _job(settings: SiteSettings, job: Job) -> str:
    roster = read_roster(settings.roster)
    check_known(job, list(roster.clients))
    broken = load_policy(settings.policy).against(settings.name, job, roster)
    if broken:
        raise ConfigurationError("; ".join(broken))
    asked = job.budget_of(settings.name)
    return f"{job.task}, {job.rounds} rounds at epsilon {asked.epsilon:g}"


def _model(settings: SiteSettings, job: Job) -> str:
    from fedtree_secure.model.backbone import Backbone

    here = dataclasses.replace(job, backbone=str(settings.model(job.backbone)))
    backbone = Backbone(here)
    prepare(settings.client(None), here, backbone.tokenizer)
    broken = load_policy(settings.policy).against_model(backbone.frozen_digest)
    if broken:
        raise ConfigurationError(broken[0])
    return backbone.frozen_digest.hex()


def _link(link: Link) -> str:
    found = reach(link.address, link.certificates, insecure=link.insecure)
    if found.clock is not None and clock_is_off(found.clock):
        raise ConfigurationError(
            f"this machine's clock is {found.clock:+.0f} s off the server's, which will refuse it. "
            "Set the clock"
        )
    if found.expires is None:
        return "reached, without TLS: for tests on one machine alone"
    left = (found.expires - datetime.datetime.now(datetime.UTC)).days
    return f"reached; its certificate is valid for {left} days, the clocks agree"


def _box() -> SecretBox:
    return SecretBox.from_environment()
