"""The masking plan of a round, and the tree: both sides compute them and must agree.

The server proposes, every client repeats the computation on the same public numbers. A difference
changes the plan's hash, which salts every mask key: a client that was told something else derives
other masks, and nothing opens.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from fedtree_secagg import Beacon, Node, Plan, Quantiser
from fedtree_secure.agreed.class_sums import LARGEST_SUM, LARGEST_VALUE
from fedtree_secure.agreed.cut_costs import GradientEvidence
from fedtree_secure.agreed.cuts import Cuts, noise_aware_cuts
from fedtree_secure.agreed.graph import cohort_of, plan_over, sparse_for
from fedtree_secure.agreed.head_release import sums_classes
from fedtree_secure.agreed.messages import NodeDigest, ProposeTree, WireError, digest
from fedtree_secure.agreed.moves import REACH
from fedtree_secure.agreed.stages import MERGE
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import (
    Tree,
    TreeInputs,
    build_tree,
    merge_tree,
    trivial_tree,
    with_heads,
)
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout

Floats = np.ndarray[Any, np.dtype[np.float64]]
CHANGE_BITS = 16
ROOM_OF_A_MEAN = 2.0  # clipping norms; a batch is rarely twice as large as expected
STEPS_PER_DEVIATION = 1024  # dp/SPEC.md, section 2.4
FARTHEST = 1e30  # squared distances above it are absurd, and overflow in what follows
CLIP_SPREAD = 1024.0  # a client's own bound may be so many times below the run's clip


def gradient_context(
    terms: Terms, model: bytes, attempt: int, digests: tuple[NodeDigest, ...]
) -> bytes:
    """The same for gradients: bound to what they are taken at, so that nobody's is compared with
    that of a client that was given other values.
    """
    counter = attempt.to_bytes(8, "big")
    return hashlib.sha256(
        b"fedtree-secure/gradients/v1\n" + terms.digest + model + counter + _held(digests)
    ).digest()


def sketch_context(terms: Terms, model: bytes, attempt: int) -> bytes:
    """What the secret projection is bound to; another attempt has another projection."""
    counter = attempt.to_bytes(8, "big")
    return hashlib.sha256(b"fedtree-secure/sketch/v2\n" + terms.digest + model + counter).digest()


@lru_cache(maxsize=8)
def nodes_of(tree: Tree, layout: Layout) -> tuple[Node, ...]:
    """Return the nodes of a tree, by name.

    A group's head is a node of its own, whoever shares layers: it is summed before there is a tree.
    """
    layers = tree.nodes(layout.layers)
    nodes = [Node(node_name(group), group, ranges) for group, ranges in layers.items()]
    for part, place in enumerate(layout.heads, start=len(layout.layers)):
        heads = (Node(node_name(group, "head"), group, (place,)) for group in tree.released(part))
        nodes.extend(heads)
    return tuple(sorted(nodes, key=lambda node: node.name))


def nodes_of_round(tree: Tree, layout: Layout, job: Job, *, merge: bool) -> tuple[Node, ...]:
    """Return the nodes that a round sums: all, but a merge without a warm-up those of heads."""
    every = nodes_of(tree, layout)
    if not merge or job.topology.source == "lora_b":
        return every
    return tuple(node for node in every if node.ranges[0] in layout.heads)


@lru_cache(maxsize=8)
def plan_of_round(
    terms: Terms,
    facts: ModelFacts,
    tree: Tree,
    evidence: str,
    clip: float,
    digests: tuple[NodeDigest, ...] | None,
    *,
    merge: bool,
    beacon: bytes = b"",
) -> Plan:
    """Return the masking plan of a round. Cached: many clients of one process ask for the same.

    Args:
        terms, facts: What everybody pinned, and the frozen model.
        evidence: Digest of the proposal that the tree comes from; empty for a tree that needs none.
        clip: Largest absolute value of an uploaded coordinate; rarer ones are cut (they carry noise
            already).
        digests: What the members of each node hold; so nobody is masked with a client that was
            given other values (Pasquini et al., CCS 2022, "model inconsistency"). None where keys
            are dealt ahead, before anybody knows it: then `late_context` of them binds the masks.
        merge: Whether the round merges what was trained alone.
        beacon: 32 bytes that draw the sparse graph of these nodes; empty for the complete graph.

    Raises:
        WireError: Nobody shares anything that such a round would sum.
    """
    nodes = nodes_of_round(tree, facts.layout, terms.job, merge=merge)
    if not nodes:
        raise WireError("a round that would sum nothing")
    largest = max(len(node.members) for node in nodes)
    plan = plan_over(
        terms.job.masking,
        nodes,
        facts.layout.length,
        quantiser_of(terms.job, clip, largest, merge=merge),
        _context(terms, facts, tree, evidence, digests or (), merge=merge),
        sparse=bool(beacon),
    )
    if digests is None:
        plan = replace(plan, late=True)
    return plan.with_beacon(Beacon(beacon, plan.tree)) if beacon else plan


@lru_cache(maxsize=8)
def draft_of_round(terms: Terms, facts: ModelFacts, tree: Tree, *, merge: bool) -> Plan | None:
    """Return what the sparse graph of such rounds is drawn for; None where it is complete.

    It has the nodes and bounds of the rounds' plans, and nothing else of them.
    """
    nodes = nodes_of_round(tree, facts.layout, terms.job, merge=merge)
    if not nodes or sparse_for(terms.job.masking, cohort_of(nodes)) is None:
        return None
    grid = Quantiser(clip=1.0, bits=2)
    return plan_over(terms.job.masking, nodes, facts.layout.length, grid, terms.digest, sparse=True)


def _context(
    terms: Terms,
    facts: ModelFacts,
    tree: Tree,
    evidence: str,
    digests: tuple[NodeDigest, ...],
    *,
    merge: bool,
) -> bytes:
    return hashlib.sha256(
        b"fedtree-secure/plan/v2\n"
        + terms.digest
        + facts.digest
        + repr(tree.labels).encode()
        + evidence.encode()
        + _held(digests)
        + (b"merge" if merge else b"round")
    ).digest()


def late_context(terms: Terms, digests: tuple[NodeDigest, ...]) -> bytes:
    """Return what binds the masks of a round that was dealt ahead to what its members hold.

    Returns:
        32 bytes (secagg/SPEC.md, "Late context").
    """
    return hashlib.sha256(b"fedtree-secure/late/v1\n" + terms.digest + _held(digests)).digest()


def _held(digests: tuple[NodeDigest, ...]) -> bytes:
    held = hashlib.sha256()
    for entry in digests:
        held.update(entry.node.encode() + b"\0" + entry.values + entry.external)
    return held.digest()


def quantiser_of(job: Job, clip: float, largest: int, *, merge: bool) -> Quantiser:
    """Return the grid of a round's uploads; ``largest`` is the size of the largest group."""
    bits = grid_bits(job, clip, largest, merge=merge)
    return Quantiser(clip=clip, bits=bits, saturate=True)


