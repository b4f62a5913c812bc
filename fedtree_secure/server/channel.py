"""The server's way to its clients: requests signed and numbered, replies decoded, faults by name.

No reply can stop the server: what does not decode counts as no reply, and its sender is named.
"""

import logging
from collections.abc import Callable, Mapping

from fedtree_secagg import Identity
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.cohort import leave_bytes
from fedtree_secure.agreed.envelope import Requests
from fedtree_secure.agreed.stages import REQUESTS_OF_A_START
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.transport import Transport
from fedtree_secure.errors import ConfigurationError, RunStopped

log = logging.getLogger("fedtree_secure.server")
Missed = Callable[[str, Mapping[str, str]], None]


class Channel:
    """Signs requests and reads replies.

    Args:
        terms: What everybody pinned; names the server's key.
        key: The server's key pair.
        transport: Carries bytes; it is not trusted.
        start: How often this server has started in the run, this time included, from 1.
        answered: Number of the last request that each client answered, from earlier starts.
        missed: Called after each exchange with whose replies are missing or refuse, and why.

    Attributes:
        answered: As given, kept up to date.
        left: Who said, signed, that it leaves the run for good.
        asked: Number of the last request to each client, in this start.

    Raises:
        ConfigurationError: The key is not the one that the terms pin.
    """

    def __init__(
        self,
        terms: Terms,
        key: Identity,
        transport: Transport,
        start: int,
        answered: Mapping[str, int],
        missed: Missed = lambda *_: None,
    ) -> None:
        if key.public_bytes != terms.server_key:
            raise ConfigurationError("the server's key is not the one that the job pins")
        self._terms, self._key, self._transport = terms, key, transport
        self._counter = start * REQUESTS_OF_A_START
        self._missed = missed
        self.answered = dict(answered)
        self.left: dict[str, bytes] = {}
        self.asked: dict[str, int] = {}

    def exchange(
        self, name: str, requests: Mapping[str, wire.Message], *, needed: bool = True
    ) -> dict[str, wire.Reply]:
        """Send requests, return the replies that came and decode.

        Args:
            name: Of the exchange.
            requests: By client; equal ones are one object.
            needed: Whether the run cannot go on without a reply.

        Raises:
            RunStopped: Nobody answered, and somebody had to.
        """
        if not requests:
            return {}
        self._counter += 1
        self.asked |= dict.fromkeys(requests, self._counter)
        sealed = Requests(self._key, self._terms.run, self._counter, self.answered, requests)
        answers = self._transport.exchange(name, sealed)
        replies = {client: self._read(name, client, data) for client, data in answers.items()}
        found = {client: reply for client, reply in replies.items() if reply is not None}
        reasons = {client: _why_missing(client, replies) for client in requests}
        reasons |= dict.fromkeys(self.left.keys() & reasons.keys(), "left for good")
        if reasons := {client: reason for client, reason in reasons.items() if reason}:
            self._missed(name, reasons)
        if not found and needed:
            raise RunStopped(f"no client answered at stage {name}")
        return found

    def _read(self, name: str, client: str, data: bytes) -> wire.Reply | None:
        if client not in self._terms.roster:
            return None
        try:
            reply = wire.decode_reply(data)
        except wire.WireError as error:
            log.warning("client %s sent no valid reply at stage %s: %s", client, name, error)
            return None
        if isinstance(reply, wire.Left):
            if self._terms.roster.verifies(
                client, reply.signature, leave_bytes(self._terms, client)
            ):
                self.left[client] = reply.signature
            return None
        if isinstance(reply, wire.Refused):
            log.warning("client %s refuses at stage %s: %s", client, name, reply.reason)
        else:
            self.answered[client] = self._counter
        return reply


def _why_missing(client: str, replies: Mapping[str, wire.Reply | None]) -> str:
    """Why a client's reply does not count; empty where it does. Words of ours, none of its own."""
    if client not in replies:
        return "no reply"
    reply = replies[client]
    if reply is None:
        return "invalid reply"
    return f"refused: {reply.reason}" if isinstance(reply, wire.Refused) else ""


def payloads(replies: Mapping[str, wire.Reply]) -> dict[str, bytes]:
    """Return what protocol replies carry, by client."""
    return {n: reply.payload for n, reply in replies.items() if isinstance(reply, wire.Protocol)}


def refusals(replies: Mapping[str, wire.Reply]) -> dict[str, str]:
    """Return the reason of each client that refused."""
    return {n: reply.reason for n, reply in replies.items() if isinstance(reply, wire.Refused)}
