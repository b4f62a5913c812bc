"""Masking rounds as the server sees them: the real client and server steps, bytes in between, everything kept.

The ring can be replaced by a broken one in a self-test. What the auditor knows beyond the server are the clients'
updates and rounding randomness, so that sums can be compared exactly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtree_audits.scores import Floats
from fedtree_secagg import Identity, Node, Plan, Quantiser, Ring, Roster, SecAggError, client, keys, messages, server

CLIENTS = tuple(f"c{i}" for i in range(5))
WIDTH = 6000
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Seen:
    """One round.

    Attributes:
        bodies: masked words that each client uploaded, shape (values,).
        integers: what each client put in, quantised.
        opened: the sum that the server opened, None where it refused to.
    """

    bodies: Mapping[str, Words]
    integers: Mapping[str, npt.NDArray[np.int64]]
    opened: npt.NDArray[np.int64] | None


def plan(ring: Ring, length: int = WIDTH) -> Plan:
    """Return a plan of one node over all clients."""
    nodes = (Node("all", CLIENTS, ((0, length),)),)
    context = hashlib.sha256(b"fedtree-audits/transcript").digest()
    quantiser = Quantiser(clip=1.0, bits=24)
    return Plan(length, nodes, Plan.full_threshold(len(CLIENTS)), quantiser, context, ring=ring)


def run_rounds(ring: Ring, updates: list[Mapping[str, Floats]], key: bytes) -> list[Seen]:
    """Run one protocol round for each entry of `updates`.

    Args:
        ring: what masks.
        updates: each client's vector by name, shape (WIDTH,), values within [-1, 1].
        key: 32 bytes that all randomness of clients and server comes from.
    """
    fresh = _stream(key)
    identities = {name: Identity.generate(next(fresh)) for name in CLIENTS}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    agreed = plan(ring)
    return [_round(agreed, roster, identities, given, number, fresh) for number, given in enumerate(updates)]


def _stream(key: bytes) -> Iterator[bytes]:
    for number in itertools.count():
        yield hashlib.sha256(key + number.to_bytes(8, "big")).digest()


def _round(
    agreed: Plan, roster: Roster, identities: Mapping[str, Identity], updates: Mapping[str, Floats], number: int,
    fresh: Iterator[bytes],
) -> Seen:  # fmt: skip
    counters = {"round": number, "attempt": 0}
    state: Any = server.begin(roster, agreed, **counters, randomness=next(fresh))
    sent = {
        name: client.advertise(identities[name], name, roster, agreed, **counters, randomness=next(fresh))
        for name in CLIENTS
    }
    state, out = server.collect_adverts(state, _messages(sent))
    sent = _step(lambda name, was, data: client.share(was, data, randomness=next(fresh)), sent, out)
    state, out = server.route_shares(state, _messages(sent))
    randomness = {name: next(fresh) for name in CLIENTS}
    sent = _step(lambda name, was, data: client.mask(was, data, updates[name], randomness=randomness[name]), sent, out)
    uploads = _messages(sent)
    bodies = {name: np.frombuffer(messages.detach(data)[1], "<u4") for name, data in uploads.items()}
    integers = {name: _integers(agreed, updates[name], randomness[name]) for name in CLIENTS}
    try:
        state, out = server.collect_masked(state, uploads)
        sent = _step(lambda name, was, data: client.confirm(was, data), sent, out)
        state, out = server.collect_votes(state, _messages(sent))
        answers = {name: client.reveal(sent[name][0], data) for name, data in out.items()}
        opened = server.open_sums(state, answers)["all"].ring
    except SecAggError:
        opened = None
    return Seen(bodies, integers, opened)


def _messages(sent: Mapping[str, tuple[Any, bytes]]) -> dict[str, bytes]:
    return {name: data for name, (_, data) in sent.items()}


def _step(
    step: Callable[[str, Any, bytes], tuple[Any, bytes]], before: Mapping[str, tuple[Any, bytes]],
    received: Mapping[str, bytes],
) -> dict[str, tuple[Any, bytes]]:  # fmt: skip
    return {name: step(name, before[name][0], data) for name, data in received.items()}


def _integers(agreed: Plan, update: Floats, randomness: bytes) -> npt.NDArray[np.int64]:
    stream = keys.Stream(randomness, b"mask")
    return agreed.quantiser.quantise(update, stream(32)).astype(np.int64)


# --- rings that are broken on purpose, for self-tests --------------------------------------------------------------


def _keystream(key: bytes, words: int) -> Words:
    return np.random.default_rng(list(key)).integers(0, 2**32, words, dtype=np.uint32)


@dataclasses.dataclass(frozen=True)
class ReusedMasks(Ring):
    """Derives masks from the pair's place alone: the same in every round."""

    def add_masks(self, target: Words, keys: Any) -> None:
        """Ignore the keys."""
        for place, (_, sign) in enumerate(keys):
            mask = _keystream(bytes([place]) * 32, len(target))
            target += mask if sign > 0 else -mask


@dataclasses.dataclass(frozen=True)
class ShortKeystream(Ring):
    """Repeats every keystream after 64 words."""

    def add_masks(self, target: Words, keys: Any) -> None:
        """Tile a short stream."""
        for key, sign in keys:
            mask = np.resize(_keystream(key, 64), len(target))
            target += mask if sign > 0 else -mask


@dataclasses.dataclass(frozen=True)
class NarrowMasks(Ring):
    """Masks of 26 bits in a ring of 32."""

    def add_masks(self, target: Words, keys: Any) -> None:
        """Cut the masks' upper bits."""
        for key, sign in keys:
            mask = _keystream(key, len(target)) >> np.uint32(6)
            target += mask if sign > 0 else -mask


@dataclasses.dataclass(frozen=True)
class OneUnmasked(Ring):
    """Leaves the upload of one client, the first of every round, as it is."""

    calls: list[int] = dataclasses.field(default_factory=lambda: [0], compare=False)

    def add_masks(self, target: Words, keys: Any) -> None:
        """Skip every fifth call."""
        self.calls[0] += 1
        if (self.calls[0] - 1) % len(CLIENTS):
            super().add_masks(target, keys)


@dataclasses.dataclass(frozen=True)
class MissingMask(Ring):
    """Forgets the first of a client's masks, so that masks do not cancel as they should."""

    def add_masks(self, target: Words, keys: Any) -> None:
        """Drop one key."""
        super().add_masks(target, list(keys)[1:])
