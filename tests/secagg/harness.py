"""Run rounds in one process, with an adversary scripted in a few lines.

    world = World.nested()                        # identities, roster, plan, updates
    result = world.run(drops={"masked": {"c02"}}) # who does not answer from that stage on
    result = world.run(tamper={("survivors", "c01"): lambda data: forged})  # what one party gets

`tamper` maps (message, participant) to a function of the bytes; it is applied on the way from or to
the participant, and None means that the message is lost.
Messages: advert, adverts, shares, inbox, masked, survivors, vote, votes, reveal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
import numpy as np
import pytest

from fedtree_secagg import (
    Identity,
    Node,
    NodeSum,
    Plan,
    ProtocolError,
    Quantiser,
    Roster,
    client,
    server,
)
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.primitives import keys
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.session import sharers_hash

CONTEXT = hashlib.sha256(b"a model and a job").digest()
FRESH = bytes(range(32))
STAGES = ("advert", "shares", "masked", "vote", "reveal")
Tamper = Mapping[tuple[str, str], Callable[[bytes], bytes | None]]


class Randomness:
    """Deterministic 'fresh' randomness, never the same twice."""

    def __init__(self, seed: object = 0) -> None:
        self._seed, self._count = seed, count()

    def __call__(self) -> bytes:
        return hashlib.sha256(f"{self._seed}/{next(self._count)}".encode()).digest()


def names(n: int) -> tuple[str, ...]:
    return tuple(f"c{i:02d}" for i in range(n))


@dataclass
class World:
    plan: Plan
    identities: dict[str, Identity]
    roster: Roster
    updates: dict[str, np.ndarray]
    random: Randomness = field(default_factory=Randomness)

    @classmethod
    def of(cls, plan: Plan, seed: int = 0, dtype: Any = np.float32) -> World:
        identities = {
            name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in plan.cohort
        }
        roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
        rng = np.random.default_rng(seed)
        clip = plan.quantiser.clip
        updates = {
            name: rng.uniform(-clip, clip, plan.length).astype(dtype) for name in plan.cohort
        }
        return cls(plan, identities, roster, updates, Randomness(seed))

    @classmethod
    def nested(cls, **changes: Any) -> World:
        return cls.of(nested_plan(**changes))

    def run(
        self,
        drops: Mapping[str, Iterable[str]] | None = None,
        tamper: Tamper | None = None,
        *,
        upto: str = "reveal",
        round: int = 0,  # noqa: A002
        attempt: int = 0,
        late: bytes = b"",
    ) -> Run:
        gone = {k: set(v) for k, v in (drops or {}).items()}
        run = Run(self, gone, dict(tamper or {}), round, attempt, late)
        run.go(upto)
        return run


@dataclass
class Run:
    """One attempt: states and messages of everyone, by stage, so that a test can look at and reuse
    them.
    """

    world: World
    drops: dict[str, set[str]]
    tamper: dict[tuple[str, str], Callable[[bytes], bytes | None]]
    round: int = 0
    attempt: int = 0
    late: bytes = b""
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    sent: dict[str, dict[str, bytes]] = field(default_factory=dict)
    received: dict[str, dict[str, bytes]] = field(default_factory=dict)
    server_states: dict[str, Any] = field(default_factory=dict)
    mask_randomness: dict[str, bytes] = field(default_factory=dict)
    opened: dict[str, NodeSum] | None = None

    def go(self, upto: str) -> None:
        w, counters = self.world, {"round": self.round, "attempt": self.attempt}
        rand = w.random

        def advertise(name: str) -> tuple[Any, bytes]:
            return client.advertise(
                w.identities[name], name, w.roster, w.plan, **counters, randomness=rand()
            )

        steps: list[tuple[str, str, Callable[..., Any], Callable[..., Any]]] = [
            (
                "shares",
                "adverts",
                lambda s, m, n: client.share(s, m, randomness=rand()),
                server.collect_adverts,
            ),
            ("masked", "inbox", self._mask, server.route_shares),
            (
                "vote",
                "survivors",
                lambda s, m, n: client.confirm(s, m),
                lambda s, m: server.collect_masked(s, m, late=self.late),
            ),
            ("reveal", "votes", lambda s, m, n: (None, client.reveal(s, m)), server.collect_votes),
        ]
        self.server_states["begin"] = server.begin(w.roster, w.plan, **counters, randomness=rand())
        self._send(
            "advert",
            {name: advertise(name) for name in w.plan.cohort if name not in self._gone("advert")},
        )
        state = self.server_states["begin"]
        for stage, received, client_step, server_step in steps:
            if upto == self._previous(stage):
                return
            state, out = server_step(state, self._arrived(self._previous(stage)))
            self.server_states[received] = state
            self.received[received] = out = self._tampered(received, out)
            before = self.states[self._previous(stage)]
            todo = [n for n in out if n not in self._gone(stage)]
            self._send(stage, {n: client_step(before[n], out[n], n) for n in todo})
        self.opened = server.open_sums(state, self._arrived("reveal"))

    def _mask(self, state: Any, inbox: bytes, name: str) -> tuple[Any, bytes]:
        self.mask_randomness[name] = self.world.random()
        update, fresh = self.world.updates[name], self.mask_randomness[name]
        whole = {"on_grid": True} if update.dtype == np.int64 else {}
        return client.mask(state, inbox, update, randomness=fresh, late=self.late, **whole)

    def _previous(self, stage: str) -> str:
        return STAGES[STAGES.index(stage) - 1]

    def _gone(self, stage: str) -> set[str]:
        return set().union(*(self.drops.get(s, set()) for s in STAGES[: STAGES.index(stage) + 1]))

    def _send(self, stage: str, results: dict[str, tuple[Any, bytes]]) -> None:
        self.states[stage] = {name: state for name, (state, _) in results.items()}
        self.sent[stage] = {name: data for name, (_, data) in results.items()}

    def _arrived(self, stage: str) -> dict[str, bytes]:
        return self._tampered(stage, self.sent[stage])

    def _tampered(self, message: str, batch: dict[str, bytes]) -> dict[str, bytes]:
        out = {}
        for name, data in batch.items():
            change = self.tamper.get((message, name)) or self.tamper.get((message, "*"))
            changed = change(data) if change else data
            if changed is not None:
                out[name] = changed
        return out


def session_id(run: Run) -> bytes:
    return run.server_states["adverts"].cohort.id


FOR_THE_SERVER = (messages.Shares, messages.Reveal)


def lead_bytes(kind: type[messages.Message]) -> int:
    """Bytes of the signature or the tag before a client's payload."""
    return messages.MAC_BYTES if kind in FOR_THE_SERVER else messages.SIGNATURE_BYTES


