"""Write the test vectors beside this file: `python secagg/vectors/generate.py` (`--check` compares
instead).

`setting.json` holds everything the parties agree on and all secrets and randomness; then one file
per step, with the accepted calls (input, randomness, output) and rejected inputs (error class, who
is blamed). Bytes are hexadecimal; updates are lists of float64 that JSON prints exactly. Four
clients; `dot` uploads nothing, so that both kinds of share are opened.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedtree_secagg import (
    Identity,
    Node,
    Plan,
    Quantiser,
    Roster,
    SecAggError,
    Sparse,
    beacon,
    client,
    server,
    sketch,
)
from fedtree_secagg.agreed.graph import Rings
from fedtree_secagg.agreed.group import Group
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.session import view_hash

FOLDER = Path(__file__).resolve().parent
NAMES = ("ann", "barbara", "cyd", "dot")
LOST = "dot"
ROUND, ATTEMPT = 7, 2
Json = dict[str, Any]


def derive(*labels: str) -> bytes:
    """Return the 32 bytes that stand for fresh randomness in the vectors."""
    return hashlib.sha256("/".join(("fedtree-secagg test vectors", *labels)).encode()).digest()


IDENTITIES = {name: Identity.generate(derive("identity", name)) for name in NAMES}
ROSTER = Roster({name: identity.public_bytes for name, identity in IDENTITIES.items()})
PLAN = Plan(
    length=9,
    nodes=(Node("trunk", NAMES, ((0, 3), (7, 8))), Node("leaf", NAMES[:3], ((3, 6),))),
    threshold=3,
    quantiser=Quantiser(clip=1.5, bits=20),
    context=derive("context"),
)
UPDATES = {
    name: [round(-1.4 + 0.3 * i + 0.11 * j, 6) for j in range(9)] for i, name in enumerate(NAMES)
}
VECTORS = {name: [[round(0.25 * i - 0.1 * j, 6) for j in range(5)]] for i, name in enumerate(NAMES)}


def setting() -> Json:
    """Return what everyone agrees on, and the secrets."""
    grid = PLAN.quantiser
    return {
        "round": ROUND,
        "attempt": ATTEMPT,
        "server_randomness": derive("server").hex(),
        "identities": {
            name: identity.to_private_bytes().hex() for name, identity in IDENTITIES.items()
        },
        "roster": {name: key.hex() for name, key in ROSTER.keys.items()},
        "plan": {
            "length": PLAN.length,
            "nodes": [
                {"name": n.name, "members": list(n.members), "ranges": [list(r) for r in n.ranges]}
                for n in PLAN.nodes
            ],
            "threshold": PLAN.threshold,
            "min_group": PLAN.min_group,
            "colluders": PLAN.colluders,
            "ring_bits": PLAN.ring.bits,
            "clip": grid.clip,
            "bits": grid.bits,
            "saturate": grid.saturate,
            "context": PLAN.context.hex(),
        },
        "plan_hash": PLAN.hash.hex(),
        "roster_hash": ROSTER.hash.hex(),
        "updates": UPDATES,
        "sketch_vectors": VECTORS,
    }


class _Book:
    """Collects the calls of each step."""

    def __init__(self) -> None:
        self.files: dict[str, Json] = {"setting": setting()}

    def accepted(self, step: str, name: str, inputs: bytes, output: bytes) -> None:
        rows = self.files.setdefault(step, {"accepted": [], "rejected": []})["accepted"]
        rows.append(
            {
                "client": name,
                "randomness": derive(step, name).hex(),
                "input": inputs.hex(),
                "output": output.hex(),
            }
        )

    def rejected(
        self, step: str, name: str, why: str, inputs: bytes, call: Callable[[bytes], Any]
    ) -> None:
        """Record the refusal, after seeing that it is one."""
        try:
            call(inputs)
        except SecAggError as error:
            blames = getattr(error, "blames", None)
            row = {
                "client": name,
                "why": why,
                "input": inputs.hex(),
                "error": type(error).__name__,
                "blames": blames,
            }
            self.files[step]["rejected"].append(row)
            return
        raise AssertionError(f"{step}: {why} was accepted")


def _edited(kind: type[messages.Message], data: bytes, **changes: Any) -> bytes:
    return messages.encode(msgspec.structs.replace(messages.decode(kind, data), **changes))


def _bits(*names: str) -> bytes:
    return Group.of(NAMES, names).bits


def _root(adverts: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(advert).digest() for advert in adverts)).digest()


def protocol(book: _Book) -> None:
    """Run one attempt and record it."""
    states: dict[str, Any] = {}
    out: dict[str, bytes] = {}
    for name in NAMES:
        states[name], out[name] = client.advertise(
            IDENTITIES[name],
            name,
            ROSTER,
            PLAN,
            round=ROUND,
            attempt=ATTEMPT,
            randomness=derive("advertise", name),
        )
        book.accepted("advertise", name, b"", out[name])
    begun = server.begin(ROSTER, PLAN, round=ROUND, attempt=ATTEMPT, randomness=derive("server"))
    state, adverts = server.collect_adverts(begun, out)
    _reject_adverts(book, states["ann"], adverts["ann"])

    out = _step(
        book,
        "share",
        adverts,
        states,
        lambda s, m, n: client.share(s, m, randomness=derive("share", n)),
    )
    routed, inboxes = server.route_shares(state, out)
    _reject_inboxes(book, states["ann"], inboxes["ann"])

    def mask(held: client.Shared, data: bytes, name: str) -> tuple[client.Uploaded, bytes]:
        return client.mask(held, data, np.array(UPDATES[name]), randomness=derive("mask", name))

    out = _step(book, "mask", {n: m for n, m in inboxes.items() if n != LOST}, states, mask)
    summed, survivors = server.collect_masked(routed, out)
    _reject_survivors(book, states["ann"], survivors["ann"])

    out = _step(book, "confirm", survivors, states, lambda s, m, _: client.confirm(s, m))
    agreed, votes = server.collect_votes(summed, out)
    _reject_votes(book, states["ann"], votes["ann"])

    out = _step(book, "reveal", votes, states, lambda s, m, _: (None, client.reveal(s, m)))
    opened = server.open_sums(agreed, out)
    book.files["open"] = {
        name: {"members_summed": list(node.members_summed), "ring": node.ring.tolist()}
        for name, node in opened.items()
    }


def _step(
    book: _Book,
    step: str,
    received: dict[str, bytes],
    states: dict[str, Any],
    call: Callable[..., tuple[Any, bytes]],
) -> dict[str, bytes]:
    out = {}
    for name, data in received.items():
        states[name], out[name] = call(states[name], data, name)
        book.accepted(step, name, data, out[name])
    return out


def _reject_adverts(book: _Book, state: client.Advertised, data: bytes) -> None:
    book.files["share"] = {"accepted": [], "rejected": []}
    rows = messages.decode(messages.Adverts, data).adverts
    flipped = bytes([rows[1][0] ^ 1]) + rows[1][1:]
    cases = {
        "one byte short": data[:-1],
        "own advert missing": _edited(messages.Adverts, data, adverts=rows[1:]),
        "a signature changed": _edited(
            messages.Adverts, data, adverts=(rows[0], flipped, *rows[2:])
        ),
        "out of order": _edited(messages.Adverts, data, adverts=rows[::-1]),
        "one twice": _edited(messages.Adverts, data, adverts=(*rows, rows[3])),
        "below the threshold": _edited(
            messages.Adverts, data, adverts=rows[:2], root=_root(rows[:2])
        ),
        "not what the root stands for": _edited(messages.Adverts, data, adverts=rows[:3]),
        "a server key of small order": _edited(messages.Adverts, data, server_key=bytes(32)),
    }
    for why, changed in cases.items():
        book.rejected(
            "share",
            "ann",
            why,
            changed,
            lambda m: client.share(state, m, randomness=derive("share", "ann")),
        )


def _reject_inboxes(book: _Book, state: client.Shared, data: bytes) -> None:
    book.files["mask"] = {"accepted": [], "rejected": []}
    inbox = messages.decode(messages.Inbox, data)
    flipped = inbox.boxes[0][:-1] + bytes([inbox.boxes[0][-1] ^ 1])
    cases = {
        "another session": _edited(messages.Inbox, data, session=bytes(32)),
        "a box changed": _edited(messages.Inbox, data, boxes=(flipped, *inbox.boxes[1:])),
        "two boxes swapped": _edited(
            messages.Inbox, data, boxes=(inbox.boxes[1], inbox.boxes[0], *inbox.boxes[2:])
        ),
        "own name missing": _edited(messages.Inbox, data, sharers=_bits(*NAMES[1:])),
        "a byte too many in the set": _edited(messages.Inbox, data, sharers=inbox.sharers + b"\0"),
        "a digest missing": _edited(messages.Inbox, data, digests=inbox.digests[1:]),
    }
    vector = np.array(UPDATES["ann"])
    for why, changed in cases.items():
        book.rejected(
            "mask",
            "ann",
            why,
            changed,
            lambda m: client.mask(state, m, vector, randomness=derive("mask", "ann")),
        )


def _reject_survivors(book: _Book, state: client.Uploaded, data: bytes) -> None:
    book.files["confirm"] = {"accepted": [], "rejected": []}
    cases = {
        "own name missing": _bits("barbara", "cyd", LOST),
        "a client that the plan does not have": bytes(
            [messages.decode(messages.Survivors, data).survivors[0] | 128]
        ),
        "two bytes": _bits(*NAMES) + b"\0",
        "empty": b"",
        "below the threshold": _bits("ann", "barbara"),
    }
    for why, changed in cases.items():
        edited = _edited(messages.Survivors, data, survivors=changed)
        book.rejected("confirm", "ann", why, edited, lambda m: client.confirm(state, m))


def _reject_votes(book: _Book, state: client.Confirmed, data: bytes) -> None:
    book.files["reveal"] = {"accepted": [], "rejected": []}
    message = messages.decode(messages.Votes, data)
    everyone = Group.of(NAMES, NAMES)
    other = messages.Vote(
        message.session, "barbara", view_hash(message.session, everyone, everyone)
    )
    split = messages.sign(IDENTITIES["barbara"], message.session, other, "barbara")
    cases = {
        "a vote for another set": (message.votes[0], split, message.votes[2]),
        "a vote twice": (message.votes[0], message.votes[0], message.votes[2]),
        "a changed signature": (
            bytes([message.votes[0][0] ^ 1]) + message.votes[0][1:],
            *message.votes[1:],
        ),
        "below the threshold": message.votes[:2],
    }
    for why, changed in cases.items():
        book.rejected(
            "reveal",
            "ann",
            why,
            _edited(messages.Votes, data, votes=changed),
            lambda m: client.reveal(state, m),
        )


def late(book: _Book) -> None:
    """Run the same attempt under a plan that says late, and record what differs."""
    plan, given = replace(PLAN, late=True), derive("late", "context")
    counters = {"round": ROUND, "attempt": ATTEMPT}

    def fresh(step: str, name: str) -> bytes:
        return derive("late", step, name)

    states: dict[str, Any] = {}
    out: dict[str, bytes] = {}
    for name in NAMES:
        key, drawn = IDENTITIES[name], fresh("advertise", name)
        states[name], out[name] = client.advertise(
            key, name, ROSTER, plan, **counters, randomness=drawn
        )
    begun = server.begin(ROSTER, plan, **counters, randomness=fresh("server", ""))
    gathered, adverts = server.collect_adverts(begun, out)
    for name, data in adverts.items():
        states[name], out[name] = client.share(states[name], data, randomness=fresh("share", name))
    routed, inboxes = server.route_shares(gathered, out)
    masked = {}
    for name in (n for n in NAMES if n != LOST):
        opened, update = client.receive(states[name], inboxes[name], late=given), UPDATES[name]
        states[name], masked[name] = client.upload(
            opened, np.array(update), randomness=fresh("mask", name)
        )
    summed, survivors = server.collect_masked(routed, masked, late=given)
    votes = {name: client.confirm(states[name], data) for name, data in survivors.items()}
    agreed, shown = server.collect_votes(summed, {n: vote for n, (_, vote) in votes.items()})
    reveals = {name: client.reveal(votes[name][0], data) for name, data in shown.items()}
    book.files["late"] = {
        "late": given.hex(),
        "plan_hash": plan.hash.hex(),
        "randomness": {
            step: {name: fresh(step, name).hex() for name in NAMES}
            for step in ("advertise", "share", "mask")
        },
        "server_randomness": fresh("server", "").hex(),
        "masked": {name: data.hex() for name, data in masked.items()},
        "vote": {name: vote.hex() for name, (_, vote) in votes.items()},
        "open": {
            name: {"members_summed": list(node.members_summed), "ring": node.ring.tolist()}
            for name, node in server.open_sums(agreed, reveals).items()
        },
    }


def sketches(book: _Book) -> None:
    """Run one sketch and record it."""
    context = derive("sketch-context")
    book.files["sketch"] = {"context": context.hex(), "size": 4, "scale": 1024.0, "members": {}}
    rows = book.files["sketch"]["members"]
    greeted = {
        n: sketch.hello(
            IDENTITIES[n], n, ROSTER, NAMES, context, randomness=derive("sketch-hello", n)
        )
        for n in NAMES
    }
    hellos = sketch.collect(ROSTER, NAMES, context, {n: m for n, (_, m) in greeted.items()})
    _reject_hellos(book, greeted["barbara"][0], hellos["barbara"])
    sealed = {
        n: sketch.seal(greeted[n][0], hellos[n], randomness=derive("sketch-seal", n)) for n in NAMES
    }
    routed = sketch.route(
        ROSTER, NAMES, context, hellos["ann"], {n: m for n, (_, m) in sealed.items()}
    )
    _reject_seals(book, sealed["barbara"][0], routed["barbara"])
    for name in NAMES:
        ready = sketch.unseal(sealed[name][0], routed[name])
        vectors = [np.array(v) for v in VECTORS[name]]
        encoded = sketch.encode(ready, vectors, size=4, scale=1024.0)
        steps = {"hello": greeted[name][1], "seal": sealed[name][1], "sketch": encoded}
        rows[name] = {
            "randomness_hello": derive("sketch-hello", name).hex(),
            "randomness_seal": derive("sketch-seal", name).hex(),
            **{step: data.hex() for step, data in steps.items()},
        }


def _reject_hellos(book: _Book, state: sketch.Greeted, data: bytes) -> None:
    book.files["sketch-seal"] = {"accepted": [], "rejected": []}
    rows = messages.decode(messages.Hellos, data).hellos
    flipped = bytes([rows[0][0] ^ 1]) + rows[0][1:]
    cases = {
        "own hello missing": (rows[0], *rows[2:]),
        "a signature changed": (flipped, *rows[1:]),
        "out of order": rows[::-1],
        "one twice": (*rows, rows[-1]),
        "too few": rows[:2],
    }
    fresh = derive("sketch-seal", "barbara")
    for why, changed in cases.items():
        edited = _edited(messages.Hellos, data, hellos=changed)
        book.rejected(
            "sketch-seal", "barbara", why, edited, lambda m: sketch.seal(state, m, randomness=fresh)
        )


def _reject_seals(book: _Book, state: sketch.Sealed, data: bytes) -> None:
    book.files["sketch-unseal"] = {"accepted": [], "rejected": []}
    message = messages.decode(messages.Seal, data[messages.SIGNATURE_BYTES :])

    def signed(name: str, **changes: Any) -> bytes:
        return messages.sign(
            IDENTITIES[name], message.session, msgspec.structs.replace(message, **changes), "ann"
        )

    cases = {
        "a signature changed": bytes([data[0] ^ 1]) + data[1:],
        "signed by another": signed("cyd"),
        "another session": signed("ann", session=bytes(32)),
        "another commitment": signed("ann", commitment=bytes(32)),
        "two boxes swapped": signed(
            "ann", boxes=(message.boxes[1], message.boxes[0], *message.boxes[2:])
        ),
    }
    for why, changed in cases.items():
        book.rejected("sketch-unseal", "barbara", why, changed, lambda m: sketch.unseal(state, m))


def sparse(book: _Book) -> None:
    """Hold one beacon ceremony and record the graph that it draws."""
    names = tuple(f"c{i:02d}" for i in range(24))
    identities = {name: Identity.generate(derive("identity", name)) for name in names}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    nodes = (Node("trunk", names, ((0, 8),)), Node("leaf", names[:4], ((8, 10),)))
    graph = Sparse(neighbours=8, dropouts=1)
    draft = Plan(10, nodes, 6, Quantiser(1.0, 16), derive("context"), sparse=graph)
    number = 2
    bound = {
        n: beacon.commit(
            identities[n], n, roster, draft, number=number, randomness=derive("beacon", n)
        )
        for n in names
    }
    commitments = beacon.collect(roster, draft, number, {n: m for n, (_, m) in bound.items()})
    opened = {n: beacon.open_own(state, commitments) for n, (state, _) in bound.items()}
    openings = beacon.conclude(
        roster, draft, number, commitments, {n: m for n, (_, m) in opened.items()}
    )
    plan = draft.with_beacon(beacon.verify(opened["c00"][0], openings))
    assert plan.sparse is not None
    assert plan.sparse.beacon is not None
    assert isinstance(plan.graph, Rings)
    rings = {node.name: plan.graph.ring(node) for node in nodes}
    book.files["sparse"] = {
        "identities": {
            name: identity.to_private_bytes().hex() for name, identity in identities.items()
        },
        "plan": {
            "threshold": plan.threshold,
            "min_group": plan.min_group,
            "colluders": plan.colluders,
            "neighbours": graph.neighbours,
            "dropouts": graph.dropouts,
            "nodes": [{"name": n.name, "members": n.members, "ranges": n.ranges} for n in nodes],
        },
        "number": number,
        "randomness": {name: derive("beacon", name).hex() for name in names},
        "commitment": {name: message.hex() for name, (_, message) in bound.items()},
        "commitments": commitments.hex(),
        "opening": {name: message.hex() for name, (_, message) in opened.items()},
        "openings": openings.hex(),
        "tree_hash": plan.tree.hex(),
        "beacon": plan.sparse.beacon.value.hex(),
        "committee": plan.graph.committee,
        "holders": {name: plan.graph.holders(name) for name in names},
        "rings": {
            name: None if ring is None else [ring.half, ring.least] for name, ring in rings.items()
        },
        "peers": {
            node.name: {name: plan.graph.peers(name, node) for name in node.members}
            for node in nodes
        },
    }


def generate() -> dict[str, str]:
    """Return the text of every file, by name."""
    book = _Book()
    protocol(book)
    late(book)
    sketches(book)
    sparse(book)
    return {
        f"{name}.json": json.dumps(content, indent=1) + "\n"
        for name, content in sorted(book.files.items())
    }


def main() -> int:
    """Write the files, or with --check compare them."""
    check, different = "--check" in sys.argv[1:], []
    for name, text in generate().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            different.append(name)
            if not check:
                path.write_text(text)
    sys.stdout.write(f"{'differ' if check else 'written'}: {', '.join(different) or 'none'}\n")
    return 1 if check and different else 0


if __name__ == "__main__":
    raise SystemExit(main())
