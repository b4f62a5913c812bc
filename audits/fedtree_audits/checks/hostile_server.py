"""Audit `hostile_server`: whether a server that lies learns or moves anything that it may not.

Real clients of the installed code, on a tiny model, talk to a server that has the right key and
breaks every rule of the protocol (`liar`). Four families of attacks that worked once:

- a record shown by a reply: weights under which one record's gradient breaks, or all but one
  record's; then whether a client answers must not depend on that record, nor what it is charged;
- a record's share of the sum: under weights at any scale one record moves the clipped sum by one
  clipping norm at most, and no other record's gradient by a bit;
- the tree: invented distances, two trees for two halves, a tree that the job does not need;
- model inconsistency (Pasquini et al., CCS 2022): other experts for one client of a group, and
  other values at the end, where a back door would be delivered.

Everything is compared exactly; there is no sampling error. The job's rates and sizes are the
audit's own, chosen to make the attacks as easy as can be.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.rigs import broken_client, needle
from fedtree_audits.rigs.federated import two_clusters
from fedtree_audits.rigs.hostile import (
    ABSURD,
    GROUP,
    NAMES,
    RECORDS,
    VICTIM,
    Setup,
    Stage,
    base_job,
)
from fedtree_audits.rigs.liar import Floats32, Liar
from fedtree_audits.rigs.parties import scratch
from fedtree_audits.run_folder import RunFolder
from fedtree_audits.statistics.scores import Floats
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_dp import DPSGD
from fedtree_secure.testing import (
    Backbone,
    Job,
    NodeBook,
    NoisePlan,
    RunStopped,
    Tree,
    compute_tree,
    initial_state,
    messages,
    reach,
    run_sketch,
    seal,
    sketch_context,
)

QUESTION = "Does a server that lies learn or move anything that it may not?"
ROUNDS = 20
ROUNDING = 1e-4  # of float32 sums, relative to the clipping norm
STRANGE = 1e-3  # the same of a sum, against one that is computed in float64
REFUSED, TREE = "refused: experts", "refused: tree"


def audit_setup(
    setup: Setup, key: bytes, *, rounds: int = ROUNDS, hashes: Mapping[str, str] | None = None
) -> Result:
    """Audit one build.

    Args:
        setup: What is attacked.
        key: 32 bytes that all randomness comes from; its hash is reported.
        rounds: With the target, and as many without it, of the attacks on replies.
        hashes: Of files that were read.
    """
    with scratch() as place:
        model = needle.write_needle_model(place / "model")
        backbone = Backbone(base_job(model, "one_group", rounds), device="cpu")
        (place / "jobs").mkdir()
        stage = Stage(backbone, place / "jobs", setup, key)
        with setup.opening():
            checks = [
                *_replies(stage, model, rounds),
                *_out_of_reach(stage, model),
                *_counters(stage, model),
                *_shares(stage, model),
                *_trees(stage, model),
                *_other_experts(stage, model),
            ]
    return Result(
        audit="hostile_server",
        question=QUESTION,
        claim=(
            "whether, when and how often a client answers does not depend on its rows; one record "
            "moves a sum by at most one clipping norm; clients follow no tree and no values but "
            "those that follow from what a quorum signed and from opened sums"
        ),
        adversary="a server with the right key that sends whatever it likes to whomever it likes",
        assumptions=(
            "the code attacked here is the one installed where the run took place, on a tiny model",
            "how long an answer takes is not looked at",
            (
                "the last round's sums and the last external expert are the server's word, within "
                "what the public optimiser can reach: no later round compares what members were "
                "told"
            ),
            (
                "a server may invent the distances of a real sketch; groups are then its choice, "
                "within min_group and colluders"
            ),
        ),
        checks=checks,
        hashes={"key commitment": hashlib.sha256(key).hexdigest()} | dict(hashes or {}),
        figures={"rounds": rounds, "records": RECORDS},
    )


def audit_run(run: RunFolder) -> Result:
    """Attack the installed code; a run adds no evidence but its settings' hash."""
    run.require_own_noise()
    return audit_setup(Setup(), os.urandom(32), hashes=run.hashes("job.json"))


# --- a record shown by a reply --------------------------------------------------------------------


