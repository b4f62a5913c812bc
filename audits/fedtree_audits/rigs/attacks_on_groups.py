"""Attacks of a lying server on a group: trees of its own, other experts for one member, a back door
at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from fedtree_audits.rigs.hostile import (
    GROUP,
    NAMES,
    REFUSED,
    TREE,
    VICTIM,
    Stage,
    base_job,
    halves,
    said,
)
from fedtree_audits.rigs.liar import Liar
from fedtree_audits.statistics.verdict import Check
from fedtree_secure.testing import (
    NodeBook,
    NoisePlan,
    RunStopped,
    compute_tree,
    messages,
    reach,
    run_sketch,
    sketch_context,
)


def trees(stage: Stage, model: Path, _rounds: int) -> list[Check]:
    """Invented distances, two trees for two halves, a tree that the job does not need."""
    noise = NoisePlan(fingerprint=50.0, rounds=1.0)
    with stage.liar(base_job(model, "fingerprint", 2), names=NAMES, noise=noise) as liar:
        checks = [
            _invented(liar),
            _halves(liar),
        ]
    with stage.liar(base_job(model, "one_group", 2)) as liar:
        proposal = _proposal(liar, GROUP, GROUP[:2])
        answers = liar.ask(dict.fromkeys(GROUP, proposal))
    unneeded = all(kind == TREE for kind in answers.values())
    return [*checks, Check("tree: none is needed", unneeded, said(answers))]


def _proposal(liar: Liar, members: Sequence[str], apart: Sequence[str]) -> messages.ProposeTree:
    """Invented distances that put some members apart, and the labels that follow from them."""
    side = np.array([name in apart for name in members], dtype=np.float64)
    between = 1.0 + 1e3 * (side[:, None] - side[None, :]) ** 2
    np.fill_diagonal(between, 0.0)
    squared = np.broadcast_to(between, (liar.facts.depth, *between.shape)).astype("<f8").tobytes()
    draft = messages.ProposeTree(1, tuple(members), (1e-9,) * len(members), squared, ())
    labels = compute_tree(liar.parties.terms, liar.facts, draft).labels
    return msgspec.structs.replace(draft, labels=labels)


def _invented(liar: Liar) -> Check:
    """Distances before any sketch, then of a client that was not in it, then wrong labels."""
    terms, first = liar.parties.terms, _proposal(liar, NAMES, NAMES[:3])
    answers = liar.ask(dict.fromkeys(NAMES, first))
    context = sketch_context(terms, liar.facts.digest, 1)
    hello = dict.fromkeys(NAMES[:5], messages.SketchHello(NAMES[:5], 1))
    try:
        sketched, _ = run_sketch(liar.channel, terms, context, hello)
    except RunStopped:
        sketched = ()
    answers |= {"left out": liar.ask({NAMES[5]: first})[NAMES[5]]}
    labels = tuple(tuple(range(len(NAMES))) for _ in first.labels)
    wrong = msgspec.structs.replace(first, labels=labels)
    answers |= {"wrong labels": liar.ask({VICTIM: wrong})[VICTIM]}
    good = sketched == NAMES[:5] and all(kind == TREE for kind in answers.values())
    return Check("tree: distances without a sketch", good, said(answers))


def _halves(liar: Liar) -> Check:
    """Each half signs a tree of its own; neither has a quorum, however its votes are counted."""
    first = _proposal(liar, NAMES, NAMES[:3])
    second = _proposal(liar, NAMES, (*NAMES[:1], *NAMES[3:5]))
    votes: list[tuple[str, bytes]] = []
    for half, proposal in ((NAMES[:3], first), (NAMES[3:5], second)):
        replies = liar.send(dict.fromkeys(half, proposal))
        votes += [
            (name, reply.signature)
            for name, reply in sorted(replies.items())
            if isinstance(reply, messages.Voted)
        ]
    mine = [vote for vote in votes if vote[0] in NAMES[:3]]
    answers = {}
    for name, given in (("its own", mine), ("twice", [*mine, *mine]), ("all", votes)):
        answers[name] = liar.ask({VICTIM: messages.AdoptTree(tuple(given))})[VICTIM]
    answers["another tree"] = liar.ask({VICTIM: second})[VICTIM]
    adopted = sum(
        participant.party.store.record.tree is not None
        for participant in liar.parties.participants.values()
    )
    good = len(votes) == 5 and not adopted and all(kind == TREE for kind in answers.values())
    detail = f"{len(votes)} signatures, {adopted} clients with a tree; {said(answers)}"
    return Check("tree: two for two halves", good, detail)


def other_experts(stage: Stage, model: Path, _rounds: int) -> list[Check]:
    """Model inconsistency: other experts for one member of a group, and a back door at the end."""
    tree = halves(stage)
    job = base_job(model, "fingerprint", 2)
    with stage.liar(job, names=NAMES, tree=tree) as liar:
        liar.book.apply(liar.round(1), 1)
        elsewhere = NodeBook(job, liar.facts, tree)
        liar.invent(np.ones(liar.facts.layout.length, dtype=np.float32), 1, elsewhere)
        return [
            _one_member(liar, elsewhere),
            _another_world(liar, elsewhere),
            *_end(liar),
        ]


def _one_member(liar: Liar, elsewhere: NodeBook) -> Check:
    """Experts that do not fit the digests which everybody gets."""
    told, other = liar.told(VICTIM), elsewhere.told(VICTIM, -1)
    external = messages.unpack(other.external, liar.facts.layout.length)
    lies = {
        "external": liar.with_external(VICTIM, external),
        "sums": msgspec.structs.replace(told, opened=other.opened),
    }
    answers = {
        name: liar.ask({VICTIM: liar.begin(VICTIM, 2, lie)})[VICTIM] for name, lie in lies.items()
    }
    good = all(kind == REFUSED for kind in answers.values())
    return Check("experts: other ones for one member", good, said(answers))


def _another_world(liar: Liar, elsewhere: NodeBook) -> Check:
    """Experts that fit their own digests: the others hold other ones, and mask for other ones."""
    sums = liar.round(2, {VICTIM: elsewhere.told(VICTIM, -1)})
    liar.book.apply(sums, 2)
    summed = {name for found in sums.values() for name in found.members_summed}
    good = bool(summed) and VICTIM not in summed
    return Check(
        "experts: one member in another world", good, f"opened: {', '.join(sorted(summed))}"
    )


def _end(liar: Liar) -> list[Check]:
    """A back door at the end; then the values that follow from the opened sums."""
    name = NAMES[1]
    party, told = liar.parties.participants[name].party, liar.told(name)
    before = party.store.state.to_bytes()
    door = messages.unpack(told.external, liar.facts.layout.length).copy()
    door[::7] += np.float32(reach(liar.job, 2))
    far = door + np.float32(10 * reach(liar.job, 3))
    last = liar.book.opened[-1]
    node = next(node for node in liar.book.nodes if name in node.members)
    forged = np.ones(node.width, dtype="<i4").tobytes()
    entry = messages.OpenedSum(2, node.name, len(node.members), last.clip, forged)
    lies = {
        "external": liar.with_external(name, door),
        "sum": msgspec.structs.replace(told, opened=(*told.opened, entry)),
    }
    liar.lie(GROUP, far)
    lies["far"] = liar.told(name)
    answers = {key: liar.ask({name: messages.Finish(lie)})[name] for key, lie in lies.items()}
    kept = party.store.state.to_bytes() == before
    refused = kept and all(kind == REFUSED for kind in answers.values())
    liar.stop_lying()
    honest = liar.finish(name)
    held = party.store.state.nodes.get(node.name)
    same = held is not None and np.array_equal(held.values, liar.book.values[node.name].values)
    return [
        Check("experts: a back door at the end", refused, said(answers)),
        Check(
            "experts: what follows from the sums",
            honest == "done" and same,
            f"{honest}; {'the same values' if same else 'other values'} as computed from the sums",
        ),
    ]