def grid_bits(job: Job, clip: float, largest: int, *, merge: bool) -> int:
    """Width of an uploaded value on the ring's grid, its sign included: wide enough for the noise,
    and no wider.

    A step of the grid must be coarser than the spacing of the float32 numbers that are rounded to
    it, or their low bits, in which floating-point noise leaks (Mironov 2012), survive the rounding.

    Args:
        clip: See `plan_of_round`.
        largest: Clients in the largest group; their sum must fit into 32 bits.

    Returns:
        For an uploaded gradient: 1,024 to 2,048 steps a standard deviation of its noise, which
        `largest_change` put into ``clip``. For a change under Adam, which is some learning rates:
        16 bits, a ten-thousandth of one a step.
    """
    room = 32 - math.ceil(math.log2(largest))
    if sums_classes(job) if merge else job.noise == "shared":
        return room  # its noise is exact: a finer grid shows nothing and rounds less
    if job.training.local_steps > 1 or merge:
        return min(room, CHANGE_BITS)
    deviation = (clip - ROOM_OF_A_MEAN * job.training.max_grad_norm) / 8.0
    if deviation <= 0.0:
        return room  # no bound of a private gradient; nothing can be said about its noise
    wanted = 1 + math.ceil(math.log2(STEPS_PER_DEVIATION * clip / deviation))
    return min(room, max(CHANGE_BITS, wanted))


