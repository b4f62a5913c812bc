"""Masking rounds as the server sees them: the real client and server steps, bytes in between,
everything kept.

The ring can be replaced by a broken one in a self-test. What the auditor knows beyond the server
are the clients' updates and rounding randomness, so that sums can be compared exactly.
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

from fedtree_audits.statistics.scores import Floats
from fedtree_secagg import (
    Identity,
    Node,
    Plan,
    Quantiser,
    Ring,
    Roster,
    SecAggError,
    client,
    server,
)
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages

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
    return [
        _round(agreed, roster, identities, given, number, fresh)
        for number, given in enumerate(updates)
    ]


def _stream(key: bytes) -> Iterator[bytes]:
    for number in itertools.count():
        yield hashlib.sha256(key + number.to_bytes(8, "big")).digest()


def _round(
    agreed: Plan,
    roster: Roster,
    identities: Mapping[str, Identity],
    updates: Mapping[str, Floats],
    number: int,
    fresh: Iterator[bytes],
) -> Seen:
    counters = {"round": number, "attempt": 0}
    state: Any = server.begin(roster, agreed, **counters, randomness=next(fresh))
    sent: dict[str, tuple[Any, bytes]] = {
        name: client.advertise(
            identities[name], name, roster, agreed, **counters, randomness=next(fresh)
        )
        for name in CLIENTS
    }
    state, out = server.collect_adverts(state, _messages(sent))
    sent = _step(lambda _, was, data: client.share(was, data, randomness=next(fresh)), sent, out)
    state, out = server.route_shares(state, _messages(sent))
    randomness = {name: next(fresh) for name in CLIENTS}
    sent = _step(
        lambda name, was, data: client.mask(was, data, updates[name], randomness=randomness[name]),
        sent,
        out,
    )
    uploads = _messages(sent)
    bodies = {
        name: np.frombuffer(messages.detach(data)[1], "<u4") for name, data in uploads.items()
    }
    integers = {name: _integers(agreed, updates[name], randomness[name]) for name in CLIENTS}
    try:
        state, out = server.collect_masked(state, uploads)
        voted = _step(lambda _, was, data: client.confirm(was, data), sent, out)
        state, out = server.collect_votes(state, _messages(voted))
        answers = {name: client.reveal(voted[name][0], data) for name, data in out.items()}
        opened = server.open_sums(state, answers)["all"].ring.astype(np.int64)
    except SecAggError:
        opened = None
    return Seen(bodies, integers, opened)


def _messages(sent: Mapping[str, tuple[Any, bytes]]) -> dict[str, bytes]:
    return {name: data for name, (_, data) in sent.items()}


def _step(
    step: Callable[[str, Any, bytes], tuple[Any, bytes]],
    before: Mapping[str, tuple[Any, bytes]],
    received: Mapping[str, bytes],
) -> dict[str, tuple[Any, bytes]]:
    return {name: step(name, before[name][0], data) for name, data in received.items()}


def _integers(agreed: Plan, update: Floats, randomness: bytes) -> npt.NDArray[np.int64]:
    stream = keys.Stream(randomness, b"mask")
    return agreed.quantiser.quantise(update, stream(32)).astype(np.int64)


# --- rings that are broken on purpose, for self-tests ---------------------------------------------


@dataclasses.dataclass(frozen=True)
class BrokenRing(Ring):
    """A ring with another keystream, used alike by clients and server: sums open, only the masks
    are bad.
    """

    state: dict[bytes, int] = dataclasses.field(default_factory=dict, compare=False)

    def stream(self, key: bytes, words: int) -> Words:
        """Return a good keystream."""
        return np.random.default_rng(list(key)).integers(0, 2**32, words, dtype=np.uint32)

    def add_masks(self, target: Words, keys: Any) -> None:
        """Add the keystreams."""
        for key, sign in keys:
            mask = self.stream(key, len(target))
            target += mask if sign > 0 else -mask

    def unmasked(self, total: Words, keys: Any) -> npt.NDArray[np.int64]:
        """Take the keystreams away."""
        out = np.array(total, dtype=np.uint32)
        self.add_masks(out, keys)
        return out.view(np.int32).astype(np.int64)


class ReusedMasks(BrokenRing):
    """The same masks in every round: the n-th key of each round gives the n-th stream."""

    def stream(self, key: bytes, words: int) -> Words:
        """Number the keys as they come; five clients have 5 self masks and 10 pairs."""
        place = self.state.setdefault(key, len(self.state)) % 15
        return super().stream(bytes([place]) * 32, words)


class ShortKeystream(BrokenRing):
    """Repeats every keystream after 64 words."""

    def stream(self, key: bytes, words: int) -> Words:
        """Tile a short stream."""
        return np.resize(super().stream(key, 64), words)


class NarrowMasks(BrokenRing):
    """Masks of 26 bits in a ring of 32."""

    def stream(self, key: bytes, words: int) -> Words:
        """Cut the upper bits."""
        return super().stream(key, words) >> np.uint32(6)


class OneUnmasked(BrokenRing):
    """Leaves the upload of one client, the first of every round, as it is; its sum cannot open
    rightly.
    """

    def add_masks(self, target: Words, keys: Any) -> None:
        """Skip every fifth client; a client has five masks, the server's list is longer or has
        other signs.
        """
        given = list(keys)
        if given[0][1] > 0 and len(given) == len(CLIENTS):
            self.state[b"calls"] = self.state.get(b"calls", -1) + 1
            if self.state[b"calls"] % len(CLIENTS) == 0:
                return
        super().add_masks(target, given)


class MissingMask(BrokenRing):
    """Clients forget their self mask: with a dropout's key the server could open an upload; the sum
    is wrong.
    """

    def add_masks(self, target: Words, keys: Any) -> None:
        """Drop the first of a client's keys."""
        given = list(keys)
        super().add_masks(target, given[1:] if given[0][1] > 0 else given)