def forge(
    run: Run, kind: type[messages.Message], name: str, signer: str | None = None, **changes: Any
) -> bytes:
    """What a malicious `name` sends: its own message with fields changed, authenticated by itself
    or by another.
    """
    stage = kind.__struct_config__.tag
    sent = (
        messages.detach(run.sent[stage][name])[0]
        if kind is messages.Masked
        else run.sent[stage][name]
    )
    forged = msgspec.structs.replace(messages.decode(kind, sent[lead_bytes(kind) :]), **changes)
    if kind in FOR_THE_SERVER:
        return messages.authenticate(run.states["shares"][signer or name].link, forged, name)
    bound = (
        run.server_states["begin"].session.instance if kind is messages.Advert else session_id(run)
    )
    identity = run.world.identities[signer or name]
    signed = messages.sign(identity, bound, forged, name)
    return (
        attach(signed, messages.detach(run.sent[stage][name])[1])
        if kind is messages.Masked
        else signed
    )


def forge_upload(run: Run, name: str, body: bytes) -> bytes:
    """What a malicious client uploads: another body with a genuine tag and signature."""
    nonce = bytes(12)
    tag = keys.upload_tag(run.states["shares"][name].link, nonce, memoryview(body))
    shown = sharers_hash(session_id(run), Group.of(run.world.plan.cohort, run.sent["shares"]))
    head = messages.Masked(session_id(run), name, shown, nonce, tag)
    return attach(messages.sign(run.world.identities[name], session_id(run), head, name), body)


def attach(signed: bytes, body: bytes | memoryview) -> bytes:
    """The upload of this signed head and this body."""

    def write(into: memoryview) -> bytes:
        into[:] = body
        return signed

    return messages.attach(len(signed), len(body), write)