def largest_change(job: Job, noise_multiplier: float, records: int, *, merge: bool) -> float:
    """Bound on one uploaded value, from public constants; rarer values are cut, which is
    post-processing.

    An uploaded gradient is at most the clipping norm times the batch over its expectation (taken as
    2) plus eight standard deviations of noise. A change under Adam is at most `REACH` learning
    rates a step. Of class sums it is far above what a client's declared records come to with their
    noise (`agreed.class_sums`).
    """
    settings = job.training
    if settings.local_steps == 1 and not merge:
        expected = settings.sample_rate * records
        return settings.max_grad_norm * (ROOM_OF_A_MEAN + 8.0 * noise_multiplier / expected)
    if not merge:
        return REACH * settings.learning_rate * settings.local_steps
    if sums_classes(job):
        return LARGEST_SUM * max(1.0, records / settings.records)
    return max(_warm_up_reach(job), _head_reach(job))


def _warm_up_reach(job: Job) -> float:
    warmed_up = job.topology.source == "lora_b"
    return REACH * job.training.learning_rate * job.topology.warmup_steps if warmed_up else 0.0


def _head_reach(job: Job) -> float:
    """How far a group's head can be from its beginning after the merge: moved at home by its own
    steps, and by a warm-up before; or made of class sums.
    """
    if job.head != "group":
        return 0.0
    if sums_classes(job):
        return LARGEST_VALUE
    return REACH * job.training.head_learning_rate * job.head_steps + _warm_up_reach(job)


def reach(job: Job, before: int) -> float:
    """Farthest that an expert's value can be from its public beginning when a round begins.

    Args:
        before: The round; rounds `MERGE` to ``before - 1`` may have moved the expert.
    """
    steps = max(before - 1, 0) * job.training.local_steps
    merged = _warm_up_reach(job) if before > MERGE else 0.0
    return REACH * job.training.learning_rate * steps + merged


def reach_of_parts(job: Job, layout: Layout, before: int) -> Floats:
    """Return the same for every value of the layout: heads were trained alone before, at a rate of
    their own.

    Returns:
        Shape (layout.length,).
    """
    bounds = np.full(layout.length, reach(job, before))
    for begin, end in layout.heads:
        bounds[begin:end] += _head_reach(job) if before > MERGE else 0.0
    return bounds


def clip_is_usable(clip: float, own: float) -> bool:
    """Say whether a client may upload under the run's clip.

    A clip below the client's own bound would cut its updates and make the grid finer, until the low
    bits of the noise show; one far above it leaves no grid worth the name.
    """
    return math.isfinite(clip) and own <= clip <= CLIP_SPREAD * own


def node_name(group: Sequence[str], kind: str = "node") -> str:
    """A name that depends on the members alone, and on whether they share layers or a head."""
    return f"{kind}-" + hashlib.sha256("\n".join(group).encode()).hexdigest()[:16]


# --- the tree -----------------------------------------------------------------------------------


def vote_bytes(terms: Terms, proposal: ProposeTree) -> bytes:
    """Return what a client signs to say that it computed the proposed tree itself."""
    return b"fedtree-secure/tree-vote/v1\n" + terms.digest + bytes.fromhex(digest(proposal))


def finish_bytes(terms: Terms, digests: tuple[NodeDigest, ...]) -> bytes:
    """Return what a client signs to say which last experts it holds.

    No masked round follows them, in whose plan they would be bound.
    """
    return b"fedtree-secure/finish/v1\n" + terms.digest + _held(digests)


