"""A site's node: one warm process that asks its SuperLink for messages and answers them.

It runs no code that a server sends. Model, rows, session and store stay in memory between messages.
It waits for a SuperLink that is away, with longer and longer breaks, and says so.
"""

import logging
import random
import socket
import threading
import time
from dataclasses import dataclass

import msgspec
from flwr.app import Message

from fedtree_secure.events import Events
from fedtree_secure.flower.fleet import Fleet, FleetLink, KeyRefused, Unreachable
from fedtree_secure.flower.records import WHO, Parcel, parcel_of, reply_content
from fedtree_secure.site.site import Site
from fedtree_secure.storage import PRIVATE_FILE, write_json

log = logging.getLogger("fedtree_secure.flower")

# Between two questions for messages: at work, and after a while idle. A question costs some 13 ms
# of the SuperLink's processor, so twenty nodes at work keep it busy.
QUICK_S, SLOW_S = 0.3, 2.0
IDLE_S = 20.0  # so long after a message, a node counts as at work
LONGEST_BREAK_S = 30.0


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: int
    host: str


@dataclass(frozen=True)
class Waiting:
    """How a node waits.

    Attributes:
        patience: Seconds for which a key that is refused is tried again; a SuperLink that does not
            answer is waited for without end.
    """

    patience: float = 120.0


class SiteNode:
    """Runs a site behind a SuperLink.

    Args:
        site: The site, open.
        link: How to reach the SuperLink.
        events: Where to write what happens.
        waiting: See `Waiting`.
    """

    def __init__(
        self, site: Site, link: FleetLink, events: Events, waiting: Waiting | None = None
    ) -> None:
        self._site, self._link, self._events = site, link, events
        self._waiting = waiting or Waiting()
        self._remembered = site.settings.runs / "node.json"
        self._busy = time.monotonic()
        self._untold = True  # whether the budget may have changed since it was told

    def run(self, stop: threading.Event) -> None:
        """Answer messages until told to stop.

        Raises:
            ConfigurationError: The certificate or the node's key cannot be used.
            KeyRefused: For longer than this node's patience.
        """
        breaks, refused = 0, None
        while not stop.is_set():
            try:
                with Fleet(self._link, self._before()) as fleet:
                    breaks, refused = 0, None
                    self._remember(fleet.node)
                    log.info("%s is connected as node %d", self._site.name, fleet.node)
                    self._events("connected", site=self._site.name, node=str(fleet.node))
                    self._answer_all(fleet, stop)
            except Unreachable as error:
                self._say(error)
            except KeyRefused as error:
                refused = refused or time.monotonic()
                if time.monotonic() - refused > self._waiting.patience:
                    raise
                self._say(error)
            breaks += 1
            stop.wait(min(LONGEST_BREAK_S, 2.0 ** min(breaks, 5)) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _say(self, error: Exception) -> None:
        log.warning("%s; trying again", error)
        self._events("waiting", site=self._site.name, reason=type(error).__name__)

    def _answer_all(self, fleet: Fleet, stop: threading.Event) -> None:
        while not stop.is_set():
            message = fleet.receive()
            if message is None:
                self._site.settle()
                self._tell_budget()
                stop.wait(self._pause())
                continue
            self._busy = time.monotonic()
            self._answer(fleet, message)

    def _pause(self) -> float:
        """Seconds until the next question: the longer idle, the longer, up to `SLOW_S`."""
        idle = time.monotonic() - self._busy
        return QUICK_S if idle < IDLE_S else min(SLOW_S, QUICK_S * idle / IDLE_S)

    def _answer(self, fleet: Fleet, message: Message) -> None:
        parcel = parcel_of(message)
        if parcel is None:
            log.warning("a message of another application is left unanswered")
            return
        began = time.monotonic()
        data = self._ask_site(fleet, parcel)
        seconds = time.monotonic() - began
        self._untold = True
        fleet.reply(message, reply_content(data), seconds)
        self._events(
            "answered",
            site=self._site.name,
            run=parcel.run[:64],
            stage=parcel.stage[:64],
            answered=data is not None,
            seconds=round(seconds, 3),
            bytes_in=len(parcel.data),
            bytes_out=len(data or b""),
        )

    def _tell_budget(self) -> None:
        """Say what is spent, between messages: no reply waits for it."""
        if self._untold:
            self._untold = False
            self._events("budget", **self._site.budget())

    def _ask_site(self, fleet: Fleet, parcel: Parcel) -> bytes | None:
        if parcel.stage == WHO:
            return self._site.who(parcel.data, str(fleet.node))
        return self._site.handle(parcel.run, parcel.data)

    # --- the node's number ----------------------------------------------------------------------

    def _before(self) -> int | None:
        """The number that this node had here; on another machine, a copy of the folder has none."""
        try:
            found = msgspec.json.decode(self._remembered.read_bytes(), type=_Known)
        except (OSError, msgspec.DecodeError):
            return None
        return found.node if found.host == socket.gethostname() else None

    def _remember(self, node: int) -> None:
        write_json(self._remembered, {"node": node, "host": socket.gethostname()}, PRIVATE_FILE)
