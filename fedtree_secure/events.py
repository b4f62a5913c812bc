"""What happens in a run as lines of JSON: for operators and their dashboards.

An event holds names, stages, rounds, counts, epsilon, bytes and seconds. It never holds a key, a
row or a value of an update, nothing that was measured on rows, and no text of an error.
`docs/events.md` says what each fact means; what is not in `FACTS` cannot be written.
"""

import json
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtree_secure.errors import ConfigurationError

log = logging.getLogger("fedtree_secure.events")
SCHEMA = 1  # of a line; a new number when a fact changes its meaning or goes away

# Every line has schema, time, event and, once it is known, the run.
FACTS: Mapping[str, frozenset[str]] = {
    name: frozenset(facts.split())
    for name, facts in {
        "started": "name job settings clients rounds resumed process version",
        "gathering": "present away",
        "stage": "stage clients",
        "exchange": "stage asked answered missing seconds bytes_out bytes_in messages",
        "tree": "layers",
        "budget": "dataset epsilon_spent epsilon_allowed delta",
        "round": (
            "round rounds opened closed dropouts error epsilon seconds bytes_out bytes_in messages"
        ),
        "away": "away",
        "advice": "key text",
        "note": "text",
        "ended": "state code round error",
        "connected": "site node",
        "waiting": "site reason",
        "answered": "site stage answered seconds bytes_out bytes_in",
    }.items()
}
ALWAYS = ("schema", "time", "event", "run")

Listener = Callable[[Mapping[str, Any]], None]


class Events:
    """Appends events to a file, and hands them to listeners in this process.

    A line that cannot be written later in a run is lost, and said once: no charge is wasted for it.

    Args:
        path: The file; None to keep none.
        listeners: Are given each event, as a mapping.
    """

    def __init__(self, path: Path | None = None, listeners: Sequence[Listener] = ()) -> None:
        self._file = None if path is None else _File(path)
        self._listeners, self._run = tuple(listeners), ""

    def check(self) -> None:
        """Look whether events can be written.

        Raises:
            ConfigurationError: They cannot.
        """
        if self._file is not None:
            self._file.check()

    def of(self, run: str, *listeners: Listener) -> "Events":
        """Return the same for the events of a run, with more listeners."""
        found = Events(None, (*self._listeners, *listeners))
        found._file, found._run = self._file, run
        return found

    def __call__(self, event: str, **facts: Any) -> None:
        """Write one event, with its time in seconds since 1970.

        Raises:
            ValueError: There is no such event, or a fact is not one of its facts.
        """
        if unknown := set(facts) - FACTS.get(event, frozenset()) - {"run"}:
            raise ValueError(f"event {event!r} has no facts {', '.join(sorted(unknown))}")
        head: dict[str, Any] = {"schema": SCHEMA, "time": round(time.time(), 3), "event": event}
        line = {**head, **({"run": self._run} if self._run else {}), **facts}
        for listener in self._listeners:
            listener(line)
        if self._file is not None:
            self._file.append(json.dumps(line).encode() + b"\n")


class _File:
    """A file that whole lines are appended to, one write each, by any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = self._failed = False

    def check(self) -> None:
        """See `Events.check`. A torn last line, of a process that died, will be ended."""
        try:
            kind = self._path.stat().st_mode if self._path.exists() else stat.S_IFREG
            if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
                raise ConfigurationError(
                    f"events cannot be written to {self._path}: it is no file; name a file"
                )
            with self._path.open("ab") as file:
                size = file.tell() if stat.S_ISREG(kind) else 0
            if size:
                with self._path.open("rb") as file:
                    file.seek(-1, os.SEEK_END)
                    self._torn = file.read(1) != b"\n"
        except OSError as error:
            raise ConfigurationError(
                f"events cannot be written to {self._path}: {error.strerror}; name a file in a "
                "folder that is there and that you may write to"
            ) from None

    def append(self, line: bytes) -> None:
        """Append a line; one that cannot be written is lost."""
        whole = b"\n" + line if self._torn else line
        try:
            with self._path.open("ab", buffering=0) as file:
                written = file.write(whole) or 0
        except OSError as error:
            if not self._failed:
                log.warning("events are lost, %s cannot be written: %s", self._path, error.strerror)
            self._failed = True
            return
        self._torn = written < len(whole)
