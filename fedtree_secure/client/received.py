"""The experts that a client holds: checked when they arrive, moved by the client itself.

A client never takes a node's values from the server. It gets the opened sums since the round that
it knows, moves its nodes by them (`agreed.moves`), and compares digests. The external expert is the
mean of nodes that it does not belong to; of that it checks the digest that all members of its node
were given, and that the public optimiser can have reached it.
"""

import copy

import numpy as np

from fedtree_dp import DPError
from fedtree_secagg import Node
from fedtree_secure.agreed.class_sums import take_sum
from fedtree_secure.agreed.cohort import line_of
from fedtree_secure.agreed.messages import Experts, OpenedSum, WireError, unpack
from fedtree_secure.agreed.moves import NodeValues, mean_of, node_digest, start, within_reach
from fedtree_secure.agreed.round_plan import nodes_of, reach_of_parts
from fedtree_secure.agreed.stages import MERGE
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.client.party import Party
from fedtree_secure.client.sessions import Received
from fedtree_secure.client.state import ClientState, head_from
from fedtree_secure.client.step import Refusal


def receive(party: Party, experts: Experts, before: int) -> Received:
    """Check what the server sent for a round, on copies.

    Args:
        before: The round that begins, or the job's rounds plus one at the end.

    Raises:
        WireError: The form is wrong.
        Refusal: A value is not the one that follows from the opened sums, or out of reach.
    """
    own = party.nodes()
    moved = _moved(party, own, experts.opened, before)
    external = unpack(experts.external, party.facts.layout.length)
    bound, initial = reach_of_parts(party.job, party.facts.layout, before), party.facts.initial
    if not within_reach(external, initial, bound):
        raise Refusal("experts", "the external expert is out of the public optimiser's reach")
    for node in own:  # an invented sum under a wide clip could move a node anywhere
        values, allowed = moved[node.name].values, node.gather(bound)
        if not within_reach(values, start(node, initial).values, allowed):
            raise Refusal("experts", f"{node.name}: its sums move it further than clients can")
    every = nodes_of(party.tree(), party.facts.layout)
    if party.has_tree and tuple(entry.node for entry in experts.digests) != tuple(
        node.name for node in every
    ):
        raise Refusal("experts", "the digests are not those of this tree's nodes")
    told = {entry.node: entry for entry in experts.digests}
    for node in own:
        if told.get(node.name) != node_digest(node, moved[node.name], external):
            raise Refusal("experts", f"{node.name}: its values do not follow from the opened sums")
    known = max(before - 1, party.store.record.known_round)
    merged = party.store.record.head_merged or _merges_head(party, own, experts.opened)
    return Received(moved, external, known, experts.digests, merged)


def _merges_head(party: Party, own: tuple[Node, ...], opened: tuple[OpenedSum, ...]) -> bool:
    trees = [era.tree for era in party.roll().eras]
    held = {
        (era, then.name)
        for node in own
        if node.ranges[0] == party.head_range()
        for era, then in line_of(trees, party.facts.layout, node)
    }
    return any(entry.round == MERGE and (entry.era, entry.node) in held for entry in opened)


def checked_experts(party: Party, experts: Experts, before: int) -> Received:
    """Check experts, and rehearse on public records under them; private rows come only after.

    Raises:
        WireError, Refusal: As `receive`; or public records cannot be trained on under them.
    """
    received = receive(party, experts, before)
    if before == MERGE:
        return received  # a merge trains nothing
    rehearsed = ClientState.from_bytes(party.store.state.to_bytes())
    take_over(party, rehearsed, received)
    try:
        party.rehearse(rehearsed)
    except DPError as error:
        raise Refusal("experts", f"public records cannot be trained on: {error}") from None
    return received


def _moved(
    party: Party, own: tuple[Node, ...], opened: tuple[OpenedSum, ...], before: int
) -> dict[str, NodeValues]:
    trees = [era.tree for era in party.roll().eras]
    # What each of its nodes was called, and was, under every tree.
    lines = {
        (era, then.name): (node, then)
        for node in own
        for era, then in line_of(trees, party.facts.layout, node)
    }
    order = [(entry.round, entry.node) for entry in opened]
    if order != sorted(set(order)) or any((e.era, e.node) not in lines for e in opened):
        raise WireError("opened sums must be of the client's own nodes, in order, each once")
    if any(entry.round >= before for entry in opened):
        raise WireError("an opened sum of a round that is not over")
    state, known = party.store.state, party.store.record.known_round
    moved = {
        node.name: copy.deepcopy(state.nodes.get(node.name)) or start(node, party.facts.initial)
        for node in own
    }
    for entry in opened:
        if entry.round > known:
            now, then = lines[entry.era, entry.node]
            _move(party, then, trees[entry.era], moved[now.name], entry)
    return moved


def _move(party: Party, node: Node, tree: Tree, values: NodeValues, entry: OpenedSum) -> None:
    merge = entry.round == MERGE
    if merge and not party.terms.merges:
        raise WireError("this job has no merge round")
    fixed = party.store.record.clips.get("merge" if merge else "round")
    usable = party.takes_clip(entry.clip, merge=merge)
    if not usable or (fixed is not None and entry.clip != fixed):
        raise Refusal("clip", "an opened sum under another clip than the run's")
    grid = party.quantiser(entry.clip, merge=merge, tree=tree)
    mean = mean_of(entry, node, grid, party.job.masking.min_group)
    take_sum(party.job, party.facts, node, values, mean, survivors=entry.survivors, merge=merge)


def take_over(party: Party, state: ClientState, received: Received) -> None:
    """Write checked experts into a client's values; what it keeps to itself stays as it is."""
    layout = party.facts.layout
    given = np.array(party.facts.initial, copy=True)
    state.nodes = received.nodes
    for node in party.nodes():
        node.scatter(received.nodes[node.name].values, given)
    shares = party.shares(merged=received.head_merged)
    for (begin, end), shared in zip(layout.layers, shares, strict=False):
        if shared:
            state.own[begin:end] = given[begin:end]
        state.external[begin:end] = received.external[begin:end]
    for (begin, end), shared in zip(layout.heads, shares[len(layout.layers) :], strict=True):
        if shared:
            head_from(state.head, given[begin:end])
