"""How bytes reach a site's agent on the same machine: a request and its reply over a unix socket.

Whoever may connect is trusted as little as a network: the agent looks at nothing that the pinned
server did not sign. Imported by a process that lives for one message, so nothing heavy is imported.
"""

import socket
from pathlib import Path

import msgspec

LONGEST = 2**28  # bytes of a message
_HEAD = 4
_PATH = 100  # bytes that a socket's path may have; the system's own limit is 107


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a node forwards.

    Attributes:
        run: Name of the run; empty for the question who this is.
        node: The node's number in the network.
        data: The bytes that came.
    """

    run: str
    node: str
    data: bytes


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The site's reply; ``data`` is meaningful if it is one."""

    answered: bool
    data: bytes


def ask(path: Path, asked: Asked, seconds: float) -> bytes | None:
    """Return the reply of the agent behind a socket; None for silence.

    Raises:
        OSError: Nobody listens there, or not for so long.
        ValueError: What came back is no reply.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(seconds)
        link.connect(str(path))
        send(link, asked)
        found = msgspec.msgpack.decode(receive(link), type=Told)
    return found.data if found.answered else None


def send(link: socket.socket, message: msgspec.Struct) -> None:
    """Write one message."""
    data = msgspec.msgpack.encode(message)
    link.sendall(len(data).to_bytes(_HEAD, "big") + data)


def receive(link: socket.socket) -> bytes:
    """Read one message.

    Raises:
        ValueError: It is cut off, or longer than `LONGEST`.
    """
    size = int.from_bytes(_exactly(link, _HEAD), "big")
    if size > LONGEST:
        raise ValueError(f"a message of {size} bytes; allowed are {LONGEST}")
    return _exactly(link, size)


def fits(path: Path) -> bool:
    """Whether a path is short enough for a socket."""
    return len(str(path).encode()) <= _PATH


def _exactly(link: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = link.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise ValueError(f"cut off after {len(parts)} of {size} bytes")
        parts += part
    return bytes(parts)
