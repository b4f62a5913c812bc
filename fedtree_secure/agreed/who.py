"""Which node of a network is which site: asked and answered with signatures.

A network gives its nodes numbers of its own. The server asks a node for its name with a signed
question; the site signs run, number and nonce with the key that the roster pins. So no node can
take another site's place, and a site answers its own server alone. What a network does with either
message is no matter: it can lose them, which it can always do.
"""

from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_secagg import Identity, Roster
from fedtree_secure.agreed.messages import WireError

_ASKS, _ANSWERS = b"fedtree-secure/who/v1\n", b"fedtree-secure/here/v1\n"
NONCE = 32
T = TypeVar("T")


class _Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    run: str
    node: str
    nonce: bytes
    signature: bytes


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    name: str
    signature: bytes


def ask(server: Identity, run: str, node: str, nonce: bytes) -> bytes:
    """Return the server's question to a node.

    Args:
        server: Its key pair.
        run: Name of the run.
        node: The node's number in the network, in decimal.
        nonce: `NONCE` fresh bytes.
    """
    signature = server.sign(_ASKS + _place(run, node, nonce))
    return msgspec.msgpack.encode(_Question(run, node, nonce, signature))


def answer(data: bytes, server_key: bytes, name: str, identity: Identity, node: str) -> bytes:
    """Return a site's answer.

    Raises:
        WireError: Not a question of the pinned server to this node.
    """
    question = _read(data, _Question)
    place = _place(question.run, question.node, question.nonce)
    try:
        Ed25519PublicKey.from_public_bytes(server_key).verify(question.signature, _ASKS + place)
    except InvalidSignature:
        raise WireError("a question that the pinned server key did not sign") from None
    if question.node != node or len(question.nonce) != NONCE:
        raise WireError(f"a question to node {question.node[:40]!r}; this one is {node}")
    return msgspec.msgpack.encode(_Answer(name, identity.sign(_ANSWERS + place)))


def known(data: bytes, roster: Roster, run: str, node: str, nonce: bytes) -> str | None:
    """Return which site answered; None where no key of the roster signed this."""
    try:
        given = _read(data, _Answer)
    except WireError:
        return None
    holds = roster.verifies(given.name, given.signature, _ANSWERS + _place(run, node, nonce))
    return given.name if holds else None


def _place(run: str, node: str, nonce: bytes) -> bytes:
    return msgspec.msgpack.encode([run, node, nonce])


def _read(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError):
        raise WireError(f"{len(data)} bytes are no message of this protocol") from None
