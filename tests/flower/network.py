"""A network on 127.0.0.1: SuperLink with TLS and node authentication, nodes, a server."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from authority import make_authority, make_node_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from processes import run_agent, run_node, run_server

from fedtree_secure.errors import ConfigurationError
from fedtree_secure.reach import reach

IMPORTED = [
    "torch",
    "transformers",
    "datasets",
    "fedtree_secure.client.participant",
    "fedtree_secure.model.backbone",
    "fedtree_secure.site.site",
    "fedtree_secure.flower.node",
    "fedtree_secure.flower.serve",
    "processes",
]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(IMPORTED)


class Network:
    """A SuperLink and what is connected to it; a context manager that ends every process.

    Args:
        organisations: See there; sites and the server's folder.
        settings: Of `Patience`, and ``tries``.
        seed: For seeded randomness at the sites; empty for none.
        database: Whether the SuperLink remembers anything when it is killed.
    """

    def __init__(self, organisations, *, seed: str = "", database: bool = False, **settings):
        self.organisations, self.seed, self.database = organisations, seed, database
        self.settings = {"deadline": 60.0, "gather": 60.0, "tries": 2, **settings}
        self.root = organisations.root
        self.logs = self.root / "logs"
        self.tls = self.root / "tls"
        self.processes: dict = {}
        self.link, self.stock = None, []

    @property
    def ca(self) -> Path:
        return self.tls / "ca.crt"

    def __enter__(self):
        self.logs.mkdir(exist_ok=True)
        make_authority(self.tls)
        self.address = f"127.0.0.1:{free_port()}"
        self.start_link()
        for name in self.organisations.names:
            self.register(name)
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            if process.is_alive():
                process.kill()
            process.join()
        for node in self.stock:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        self.kill_link()

    # --- the SuperLink --------------------------------------------------------------------------

    def start_link(self) -> None:
        with (self.logs / "superlink.log").open("a") as log:
            self.link = self._popen_link(log)
        self.until(self._answers, "the SuperLink answers", 60)

    def _popen_link(self, log):
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("flower-superlink")),
                *("--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]),
                *("--ssl-ca-certfile", str(self.ca)),
                *("--ssl-certfile", str(self.tls / "server.pem")),
                *("--ssl-keyfile", str(self.tls / "server.key")),
                *(("--database", str(self.root / "superlink.db")) if self.database else ()),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
            env={
                **self._environment(),
                "FLWR_HOME": str(self.root / "flwr"),
                "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @staticmethod
    def _environment() -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path}

    def _answers(self) -> bool:
        with contextlib.suppress(ConfigurationError):
            reach(self.address, self.ca)
            return True
        return False

    def kill_link(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.link.pid, signal.SIGKILL)
        self.link.wait()

    def register(self, name: str) -> None:
        """What `flwr supernode register` does."""
        public = make_node_key(self.node_key(name))
        client = ControlHttpClient.from_server_address(
            self.address, False, self.ca.read_bytes(), interceptors=[]
        )
        with client:
            asked = RegisterNodeRequest(public_key=public_key_to_bytes(public))
            assert client.RegisterNode(asked).node_id

    def node_key(self, name: str) -> Path:
        return self.tls / f"node-{name}"

    # --- nodes and server -----------------------------------------------------------------------

    def start(self, *names: str, ca: Path | None = None, key: Path | None = None) -> None:
        for name in names or self.organisations.names:
            self._run(
                name,
                run_node,
                str(self.organisations.site(name)),
                self.address,
                str(ca or self.ca),
                str(key or self.node_key(name)),
                str(self.logs / f"{name}.log"),
                self.seed,
            )

    def start_stock(self, name: str) -> None:
        """A site behind a stock SuperNode: its agent, and the SuperNode."""
        place = self.root / f"{name}.sock"
        site, log = str(self.organisations.site(name)), str(self.logs / f"{name}.log")
        self._run(name, run_agent, site, str(place), log)
        self.until(place.is_socket, "the agent listens")
        key = self.node_key(name)
        with (self.logs / f"{name}-supernode.log").open("a") as said:
            command = [
                str(Path(sys.executable).with_name("flower-supernode")),
                *("--superlink", self.address, "--root-certificates", str(self.ca)),
                *("--auth-supernode-private-key", str(key)),
                *("--host", "127.0.0.1", "--port", str(free_port())),
                *("--node-config", f'agent="{place}"'),
            ]
            environment = {**self._environment(), "FLWR_HOME": str(self.root / f"flwr-{name}")}
            self.stock.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def serve(self) -> None:
        log = str(self.logs / "serve.log")
        folder = str(self.organisations.folder)
        self._run("serve", run_server, folder, self.address, str(self.ca), log, self.settings)

    def _run(self, name: str, target, *arguments) -> None:
        process = FORK.Process(target=target, args=arguments, name=name)
        process.start()
        self.processes[name] = process

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].join()

    def ended(self, name: str = "serve", seconds: float = 120.0) -> int:
        """Wait for a process; return its exit code."""
        self.processes[name].join(seconds)
        if self.processes[name].exitcode is None:
            raise AssertionError(f"{name} did not end in {seconds:g} s\n{self.said()}")
        return self.processes[name].exitcode

    # --- what happened --------------------------------------------------------------------------

    def events(self, kind: str | None = None) -> list[dict]:
        path = self.organisations.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [event for event in found if kind in (None, event["event"])]

    def exchanged(self, stage: str) -> list[dict]:
        return [event for event in self.events("exchange") if event["stage"] == stage]

    def log(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def said(self) -> str:
        """The end of every log, for a test that fails."""
        every = sorted(self.logs.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2500:]}" for path in every)

    def until(self, holds, what: str, seconds: float = 90.0) -> None:
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                raise AssertionError(f"in {seconds:g} s not: {what}\n{self.said()}")
            time.sleep(0.05)

    def until_exchange(self, stage: str) -> None:
        self.until(lambda: self.exchanged(stage), f"exchange {stage}")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def copy_store(organisations, name: str, to: Path) -> None:
    """A backup of a site's store and head."""
    for place in ("state", "heads"):
        shutil.copytree(organisations.site(name) / place, to / place, dirs_exist_ok=True)
