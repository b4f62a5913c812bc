"""``fedtree-secure serve``: runs a job to its end over any number of Flower's runs.

It starts a run at the SuperLink, which starts our ServerApp beside itself, and watches the lock of
the job's state. Where the lock is free and the job not finished, whoever held it died or stopped,
and another run continues: after a killed ServerApp as after a killed SuperLink.
"""

import fcntl
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedtree_secure.errors import ConfigurationError, RunStopped
from fedtree_secure.flower.job_folder import FINISHED, REFUSED, STOPPED, JobFolder, Outcome
from fedtree_secure.flower.transport import Patience
from fedtree_secure.reach import reach

log = logging.getLogger("fedtree_secure.flower")

BEGIN_S = 90.0  # from `flwr run` until the ServerApp holds the state
LOOK_S = 0.5
LONGEST_BREAK_S = 30.0
NAME, BOX = "fedtree", "─│╭╮╰╯"
APP = {
    "pyproject.toml": """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "fedtree-server"
version = "1.0.0"
description = "Starts a server of fedtree-secure; sites run `fedtree-secure node`"
license = "Apache-2.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "fedtree-secure"
[tool.flwr.app.components]
serverapp = "fedtree_server.server:server"
clientapp = "fedtree_server.client:client"
[tool.flwr.app.config]
folder = ""
start = ""
events = ""
deadline = 300.0
gather = 600.0
enough = 1.0
grace = 5.0
""",
    "fedtree_server/__init__.py": "",
    "fedtree_server/server.py": """from fedtree_secure.flower import server_app

server = server_app.app
""",
    # For stock SuperNodes with an agent; own nodes never load it.
    "fedtree_server/client.py": """from fedtree_secure.flower import forward

client = forward.app
""",
}


@dataclass(frozen=True)
class Control:
    """The SuperLink at which runs are started.

    Attributes:
        address: ``HOST:PORT`` of its control API; never open to the world.
        certificates: PEM file of the authority that signed its certificate; None without TLS.
    """

    address: str
    certificates: Path | None = None


def serve(folder: JobFolder, control: Control, patience: Patience, tries: int = 5) -> Outcome:
    """Run a job to its end.

    Args:
        folder: Of the job.
        control: Where to start runs.
        patience: See `Patience`.
        tries: Starts in a row without another finished round, after which it gives up.

    Returns:
        How it ended: finished.

    Raises:
        RunStopped: Too few sites were there, again and again; what was finished is kept.
        FedTreeError: Something in the folder cannot be used.
    """
    folder.check()
    with tempfile.TemporaryDirectory() as home:
        _write_home(Path(home), control)
        idle, before = 0, -2
        while True:
            found = folder.outcome()
            if found is not None and found.state == FINISHED:
                return found
            start = _start(Path(home), folder, control, patience)
            ended = _follow(folder, start)
            if ended is not None and ended.state == REFUSED:
                raise ConfigurationError(ended.reason)
            if ended is not None and ended.state == FINISHED:
                return ended
            reason = "the ServerApp ended" if ended is None else ended.reason
            now = before if ended is None else ended.finished_round
            idle = 1 if now > before else idle + 1
            before = max(before, now)
            log.warning("stopped: %s", reason)
            if idle >= tries and ended is not None and ended.state == STOPPED:
                raise RunStopped(f"{reason}. What was finished is kept; `serve` continues it")
            time.sleep(min(LONGEST_BREAK_S, 2.0 ** min(idle, 5)))


def _start(home: Path, folder: JobFolder, control: Control, patience: Patience) -> str:
    """Start one of Flower's runs; waits for a SuperLink that is away. Returns the start's name."""
    breaks = 0
    while True:
        try:
            reach(control.address, control.certificates, insecure=control.certificates is None)
            start = secrets.token_hex(8)
            _flwr_run(home, folder, patience, start)
            return start
        except ConfigurationError as error:
            if "certificate" in str(error):
                raise
            log.warning("%s; trying again", error)
        except subprocess.CalledProcessError as error:
            log.warning("`flwr run` failed: %s; trying again", _said(error)[-500:] or "silent")
        breaks += 1
        time.sleep(min(LONGEST_BREAK_S, 2.0 ** min(breaks, 5)))


def _flwr_run(home: Path, folder: JobFolder, patience: Patience, start: str) -> None:
    settings: dict[str, Any] = {
        "folder": str(folder.path.resolve()),
        "start": start,
        "events": str(folder.events.resolve()),
    }
    settings |= {name: float(value) for name, value in asdict(patience).items()}
    config = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    subprocess.run(
        [sys.executable, "-m", "flwr.cli.app", "run", str(home / "app"), NAME, "-c", config],
        env=_environment(home),
        check=True,
        capture_output=True,
        text=True,
    )


def _said(error: subprocess.CalledProcessError) -> str:
    """What Flower's command line said, without the boxes that it draws."""
    return " ".join((error.stdout + error.stderr).translate(dict.fromkeys(map(ord, BOX))).split())


def _environment(home: Path) -> dict[str, str]:
    """Flower's command line without telemetry, update checks and the user's own settings."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return {**os.environ, **quiet, "FLWR_HOME": str(home)}


def _write_home(home: Path, control: Control) -> None:
    for name, text in APP.items():
        path = home / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    trust = (
        "insecure = true"
        if control.certificates is None
        else f"root-certificates = {json.dumps(str(control.certificates.resolve()))}"
    )
    address = json.dumps(control.address)
    text = f'[superlink]\ndefault = "{NAME}"\n[superlink.{NAME}]\naddress = {address}\n{trust}\n'
    (home / "config.toml").write_text(text, "utf-8")


def _follow(folder: JobFolder, start: str) -> Outcome | None:
    """Wait until a start has ended; None if it ended without a word."""
    began, seen = time.monotonic(), False
    while True:
        found = folder.outcome()
        if found is not None and found.start == start:
            return found
        if _held(folder.state):
            seen = True
        elif seen or time.monotonic() - began > BEGIN_S:
            found = folder.outcome()  # written between two looks
            return found if found is not None and found.start == start else None
        time.sleep(LOOK_S)


def _held(state: Path) -> bool:
    """Whether a process holds the state's folder."""
    try:
        with (state / ".lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
