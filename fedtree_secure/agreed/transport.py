"""What carries bytes between the server and the clients.

A transport is handed one request for each client and returns the replies that came; a missing reply
is a dropout. It is never trusted: everything that must not be read or changed on the way is
protected by the protocols inside.
"""

from collections.abc import Mapping
from typing import Protocol


class Transport(Protocol):
    """Carries one request to each of some clients and brings back what they answer."""

    def exchange(self, stage: str, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        """Deliver ``requests`` by client id; return replies by client id, without those that did
        not answer.
        """
        ...
