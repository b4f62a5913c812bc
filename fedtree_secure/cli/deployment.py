"""`fedtree-secure serve`, `node` and `model-facts`: a job over a network."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fedtree_secure.cli.screen import console


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a server waits, in seconds."""

    deadline: Annotated[
        float, Parameter(help="Of an exchange; who has not answered by then drops out of it.")
    ] = 300.0
    gather: Annotated[float, Parameter(help="For all sites at the start.")] = 600.0
    enough: Annotated[
        float, Parameter(help="Share of replies after which an exchange ends early; 1 for all.")
    ] = 1.0
    grace: Annotated[float, Parameter(help="From enough replies until the end.")] = 5.0
    tries: Annotated[
        int, Parameter(help="Starts without another finished round, after which it gives up.")
    ] = 5


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Watched:
    """What an operator sees of a process that works on."""

    events: Annotated[
        Path | None, Parameter(help="File for events, as lines of JSON; see docs/events.md.")
    ] = None
    metrics: Annotated[int | None, Parameter(help="Port of 127.0.0.1 for Prometheus metrics.")] = (
        None
    )


_TIMING = Timing()
_WATCHED = Watched()


def serve(
    job: Path,
    *,
    superlink: str,
    root_certificates: Path | None = None,
    insecure: bool = False,
    timing: Timing = _TIMING,
    watched: Watched = _WATCHED,
) -> int:
    """Run a job to its end over the sites' nodes; continues after its own death and the
    SuperLink's.

    Parameters
    ----------
    job
        Folder of the job: job.toml, roster.json, model.facts, server.key.
    superlink
        HOST:PORT of the SuperLink's control API.
    root_certificates
        PEM file of the authority that signed its certificate.
    insecure
        Without TLS; for tests on one machine alone.
    """
    _need_flower()
    from fedtree_secure.events import Events
    from fedtree_secure.flower.job_folder import JobFolder
    from fedtree_secure.flower.serve import Control
    from fedtree_secure.flower.serve import serve as run_to_its_end
    from fedtree_secure.flower.transport import Patience
    from fedtree_secure.metrics import EventReader, Metrics, check_port
    from fedtree_secure.storage import held

    _log_progress()
    certificates = _certificates(root_certificates, insecure=insecure)
    patience = Patience(timing.deadline, timing.gather, timing.enough, timing.grace)
    folder = JobFolder(job, watched.events)
    _ = folder.job  # a folder that holds none is refused before a file is made in it
    check_port(watched.metrics)
    Events(folder.events).check()
    metrics = Metrics(EventReader(folder.events))
    with metrics.served(watched.metrics):
        folder.check()
        with held(job / "serve"):
            control = Control(superlink, certificates)
            outcome = run_to_its_end(folder, control, patience, timing.tries)
    _say(f"Finished after round {outcome.finished_round}. Report: {job / 'report.json'}")
    return 0


def node(
    site: Path,
    *,
    superlink: str,
    root_certificates: Path | None = None,
    node_key: Path | None = None,
    insecure: bool = False,
    patience: float = 120.0,
    watched: Watched = _WATCHED,
) -> int:
    """Run a site: one warm process that answers the server's requests until it is told to stop.

    Parameters
    ----------
    site
        Folder of site.toml.
    superlink
        HOST:PORT.
    root_certificates
        PEM file of the authority that signed the SuperLink's certificate.
    node_key
        The node's ECDSA key (OpenSSH), registered at the SuperLink.
    insecure
        Without TLS; for tests on one machine alone.
    patience
        Seconds for which a key that the SuperLink refuses is tried again.
    """
    _need_flower()
    from fedtree_secure.events import Events
    from fedtree_secure.flower.fleet import FleetLink
    from fedtree_secure.flower.node import SiteNode, Waiting
    from fedtree_secure.metrics import Metrics, check_port
    from fedtree_secure.reach import split_address
    from fedtree_secure.site.site import Site

    _log_progress()
    split_address(superlink)
    link = FleetLink(superlink, _certificates(root_certificates, insecure=insecure), node_key)
    link.keys()
    check_port(watched.metrics)
    metrics = Metrics()
    events = Events(watched.events, [metrics.take])
    events.check()
    with metrics.served(watched.metrics), Site.open(site) as opened, _stopping() as stop:
        SiteNode(opened, link, events, Waiting(patience)).run(stop)
    return 0


def agent(site: Path, *, socket: Path) -> int:
    """Run a site behind a stock SuperNode: one warm process that answers over a unix socket.

    The SuperNode runs as another user, with --node-config 'agent="SOCKET"'.

    Parameters
    ----------
    site
        Folder of site.toml.
    socket
        Where to listen, in a folder that the SuperNode's user may enter.
    """
    from fedtree_secure.site.agent import Agent
    from fedtree_secure.site.site import Site

    _log_progress()
    with Site.open(site) as opened, _stopping() as stop:
        Agent(opened, socket).run(stop)
    return 0


def model_facts(job: Path, *, model: Path, out: Path, roster: Path | None = None) -> int:
    """Write what a job's server must know of the model; the server itself needs no weights.

    Parameters
    ----------
    job
        The job file.
    model
        Folder of the model, on this machine.
    out
        File for the facts.
    roster
        The roster, where the job's heads are shared: it says which sites declare the same labels.
    """
    import dataclasses

    from fedtree_secure.errors import ConfigurationError
    from fedtree_secure.job_file import load_public_job
    from fedtree_secure.model.backbone import Backbone
    from fedtree_secure.model.facts_file import write_facts
    from fedtree_secure.roster_file import read_roster

    given = load_public_job(job)
    heads: tuple[int, ...] = ()
    if given.head == "group":
        if roster is None:
            raise ConfigurationError(
                "the job's heads are shared by sites with one label set (training.head); give "
                "--roster FILE, which says who they are"
            )
        heads = read_roster(roster).terms(given, "facts").outputs_of_heads
    backbone = Backbone(dataclasses.replace(given, backbone=str(model)))
    write_facts(out, backbone.facts(heads))
    _say(f'models = ["{backbone.frozen_digest.hex()}"]')
    return 0


def _certificates(given: Path | None, *, insecure: bool) -> Path | None:
    from fedtree_secure.errors import ConfigurationError

    if insecure == (given is not None):
        raise ConfigurationError(
            "give either --root-certificates FILE, or --insecure for a test on one machine"
        )
    if given is not None and not given.is_file():
        raise ConfigurationError(f"there are no certificates at {given}")
    return given


def _need_flower() -> None:
    import importlib.util

    from fedtree_secure.errors import ConfigurationError

    if importlib.util.find_spec("flwr") is None:
        raise ConfigurationError(
            "Flower is not installed here; install it into an environment of its own: pip install "
            "-c constraints-flower.txt 'fedtree-secure[flower]'"
        )


def _log_progress() -> None:
    logging.getLogger("fedtree_secure").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """SIGTERM ends after the message at hand, as Ctrl-C does."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    yield stop


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
