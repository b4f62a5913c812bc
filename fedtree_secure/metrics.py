"""Events as Prometheus metrics, on a port of this machine alone.

Counters are made of events (`fedtree_secure.events`), so they hold nothing that events do not: no
key, no row, nothing that was measured on rows. The text format is a page of lines; writing them
needs no client library, which would also publish facts of the process that nobody asked for.
"""

import contextlib
import http.server
import importlib.metadata
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedtree_secure.agreed.stages import Exchange, kind_of
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.events import SCHEMA

HOST = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
NAMES = ("127.0.0.1", "localhost")  # under which it may be asked for: no page of a browser's
SECONDS = 10.0  # that a connection may take to ask

# name -> (kind, what it is)
METRICS = {
    "fedtree_up": ("gauge", "1 while this process works."),
    "fedtree_info": ("gauge", "1, with the version."),
    "fedtree_connected": ("gauge", "1 while a site's node is connected to its SuperLink."),
    "fedtree_starts_total": ("counter", "Starts of the server in its run."),
    "fedtree_rounds_planned": ("gauge", "Rounds of the job."),
    "fedtree_rounds_total": ("counter", "Rounds that are over; of a site, in which it answered."),
    "fedtree_epsilon_spent": ("gauge", "Epsilon spent of a data set, by all jobs on it."),
    "fedtree_epsilon_allowed": ("gauge", "Epsilon allowed for a data set."),
    "fedtree_messages_total": ("counter", "Messages that went out of this process, and came in."),
    "fedtree_bytes_total": ("counter", "Their bytes."),
    "fedtree_dropouts_total": ("counter", "Replies that are missing or do not count, by reason."),
    "fedtree_stage_seconds_total": ("counter", "Seconds from request to reply, by stage."),
    "fedtree_last_exchange_timestamp_seconds": ("gauge", "When a message last passed."),
}

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts events; give its `take` to `Events` as a listener.

    Args:
        refresh: Called before the counters are read.
    """

    def __init__(self, refresh: Callable[["Metrics"], None] = lambda _: None) -> None:
        self._refresh, self._lock = refresh, threading.RLock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._set("fedtree_up", 1)
        self._set("fedtree_info", 1, version=importlib.metadata.version("fedtree-secure"))

    def take(self, line: Mapping[str, Any]) -> None:
        """Count an event; one that counts nothing is left alone."""
        count = _COUNTED.get(line["event"])
        if count is not None:
            with self._lock:
                count(self, line)

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        with self._lock:
            self._refresh(self)
            found = sorted(self._values.items())
        lines = []
        for name, (kind, told) in METRICS.items():
            values = [(labels, value) for (owner, labels), value in found if owner == name]
            if values:
                lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_braces(labels)} {value:.15g}" for labels, value in values]
        return "\n".join(lines) + "\n"

    @contextlib.contextmanager
    def served(self, port: int | None) -> Iterator[int | None]:
        """Answer ``http://127.0.0.1:PORT/metrics`` as long as this is open.

        Args:
            port: None serves nothing; 0 takes a free one.

        Raises:
            ConfigurationError: The port cannot be taken.
        """
        if port is None:
            yield None
            return
        with _bound(port, self.text) as server:
            thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
            thread.start()
            try:
                yield int(server.server_address[1])
            finally:
                server.shutdown()
                thread.join()

    # --- events -----------------------------------------------------------------------------------

    def _started(self, line: Mapping[str, Any]) -> None:
        self._add("fedtree_starts_total", 1)
        self._set("fedtree_rounds_planned", line["rounds"])

    def _exchange(self, line: Mapping[str, Any]) -> None:
        out, back = line["messages"] - len(line["answered"]), len(line["answered"])
        self._passed(line, (out, line["bytes_out"]), (back, line["bytes_in"]))
        for reason in line["missing"].values():
            self._add("fedtree_dropouts_total", 1, reason=_reason(reason))

    def _round(self, line: Mapping[str, Any]) -> None:
        self._add("fedtree_rounds_total", int(line["round"] > 0))  # the merge before them is none
        for reason in line["dropouts"].values():  # that no exchange shows: replies that came
            if reason.startswith(("refused", "invalid")):
                self._add("fedtree_dropouts_total", 1, reason=_reason(reason))

    def _budget(self, line: Mapping[str, Any]) -> None:
        for what in ("spent", "allowed"):
            value = line[f"epsilon_{what}"]
            self._set(f"fedtree_epsilon_{what}", value, dataset=line["dataset"])

    def _answered(self, line: Mapping[str, Any]) -> None:
        well = line["answered"]
        self._passed(line, (int(well), line["bytes_out"]), (1, line["bytes_in"]))
        if not well:
            self._add("fedtree_dropouts_total", 1, reason="no answer")
        elif _kind(line["stage"]) in (Exchange.MASK, Exchange.ALONE):
            self._add("fedtree_rounds_total", int(not line["stage"].startswith("round-0/")))

    def _connected(self, line: Mapping[str, Any]) -> None:
        self._set("fedtree_connected", int(line["event"] == "connected"))

    def _passed(self, line: Mapping[str, Any], out: tuple[int, int], back: tuple[int, int]) -> None:
        for direction, (messages, size) in (("out", out), ("in", back)):
            self._add("fedtree_messages_total", messages, direction=direction)
            self._add("fedtree_bytes_total", size, direction=direction)
        self._add("fedtree_stage_seconds_total", line["seconds"], stage=_kind(line["stage"]))
        self._set("fedtree_last_exchange_timestamp_seconds", line["time"])

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._values[name, tuple(sorted(labels.items()))] = value

    def _add(self, name: str, value: float, **labels: str) -> None:
        key = name, tuple(sorted(labels.items()))
        self._values[key] = self._values.get(key, 0) + value


_COUNTED: Mapping[str, Callable[[Metrics, Mapping[str, Any]], None]] = {
    "started": Metrics._started,
    "exchange": Metrics._exchange,
    "round": Metrics._round,
    "budget": Metrics._budget,
    "answered": Metrics._answered,
    "connected": Metrics._connected,
    "waiting": Metrics._connected,
}


class EventReader:
    """Counts the events that another process writes: what is new in the file at each look.

    Args:
        path: The file of events; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def __call__(self, metrics: Metrics) -> None:
        """Count whole new lines; those of another schema, or torn, are left out."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._read:  # it was put aside, and another one begun
                    self._read = 0
                file.seek(self._read)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                found = json.loads(line)
                if found.get("schema") == SCHEMA:
                    metrics.take(found)


def check_port(port: int | None) -> None:
    """Refuse what is no port to name; None is well.

    Raises:
        ConfigurationError: See above.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ConfigurationError(f"metrics is {port}; allowed: a port from 1 to 65535")


@contextlib.contextmanager
def _bound(port: int, text: Callable[[], str]) -> Iterator[http.server.ThreadingHTTPServer]:
    class Page(http.server.BaseHTTPRequestHandler):
        """Answers one path, and says nothing of this process beside."""

        timeout = SECONDS
        server_version, sys_version = "fedtree-secure", ""

        def do_GET(self) -> None:
            """Answer with the metrics."""
            if self.headers.get("Host", HOST).partition(":")[0] not in NAMES:
                self.send_error(403)
            elif self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
            else:
                body = text().encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are no news."""

    try:
        server = http.server.ThreadingHTTPServer((HOST, port), Page)
    except OSError as error:
        raise ConfigurationError(
            f"metrics cannot be served on {HOST}:{port}: {error.strerror}; give another port"
        ) from None
    with server:
        yield server


def _kind(stage: str) -> str:
    """The exchange that a stage is; what a network calls otherwise is no label of ours."""
    try:
        return str(kind_of(stage))
    except ValueError:
        return "other"


def _reason(text: str) -> str:
    """A reason as a label: ours are short words."""
    return text if len(text) <= 48 and text.isprintable() else "other"


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    shown = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{shown}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