def finish_quorum(terms: Terms, tree: Tree, layout: Layout) -> int:
    """Return how many members must sign the same last experts: as many as must survive a round."""
    cohort = cohort_of(nodes_of(tree, layout))
    return Plan.full_threshold(cohort, colluders=terms.job.masking.colluders)


@lru_cache(maxsize=8)
def committee_of(
    terms: Terms, facts: ModelFacts, tree: Tree, beacon: str | None
) -> tuple[tuple[str, ...], int]:
    """Return whose votes count in training rounds over a sparse graph, and how many must agree.

    Any two such groups share an honest member, as in a round (secagg/SPEC.md, section 12); so they
    serve for the last experts as well, and nobody checks a signature of every second client.

    Args:
        beacon: What drew the graph, in hexadecimal; nobody's votes count by themselves if None.
    """
    draft = draft_of_round(terms, facts, tree, merge=False)
    if draft is None or beacon is None:
        return (), 1
    plan = draft.with_beacon(Beacon(bytes.fromhex(beacon), draft.tree))
    return tuple(plan.graph.committee), plan.threshold


def enough_votes(
    terms: Terms, facts: ModelFacts, tree: Tree, beacons: Mapping[str, str], names: Iterable[str]
) -> tuple[str, ...]:
    """Return voters on the last experts that are enough, sorted, and no more; nobody if too few.

    Args:
        beacons: What drew each sparse graph that is known, by its tree, in hexadecimal.
        names: Whose votes there are.
    """
    given = sorted(set(names))
    draft = draft_of_round(terms, facts, tree, merge=False)
    beacon = None if draft is None else beacons.get(draft.tree.hex())
    committee, least = committee_of(terms, facts, tree, beacon)
    inner = [name for name in given if name in committee]
    if len(inner) >= least:
        return tuple(inner[:least])
    everybody = finish_quorum(terms, tree, facts.layout)
    return tuple(given[:everybody]) if len(given) >= everybody else ()


def evidence_of(message: ProposeTree, job: Job, facts: ModelFacts) -> TreeInputs:
    """Read the distances; `WireError` unless they have the model's shape and are distances."""
    count, depth = len(message.members), facts.depth
    values = depth * count * count
    if len(message.squared) != 8 * values or len(message.noise) != count:
        raise WireError(f"distances of {count} clients in {depth} layers must be {values} values")
    squared = np.frombuffer(message.squared, dtype="<f8").reshape(depth, count, count)
    noise = np.asarray(message.noise)
    if not (np.isfinite(squared).all() and np.isfinite(noise).all() and (noise >= 0).all()):
        raise WireError("distances or their noise are not finite")
    if not (squared == squared.transpose(0, 2, 1)).all() or (squared < 0).any():
        raise WireError("distances are not symmetric, or negative")
    if max(squared.max(initial=0.0), noise.max(initial=0.0)) > FARTHEST:
        raise WireError(f"distances or their noise are beyond {FARTHEST:g}")
    dimension = facts.b_values if job.topology.source == "lora_b" else facts.hidden_size
    return TreeInputs(squared, noise, dimension, job.topology.sketch_size)


def gradients_of(message: ProposeTree, job: Job, facts: ModelFacts) -> GradientEvidence:
    """Read the distances of gradients; `WireError` as for `evidence_of`."""
    found = message.gradients
    assert found is not None
    count, depth = len(message.members), facts.depth
    if len(found.squared) != 8 * depth * count * count or len(found.noise) != count:
        raise WireError(f"gradients of {count} clients in {depth} layers have another number")
    squared = np.frombuffer(found.squared, dtype="<f8").reshape(depth, count, count)
    variance = np.asarray(found.noise)
    if not (np.isfinite(variance).all() and (variance >= 0).all()) or (squared < 0).any():
        raise WireError("gradients' distances or noise are no distances or variances")
    if max(squared.max(initial=0.0), variance.max(initial=0.0)) > FARTHEST:
        raise WireError(f"gradients' distances or noise are beyond {FARTHEST:g}")
    widths = np.array([end - begin for begin, end in facts.layout.layers], dtype=np.float64)
    energy = widths[:, None] * variance[None, :]
    size = job.topology.gradient_sketch_size
    try:
        return GradientEvidence(
            squared, energy, energy / job.rounds, int(widths.max(initial=1.0)), size
        )
    except ConfigurationError as error:
        raise WireError(f"distances of gradients: {error}") from None


