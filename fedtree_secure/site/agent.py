"""A site's agent: the warm process that owns rows, key and ledger behind a stock SuperNode.

The SuperNode runs code that its SuperLink sends, so it runs as another user, who can read nothing
of the site and reaches the agent's socket alone. What comes over it is answered like what comes
over a network.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fedtree_secure.errors import ConfigurationError
from fedtree_secure.site.site import Site
from fedtree_secure.site.socket_link import Asked, Told, fits, receive, send

log = logging.getLogger("fedtree_secure.site")
LOOK_S = 1.0  # between two looks whether to stop
STALLED_S = 30.0  # a connection that sends nothing for so long is given up
SOCKET_MODE = 0o660  # the operator gives the SuperNode's user this group


class Agent:
    """Answers requests that a forwarding ClientApp brings.

    Args:
        site: The site, open.
        path: Where to listen. What lies there from an earlier process is taken away.

    Raises:
        ConfigurationError: The path is too long for a socket, or is no socket.
    """

    def __init__(self, site: Site, path: Path) -> None:
        if not fits(path):
            raise ConfigurationError(f"the socket's path {path} is too long; allowed: 100 bytes")
        if path.exists() and not path.is_socket():
            raise ConfigurationError(f"{path} is there and is no socket; name another path")
        self._site, self._path = site, path

    def run(self, stop: threading.Event) -> None:
        """Answer until told to stop."""
        with self._listening() as server:
            log.info("%s listens at %s", self._site.name, self._path)
            while not stop.is_set():
                try:
                    link, _ = server.accept()
                except TimeoutError:
                    self._site.settle()
                    continue
                with link:
                    link.settimeout(STALLED_S)
                    self._answer(link)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self._path))
            self._path.chmod(SOCKET_MODE)
            server.listen()
            server.settimeout(LOOK_S)
            try:
                yield server
            finally:
                self._path.unlink(missing_ok=True)

    def _answer(self, link: socket.socket) -> None:
        try:
            asked = msgspec.msgpack.decode(receive(link), type=Asked)
        except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
            log.warning("what came over the socket is no request: %s", type(error).__name__)
            return
        if asked.run:
            data = self._site.handle(asked.run, asked.data)
        else:
            data = self._site.who(asked.data, asked.node)
        with contextlib.suppress(OSError):  # who asked is gone
            send(link, Told(data is not None, data or b""))
