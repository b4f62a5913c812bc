"""`Transport` over Flower's Grid: deadlines, a quorum, and a reason for each missing reply.

A message lives no longer than its exchange: what a node fetches later was dropped by then, and
would be refused by the site, whose counter has moved on.
"""

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp.grid import Grid

from fedtree_secagg import Identity
from fedtree_secure.agreed import who
from fedtree_secure.agreed.stages import Exchange
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.events import Events
from fedtree_secure.flower.records import (
    MESSAGE_TYPE,
    WHO,
    Parcel,
    crossing,
    parcels_of,
    reply_of,
)

log = logging.getLogger("fedtree_secure.flower")
QUICK_S, SLOW_S = 0.2, 1.0  # between two looks for replies
WHO_S, WHO_SHARE = 15.0, 0.1  # for a name: so long, or so much of a deadline
ASK_AGAIN_S = 20.0  # after which a node that gave no good name is asked again


@dataclass(frozen=True)
class Patience:
    """How long a server waits.

    Attributes:
        deadline: Seconds of an exchange; who has not answered by then is a dropout of it.
        gather: Seconds for which sites are waited for at the start, and again until they have
            loaded the model and joined.
        enough: Share of the asked after whose replies an exchange ends early, `grace` seconds
            later; 1 waits for all until the deadline.
        grace: See ``enough``.
    """

    deadline: float = 300.0
    gather: float = 600.0
    enough: float = 1.0
    grace: float = 5.0

    def __post_init__(self) -> None:
        for name in ("deadline", "gather", "grace"):
            if not 0 < getattr(self, name) < 1e7:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; allowed: seconds above 0"
                )
        if not 0 < self.enough <= 1:
            raise ConfigurationError(f"enough is {self.enough!r}; allowed: above 0 and at most 1")


class GridTransport:
    """Carries requests to the nodes of the sites; see `Transport`.

    Args:
        grid: Flower's.
        key: The server's key pair: it asks nodes who they are.
        terms: Names, keys and run.
        patience: See `Patience`.
        events: Where to write what happens.
    """

    def __init__(
        self, grid: Grid, key: Identity, terms: Terms, patience: Patience, events: Events
    ) -> None:
        self._grid, self._key, self._terms = grid, key, terms
        self._patience, self._events = patience, events
        self._nodes: dict[str, int] = {}
        self._asked: dict[int, float] = {}

    @property
    def present(self) -> tuple[str, ...]:
        """Sites whose node is known, sorted."""
        return tuple(sorted(self._nodes))

    def gather(self, least: int) -> tuple[str, ...]:
        """Wait until every site of the roster is here, or the time for it is over.

        Args:
            least: So many must be here; fewer are waited for in any case.
        """
        began, said = time.monotonic(), -1
        while len(self._nodes) < len(self._terms.names):
            self._meet()
            over = time.monotonic() - began > self._patience.gather
            if over and len(self._nodes) >= least:
                break
            if len(self._nodes) != said:
                said = len(self._nodes)
                away = sorted(set(self._terms.names) - set(self._nodes))
                log.info("%d sites are here; waiting for %s", said, ", ".join(away) or "nobody")
                self._events("gathering", present=list(self.present), away=away)
            if len(self._nodes) < len(self._terms.names):
                time.sleep(SLOW_S)
        return self.present

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """See `Transport.exchange`."""
        if any(name not in self._nodes for name in requests):
            self._meet()
        began = time.monotonic()
        asked = {self._nodes[name]: name for name in requests if name in self._nodes}
        sealed = {node: requests[name] for node, name in asked.items()}
        parcels = parcels_of(self._terms.run, stage, sealed)
        deadline = self._patience.deadline
        if stage == Exchange.JOIN:  # models are loaded and noise is planned
            deadline = max(deadline, self._patience.gather)
        found, silent = self._ask(parcels, deadline)
        replies = {asked[node]: data for node, data in found.items()}
        reasons = {asked[node]: reason for node, reason in silent.items()}
        reasons |= {name: "no node" for name in requests if name not in self._nodes}
        for name, reason in reasons.items():
            log.warning("%s: no reply of %s (%s)", stage, name, reason)
        self._events(
            "exchange",
            stage=stage,
            asked=len(requests),
            answered=sorted(replies),
            missing=reasons,
            seconds=round(time.monotonic() - began, 3),
            bytes_out=crossing(parcels.values()),
            bytes_in=sum(map(len, replies.values())),
            messages=len(asked) + len(replies),
        )
        return replies

    def _meet(self) -> None:
        """Ask nodes that are new here which site they are."""
        now, known = time.monotonic(), set(self._nodes.values())
        fresh = [
            node
            for node in self._grid.get_node_ids()
            if node not in known and now - self._asked.get(node, -ASK_AGAIN_S) >= ASK_AGAIN_S
        ]
        if not fresh:
            return
        nonces = {node: secrets.token_bytes(who.NONCE) for node in fresh}
        self._asked |= dict.fromkeys(fresh, now)
        run = self._terms.run
        parcels = {
            node: Parcel(run, WHO, who.ask(self._key, run, str(node), nonces[node]))
            for node in fresh
        }
        patience = max(WHO_S, WHO_SHARE * self._patience.deadline)
        answers, _ = self._ask(parcels, patience)
        for node, data in answers.items():
            name = who.known(data, self._terms.roster, run, str(node), nonces[node])
            if name is None:
                log.warning("node %d is no site of the roster; it is left alone", node)
                continue
            log.info("%s is node %d", name, node)
            self._nodes[name] = node

    def _ask(
        self, parcels: Mapping[int, Parcel], deadline: float
    ) -> tuple[dict[int, bytes], dict[int, str]]:
        """Send to nodes; return what came back, and why the rest did not."""
        order = list(parcels)
        messages = [
            Message(
                parcels[node].content(),
                dst_node_id=node,
                message_type=MESSAGE_TYPE,
                ttl=deadline,
                group_id=parcels[node].stage,
            )
            for node in order
        ]
        began = time.monotonic()
        numbers = list(self._grid.push_messages(messages)) if messages else []
        waiting = {number: node for number, node in zip(numbers, order, strict=True) if number}
        reasons = {
            node: "not accepted by the SuperLink"
            for number, node in zip(numbers, order, strict=True)
            if not number
        }
        found, pause, enough_at = {}, QUICK_S, None
        while waiting:
            got = list(self._grid.pull_messages(list(waiting)))
            for reply in got:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                data = None if reply.has_error() else reply_of(reply)
                if data is None:
                    reasons[node] = "error of the network" if reply.has_error() else "no answer"
                else:
                    found[node] = data
            pause = QUICK_S if got else min(SLOW_S, pause * 1.2)
            if enough_at is None and len(found) >= self._patience.enough * len(order):
                enough_at = time.monotonic()
            if not waiting or self._over(began, deadline, enough_at):
                break
            time.sleep(pause)
        return found, reasons | dict.fromkeys(waiting.values(), "deadline")

    def _over(self, began: float, deadline: float, enough_at: float | None) -> bool:
        now = time.monotonic()
        early = enough_at is not None and now - enough_at > self._patience.grace
        return early or now - began > deadline