def gradient_noise(job: Job, noise_multiplier: float, records: int) -> float:
    """Variance of the noise in one value of a client's gradient: of one step's mean."""
    expected = job.training.sample_rate * records
    return (job.training.max_grad_norm * noise_multiplier / expected) ** 2


def weighed(terms: Terms, facts: ModelFacts, proposal: ProposeTree) -> Cuts:
    """Cut the merge tree of the fingerprints by what the gradients say, see `noise_aware_cuts`."""
    job = terms.job
    merges = merge_tree(evidence_of(proposal, job, facts), job.topology.linkage)
    return noise_aware_cuts(merges, gradients_of(proposal, job, facts), job.masking.min_group)


def compute_tree(terms: Terms, facts: ModelFacts, proposal: ProposeTree) -> Tree:
    """Build the tree that follows from a proposal's distances; its labels are not looked at.

    Clients of the roster that the distances are not about keep every layer to themselves.

    Raises:
        WireError: The distances cannot be read.
    """
    return _computed(terms, facts, without_labels(proposal))


def without_labels(proposal: ProposeTree) -> ProposeTree:
    """Return the proposal without labels: what the tree is a function of."""
    return msgspec.structs.replace(proposal, labels=())


@lru_cache(maxsize=4)
def _computed(terms: Terms, facts: ModelFacts, distances: ProposeTree) -> Tree:
    job, roster, present = terms.job, terms.names, distances.members
    evidence = evidence_of(distances, job, facts)
    if (distances.gradients is not None) != job.weighs_noise:
        raise WireError("distances of gradients are missing, or not asked for")
    if distances.gradients is None:
        tree = build_tree(present, evidence, job.topology, job.masking.min_group)
    else:
        cuts = weighed(terms, facts, distances)
        tree = Tree(tuple(present), cuts.labels, job.masking.min_group)
    absent = [name for name in roster if name not in present]
    rows = []
    for row in tree.labels:
        known = dict(zip(present, row, strict=True))
        known |= {name: len(present) + i for i, name in enumerate(absent)}
        rows.append(tuple(known[name] for name in roster))
    whole = Tree(roster, tuple(rows), job.masking.min_group)
    return with_heads(whole, [group.members for group in terms.heads])


def fixed_tree(terms: Terms, facts: ModelFacts) -> Tree | None:
    """The tree of a job that needs no distances (``one_group``, ``none``, no rounds), else None."""
    job = terms.job
    source = job.topology.source if job.rounds else "none"
    if source not in ("one_group", "none"):
        return None
    return tree_without_distances(terms, facts, source)


def tree_without_distances(terms: Terms, facts: ModelFacts, source: str) -> Tree:
    """Return the tree of ``one_group`` or ``none``, heads in their groups."""
    tree = trivial_tree(terms.names, facts.depth, source, terms.job.masking.min_group)
    return with_heads(tree, [group.members for group in terms.heads])


def check_members(members: Sequence[str], terms: Terms) -> None:
    """Refuse a group to be sketched that is unsorted, of strangers or below the quorum.

    Raises:
        WireError: See above. Below the quorum a server could sketch a victim with accomplices.
    """
    if list(members) != sorted(set(members)) or not set(members) <= set(terms.names):
        raise WireError("the members of a sketch must be clients of the roster, sorted, each once")
    least = max(terms.quorum, terms.job.masking.min_group)
    if len(members) < least:
        raise WireError(f"a sketch of {len(members)} clients; at least {least} must take part")
