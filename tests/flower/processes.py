"""What runs in the processes of a test: a site's node, and the supervisor of a job.

Nodes are forked from one process that has imported torch already; each is a process of its own,
with its own memory, that may be killed.
"""

import logging
import signal
import sys
import threading
from pathlib import Path


def log_to(path: Path) -> None:
    logging.basicConfig(
        filename=path,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.stdout = sys.stderr = path.open("a", buffering=1)


def run_node(site: str, address: str, certificates: str, key: str, log: str, seed: str) -> None:
    """A site's node, as `fedtree-secure node` runs it, but for seeded randomness if asked."""
    import contextlib

    import torch
    from seeded import seeded

    from fedtree_secure.errors import FedTreeError
    from fedtree_secure.events import Events
    from fedtree_secure.flower.fleet import FleetLink
    from fedtree_secure.flower.node import SiteNode, Waiting
    from fedtree_secure.site.site import Site

    log_to(Path(log))
    torch.set_num_threads(1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    link = FleetLink(address, Path(certificates), Path(key))
    try:
        with contextlib.ExitStack() as stack:
            for patch in seeded(seed) if seed else ():
                stack.enter_context(patch)
            opened = stack.enter_context(Site.open(Path(site)))
            events = Events(Path(log).with_suffix(".jsonl"))
            SiteNode(opened, link, events, Waiting(patience=5.0)).run(stop)
    except FedTreeError as error:
        logging.error("refused: %s", error)
        sys.exit(2)


def run_server(folder: str, address: str, certificates: str, log: str, settings: dict) -> None:
    """What `fedtree-secure serve` does."""
    from fedtree_secure.errors import FedTreeError, RunStopped
    from fedtree_secure.flower.job_folder import JobFolder
    from fedtree_secure.flower.serve import Control, serve
    from fedtree_secure.flower.transport import Patience

    log_to(Path(log))
    tries = settings.pop("tries", 5)
    try:
        control = Control(address, Path(certificates))
        serve(JobFolder(Path(folder)), control, Patience(**settings), tries)
    except RunStopped as stopped:
        logging.error("stopped: %s", stopped)
        sys.exit(1)
    except FedTreeError as error:
        logging.error("refused: %s", error)
        sys.exit(2)


def run_agent(site: str, socket: str, log: str) -> None:
    """What `fedtree-secure agent` does."""
    import torch

    from fedtree_secure.site.agent import Agent
    from fedtree_secure.site.site import Site

    log_to(Path(log))
    torch.set_num_threads(1)
    with Site.open(Path(site)) as opened:
        Agent(opened, Path(socket)).run(threading.Event())
