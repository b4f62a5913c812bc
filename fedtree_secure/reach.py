"""Whether a SuperLink can be reached from here: port, certificate, clock. Sends nothing of a site.

Standard library alone, so that ``site check`` runs where Flower is not installed.
"""

import datetime
import email.utils
import http.client
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from fedtree_secure.errors import ConfigurationError

PATIENCE_S = 10.0
AHEAD_S, BEHIND_S = 5.0, 300.0  # Flower refuses a node whose clock is farther off


def clock_is_off(ahead: float) -> bool:
    """Say whether a clock is so far off that a SuperLink refuses the node.

    Args:
        ahead: Seconds by which it is ahead of the SuperLink's.
    """
    return not -BEHIND_S < ahead < AHEAD_S


@dataclass(frozen=True)
class Reach:
    """What was found.

    Attributes:
        expires: When the certificate ends, UTC; None without TLS.
        clock: Seconds by which this machine's clock is ahead of the server's; None if it did not
            say.
    """

    expires: datetime.datetime | None
    clock: float | None


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; `ConfigurationError` if it is no such address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(
            f"the SuperLink's address is {address!r}; allowed: HOST:PORT, as fl.example.org:443"
        )
    return host.strip("[]"), int(port)


def reach(address: str, certificates: Path | None, *, insecure: bool = False) -> Reach:
    """Connect to a SuperLink once.

    Args:
        address: ``HOST:PORT``.
        certificates: PEM file of the authority that signed its certificate; the system's if None.
        insecure: Without TLS; for tests on one machine alone.

    Raises:
        ConfigurationError: It cannot be reached, or its certificate is not to be trusted.
    """
    host, port = split_address(address)
    try:
        if insecure:
            plain = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
            return Reach(None, _clock(plain))
        context = ssl.create_default_context(cafile=None if certificates is None else certificates)
        with (
            socket.create_connection((host, port), timeout=PATIENCE_S) as raw,
            context.wrap_socket(raw, server_hostname=host) as wrapped,
        ):
            found = wrapped.getpeercert() or {}
        secure = http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=context)
        ends = ssl.cert_time_to_seconds(str(found["notAfter"]))
        return Reach(datetime.datetime.fromtimestamp(ends, datetime.UTC), _clock(secure))
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        raise ConfigurationError(
            f"the certificate of {address} is not to be trusted: {reason}. Name the authority that "
            "signed it with --root-certificates, or ask the server's operator"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"the SuperLink {address} cannot be reached: {error.strerror or error}; is it running, "
            "and does a firewall let this machine out to it?"
        ) from None


def _clock(connection: http.client.HTTPConnection) -> float | None:
    try:
        connection.request("GET", "/")
        said = connection.getresponse().getheader("Date")
    except http.client.HTTPException:
        return None
    finally:
        connection.close()
    if said is None:
        return None
    theirs = email.utils.parsedate_to_datetime(said)
    return (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