def _replies(stage: Stage, model: Path, rounds: int) -> list[Check]:
    fragile = needle.fragile(stage.setup.engine, stage.backbone)
    attacks: Sequence[tuple[str, int | None, type[DPSGD] | None]] = (
        ("one record breaks", needle.ONLY_NEEDLE, None),
        ("all others break", needle.ONLY_WORDS, None),
        ("a step that breaks down", None, fragile),
    )
    each = max(2, -(-rounds // len(attacks)))
    job = base_job(model, "fingerprint", each + 1, learning_rate=ABSURD)
    checks = []
    for name, coordinate, engine in attacks:
        without, with_it = (
            _pattern(stage, job, coordinate, engine, target=target) for target in (False, True)
        )
        differing = sum(a != b for a, b in zip(without, with_it, strict=True))
        said = f"{each} rounds without the target, {each} with it"
        last = " ".join(without[-1][0])
        detail = f"{said}; {differing} differ in replies or charges ({last})"
        checks.append(Check(f"replies: {name}", differing == 0, detail))
    return checks


def _pattern(
    stage: Stage, job: Job, coordinate: int | None, engine: type[DPSGD] | None, *, target: bool
) -> list[tuple[tuple[str, ...], tuple[str | None, ...]]]:
    """What the victim answered in each round, and what its ledger held after it."""
    found = []
    tree = halves(stage)
    with stage.liar(job, names=NAMES, target=target, engine=engine, tree=tree) as liar:
        if coordinate is not None:
            liar.lie(GROUP, needle.breaking(stage.backbone, coordinate))
        ledger = liar.parties.participants[VICTIM].party.store.ledger
        for number in range(2, job.rounds + 1):
            before = len(liar.line.answers)
            liar.round(number)
            answers = [kind for _, name, kind in liar.line.answers[before:] if name == VICTIM]
            found.append((tuple(answers), tuple(entry.purpose for entry in ledger.entries())))
    return found


def _out_of_reach(stage: Stage, model: Path) -> list[Check]:
    """Values that the public optimiser cannot have reached, in messages that fit together."""
    job = base_job(model, "fingerprint", 3)
    with stage.liar(job, names=NAMES, tree=halves(stage)) as liar:
        party = liar.parties.participants[VICTIM].party
        initial = party.facts.initial
        answers = {}
        for name, distance in (("beyond", 2.0), ("nan", np.nan), ("within", 0.5)):
            moved = (initial + np.float32(distance * reach(job, 2))).astype(np.float32)
            liar.lie(GROUP, moved)
            answers[name] = liar.ask({VICTIM: liar.begin(VICTIM, 2)})[VICTIM]
            if name == "nan":
                answers["sum"] = _impossible_sum(liar)
        charged = len(party.store.ledger.events())
    wanted = {"within": "protocol", "beyond": REFUSED, "nan": "WireError", "sum": "WireError"}
    return [
        Check(
            "replies: out of reach",
            answers == wanted and not charged,
            f"{_said(answers)}; {charged} charges",
        )
    ]


def _impossible_sum(liar: Liar) -> str:
    """The answer to a sum that its survivors cannot reach."""
    elsewhere = NodeBook(liar.job, liar.facts, liar.tree)
    liar.invent(np.ones(liar.facts.layout.length, dtype=np.float32), 1, elsewhere)
    too_much = np.full(liar.facts.layout.length, 2**30, dtype="<i4").tobytes()
    (entry,) = elsewhere.told(VICTIM, -1).opened
    forged = msgspec.structs.replace(entry, total=too_much)
    lie = msgspec.structs.replace(elsewhere.told(VICTIM, -1), opened=(forged,))
    return liar.ask({VICTIM: liar.begin(VICTIM, 2, lie)})[VICTIM]


def _counters(stage: Stage, model: Path) -> list[Check]:
    """A signed request that comes again, late, or to a client that was set back."""
    with stage.liar(base_job(model, "one_group", 2)) as liar:
        terms, server = liar.parties.terms, liar.parties.server
        join = messages.encode(messages.Join(terms.digest, liar.facts.digest))
        answers = {}
        for name, counter, answered in (
            ("first", 5, 0),
            ("again", 5, 0),
            ("late", 4, 0),
            ("after another", 9, 8),
        ):
            sealed = seal(server, terms.run, VICTIM, counter, answered, join)
            liar.line.exchange(name, {VICTIM: sealed})
            answers[name] = liar.line.answers[-1][2]
    wanted = {
        "first": "joined",
        "again": "WireError",
        "late": "WireError",
        "after another": "refused: set-back",
    }
    return [Check("replies: a request twice", answers == wanted, _said(answers))]


def _said(answers: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in answers.items())


# --- a record's share of the sum ------------------------------------------------------------------


def _shares(stage: Stage, model: Path) -> list[Check]:
    job = base_job(model, "one_group", 2, sample_rate=1.0)
    without, with_it = (_sums(stage, job, target=target) for target in (False, True))
    checks = []
    for name, (total, rows) in without.items():
        more, others = with_it[name]
        clip = job.training.max_grad_norm
        moved = float(np.linalg.norm(more - total)) / clip
        strange = max(
            float(np.linalg.norm(found - _clipped(seen, clip))) / clip
            for found, seen in ((total, rows), (more, others))
        )
        changed = sum(others.get(tokens) != gradient for tokens, gradient in rows.items())
        checks += [
            Check(
                f"sum: {name}",
                moved <= 1 + ROUNDING and strange <= STRANGE,
                f"one record moves it by {moved:.5g} clipping norms; it is {strange:.2g} from the "
                "sum of its records' own clipped gradients",
            ),
            Check(
                f"other records: {name}",
                changed == 0,
                f"{changed} of {len(rows)} have another gradient beside one record more",
            ),
        ]
    return checks


def _clipped(rows: Mapping[bytes, bytes], clip: float) -> Floats:
    """The sum that these gradients should give; one that is not finite counts nothing."""
    total: Floats = np.zeros(1)
    for gradient in rows.values():
        flat = np.frombuffer(gradient, dtype=np.float32).astype(np.float64)
        norm = float(np.linalg.norm(flat))
        if math.isfinite(norm):
            total = total + flat * min(1.0, clip / norm if norm else 1.0)
    return total


def _sums(stage: Stage, job: Job, *, target: bool) -> dict[str, tuple[Floats, dict[bytes, bytes]]]:
    """The clipped sum and each record's gradient under weights of any scale, without noise."""
    seen: dict[bytes, bytes] = {}
    found = {}
    engine = needle.watched(stage.setup.engine, seen)
    with stage.liar(job, target=target, noise=NoisePlan(), engine=engine) as liar:
        party = liar.parties.participants[VICTIM].party
        for name, own in _weights(stage.backbone, job).items():
            seen.clear()
            party.store.state = initial_state(stage.backbone, 0)
            party.store.state.own = own.copy()
            party.round_change(stage.key)
            total = np.frombuffer(seen.pop(needle.SUM, b""), dtype=np.float32).astype(np.float64)
            found[name] = (total if len(total) else np.zeros(len(own)), dict(seen))
    return found


def _weights(backbone: Backbone, job: Job) -> dict[str, Floats32]:
    """Own experts: the initial one, one within reach, and some that are far outside."""
    initial = backbone.initial_expert
    random = np.random.default_rng(0).choice([-1.0, 1.0], size=len(initial))
    found: dict[str, Any] = {"initial values": initial}
    found["values within reach"] = initial + random * reach(job, 20)
    found |= {f"values of {size:g}": initial + random * size for size in (1e2, 1e4, 1e8)}
    for what, coordinate in (
        ("one record", needle.ONLY_NEEDLE),
        ("all others", needle.ONLY_WORDS),
        ("padding", needle.ONLY_PADDING),
    ):
        found[f"values that break {what}"] = needle.breaking(backbone, coordinate)
    return {name: own.astype(np.float32) for name, own in found.items()}


# --- the tree -------------------------------------------------------------------------------------


def _trees(stage: Stage, model: Path) -> list[Check]:
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
    return [*checks, Check("tree: none is needed", unneeded, _said(answers))]


def halves(stage: Stage) -> Tree:
    """Two groups of three, which share no layer: each is the external expert of the other."""
    return two_clusters(NAMES, 0, stage.backbone.experts.depth, 3, 3)


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
    return Check("tree: distances without a sketch", good, _said(answers))


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
    said = f"{len(votes)} signatures, {adopted} clients with a tree; {_said(answers)}"
    return Check("tree: two for two halves", good, said)


# --- other experts for one client, and at the end -------------------------------------------------


def _other_experts(stage: Stage, model: Path) -> list[Check]:
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
    return Check("experts: other ones for one member", good, _said(answers))


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
        Check("experts: a back door at the end", refused, _said(answers)),
        Check(
            "experts: what follows from the sums",
            honest == "done" and same,
            f"{honest}; {'the same values' if same else 'other values'} as computed from the sums",
        ),
    ]


# --- self-test ------------------------------------------------------------------------------------


def _variant(setup: Setup) -> Variant:
    def variant(seed: int) -> Result:
        key = hashlib.sha256(f"hostile_server/{seed}".encode()).digest()
        return audit_setup(setup, key, rounds=6)

    return variant


AUDIT = Audit(
    name="hostile_server",
    question=QUESTION,
    on_run=audit_run,
    correct=_variant(Setup()),
    mutants={
        name: _variant(setup)
        for name, setup in {
            "guards on private rows": Setup(engine=broken_client.GuardsOnRows),
            "no reply after an error": Setup(opening=broken_client.no_reply_after_an_error),
            "padded to the longest record": Setup(opening=broken_client.padded_to_the_longest),
            "reach unchecked": Setup(opening=broken_client.any_reach),
            "digests unchecked": Setup(opening=broken_client.digests_unread),
            "digests outside of the plan": Setup(opening=broken_client.digests_outside_the_plan),
            "last values from the server": Setup(opening=broken_client.last_values_as_sent),
            "tree without a quorum": Setup(opening=broken_client.one_is_a_quorum),
            "tree without an own sketch": Setup(opening=broken_client.trees_of_strangers),
            "counter unchecked": Setup(participant=broken_client.Recounting),
        }.items()
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
