"""What server and clients each compute for themselves and must agree on: the tree, and the plan of
a round.

The server proposes, every client repeats the computation on the same public numbers. A difference
changes the plan's hash, which salts every mask key: a client that was told something else derives
other masks, and nothing opens.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from fedtree_secagg import Node, Plan, Quantiser
from fedtree_secure.agreed.messages import Distances, WireError
from fedtree_secure.agreed.tree import Evidence, Tree, build_tree, trivial_tree, with_shared_head
from fedtree_secure.config import Job
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.experts import Layout

CHANGE_BITS = 16
MERGE = 0  # the round that merges a warm-up; training rounds count from 1
STEPS_PER_DEVIATION = 1024  # dp/SPEC.md, section 2.4


def sketch_context(job: Job, model: bytes, attempt: int) -> bytes:
    """What the secret projection is bound to; another attempt has another projection."""
    counter = attempt.to_bytes(8, "big")
    return hashlib.sha256(b"fedtree-secure/sketch/v1\n" + job.digest() + model + counter).digest()


def plan_of_round(
    job: Job, tree: Tree, layout: Layout, model: bytes, evidence: str, clip: float, *, merge: bool
) -> Plan:
    """Return the masking plan of a round.

    Args: model: Digest of the frozen weights and the initial experts. evidence: Digest of the
        distances the tree was computed from; empty for a tree that needs none. clip: Largest
        absolute value of an uploaded coordinate; rarer ones are cut (they carry noise already).
        merge: Whether the round merges the warm-up.
    """
    groups = tree.nodes(layout.parts)
    nodes = tuple(Node(node_name(group), group, ranges) for group, ranges in sorted(groups.items()))
    cohort = len({name for group in groups for name in group})
    largest = max(len(group) for group in groups)
    kind = b"merge" if merge else b"round"
    context = hashlib.sha256(
        b"fedtree-secure/plan/v1\n"
        + job.digest()
        + model
        + repr(tree.labels).encode()
        + evidence.encode()
        + kind
    ).digest()
    return Plan(
        length=layout.length,
        nodes=nodes,
        min_group=job.masking.min_group,
        colluders=job.masking.colluders,
        threshold=Plan.full_threshold(cohort, colluders=job.masking.colluders),
        quantiser=Quantiser(
            clip=clip, bits=grid_bits(job, clip, largest, merge=merge), saturate=True
        ),
        context=context,
    )


def grid_bits(job: Job, clip: float, largest: int, *, merge: bool) -> int:
    """Width of an uploaded value on the ring's grid, its sign included: wide enough for the noise,
    and no wider.

    A step of the grid must be coarser than the spacing of the float32 numbers that are rounded to
    it, or their low bits, in which floating-point noise leaks (Mironov 2012), survive the rounding.

    Args:
        clip: See `plan_of_round`.
        largest: Clients in the largest group; their sum must fit into 32 bits.

    Returns: For an uploaded gradient: 1,024 to 2,048 steps a standard deviation of its noise, which
        `largest_change` put into ``clip``. For a change under Adam, which is some learning rates:
        16 bits, a ten-thousandth of one a step.
    """
    room = 32 - math.ceil(math.log2(largest))
    if job.training.local_steps > 1 or merge:
        return min(room, CHANGE_BITS)
    deviation = (clip - 2.0 * job.training.max_grad_norm) / 8.0
    if deviation <= 0.0:
        return room  # no bound of a private gradient; nothing can be said about its noise
    return min(
        room, max(CHANGE_BITS, 1 + math.ceil(math.log2(STEPS_PER_DEVIATION * clip / deviation)))
    )


def node_name(group: Sequence[str]) -> str:
    """A name that depends on the members alone."""
    return "node-" + hashlib.sha256("\n".join(group).encode()).hexdigest()[:16]


def evidence_of(message: Distances, job: Job, backbone: Backbone) -> Evidence:
    """Read the distances; `WireError` if their shape is not that of the model and the members."""
    count, depth = len(message.members), backbone.experts.depth
    squared = np.frombuffer(message.squared, dtype="<f8")
    if squared.size != depth * count * count or len(message.noise) != count:
        raise WireError(
            f"distances of {count} clients in {depth} layers must be {depth * count * count} values"
        )
    dimension = backbone.hidden_size
    if job.topology.source == "lora_b":
        dimension = sum(
            module.lora_B["cluster"].weight.numel() for module in backbone.experts.by_layer[0]
        )
    return Evidence(
        squared.reshape(depth, count, count),
        np.asarray(message.noise),
        dimension,
        job.topology.sketch_size,
    )


def compute_tree(
    roster: Sequence[str], evidence: Evidence, job: Job, present: Sequence[str]
) -> Tree:
    """Build the tree as the job's settings say.

    Args:
        roster: All clients of the job.
        present: Those that the evidence is about; the others keep every layer to themselves.
    """
    tree = build_tree(present, evidence, job.topology, job.masking.min_group)
    absent = [name for name in roster if name not in present]
    rows = []
    for row in tree.labels:
        known = dict(zip(present, row, strict=True))
        known |= {name: len(present) + i for i, name in enumerate(absent)}
        rows.append(tuple(known[name] for name in roster))
    whole = Tree(tuple(roster), tuple(rows), job.masking.min_group)
    return with_shared_head(whole) if job.head == "shared" else whole


def fixed_tree(job: Job, roster: Sequence[str], depth: int) -> Tree | None:
    """The tree of a job that needs no distances (``single``, ``alone``, or no rounds at all), else
    None.
    """
    source = job.topology.source if job.rounds else "alone"
    if source not in ("single", "alone"):
        return None
    tree = trivial_tree(roster, depth, source, job.masking.min_group)
    return with_shared_head(tree) if job.head == "shared" else tree


def check_tree(
    message: Distances, job: Job, roster: Sequence[str], backbone: Backbone
) -> Tree | None:
    """Repeat the server's clustering; None if it announces another tree (PROTOCOL, attack 7)."""
    if not set(message.members) <= set(roster) or len(message.members) < job.masking.min_group:
        return None
    if list(message.members) != sorted(set(message.members)):
        return None
    tree = compute_tree(roster, evidence_of(message, job, backbone), job, message.members)
    return tree if tree.labels == message.labels else None