def edit(kind: type[messages.Message], **changes: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """What a malicious server sends: its message with fields passed through functions."""

    def apply(data: bytes) -> bytes:
        message = messages.decode(kind, data)
        new = {field: change(getattr(message, field)) for field, change in changes.items()}
        return messages.encode(msgspec.structs.replace(message, **new))

    return apply


def those(
    change: Callable[[tuple[str, ...]], Iterable[str]], n: int = 9
) -> Callable[[bytes], bytes]:
    """A change of a set of the n clients, for `edit`."""
    return lambda bits: Group.of(names(n), change(Group(names(n), bits).names())).bits


def adverts_message(server_key: bytes, adverts: Iterable[bytes]) -> bytes:
    """The server's broadcast of these adverts, with a root that fits."""
    rows = tuple(adverts)
    root = hashlib.sha256(b"".join(hashlib.sha256(row).digest() for row in rows)).digest()
    return messages.encode(messages.Adverts(server_key, root, rows))


def flat_plan(n: int = 5, length: int = 40, **changes: Any) -> Plan:
    members = names(n)
    given: dict[str, Any] = {
        "length": length,
        "nodes": (Node("all", members, ((0, max(length, 1)),)),),
        "threshold": Plan.full_threshold(n),
        "quantiser": Quantiser(clip=1.0, bits=16),
        "context": CONTEXT,
    }
    return Plan(**{**given, **changes})


def nested_plan(**changes: Any) -> Plan:
    """Nine clients, a trunk, two branches, a leaf pair; c08 keeps the last ten values at home."""
    c = names(9)
    nodes = (
        Node("trunk", c, ((0, 30), (70, 80))),
        Node("left", c[:4], ((30, 50),)),
        Node("right", c[4:], ((30, 50),)),
        Node("left-deep", c[:4], ((50, 70),)),
        Node("right-deep", c[4:8], ((50, 60), (60, 70))),
    )
    given: dict[str, Any] = {
        "length": 80,
        "nodes": nodes,
        "threshold": Plan.full_threshold(9),
        "quantiser": Quantiser(clip=2.0, bits=20),
        "context": CONTEXT,
    }
    return Plan(**{**given, **changes})


def quantised(run: Run, name: str) -> dict[str, np.ndarray]:
    """The integers that a client put into each node: quantised apart from the protocol, with its
    randomness.
    """
    plan = run.world.plan
    stream = keys.Stream(run.mask_randomness[name], b"mask")
    update = run.world.updates[name]
    return {
        node.name: plan.quantiser.quantise(node.gather(update), stream(32))
        for node in plan.nodes_of(name)
    }


def plain_sums(run: Run, survivors: Iterable[str]) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    """The exact integer sums that should come out, summed as Python integers."""
    plan, alive = run.world.plan, set(survivors)
    integers = {name: quantised(run, name) for name in alive}
    out = {}
    for node in plan.nodes:
        members = tuple(name for name in node.members if name in alive)
        if len(members) >= plan.min_group:
            columns = zip(*(integers[name][node.name].tolist() for name in members), strict=True)
            out[node.name] = (members, [sum(column) for column in columns])
    return out


def opened_sums(run: Run) -> dict[str, tuple[tuple[str, ...], list[int]]]:
    assert run.opened is not None
    return {name: (s.members_summed, s.ring.tolist()) for name, s in run.opened.items()}


def group(n):
    """The first n of nine clients."""
    return Group.of(names(9), names(n))


def refused(match, blames=None, error=ProtocolError):
    """Expect an error of this class and text that blames exactly this participant."""

    class Expect:
        def __enter__(self):
            self.inner = pytest.raises(error, match=match)
            self.info = self.inner.__enter__()
            return self.info

        def __exit__(self, *exc):
            caught = self.inner.__exit__(*exc)
            if caught and error is ProtocolError:
                assert self.info.value.blames == blames
            return caught

    return Expect()


def shares_in(run, holder, dealer):
    """(slot, share) of the dealer's shares that stand in the clear in the holder's reveal."""
    held = run.states["vote"][holder].bundles[dealer]
    return [slot for slot, share in enumerate(held) if share in run.sent["reveal"][holder]]
