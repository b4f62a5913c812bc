"""How a run's cohort changes between rounds: who comes late, who left, and what may follow.

A *change* makes the next tree from the one in force. Its labels are a function of what it says, so
server and clients compute them and must agree; a quorum of the roster signs it, as at set-up. What
the function never does is the disclosure rule: between any two trees of a run, however far apart,
a sum's members move by nobody or by at least `min_group`, and no combination of its sums is about
fewer (docs/cohort.md). Nodes keep their coordinates and no two become one, so each has one line of
ancestors, along which values move on.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fedtree_secagg import Node
from fedtree_secure.agreed.messages import Change, ProposeTree, WireError, digest
from fedtree_secure.agreed.round_plan import check_members, evidence_of, nodes_of
from fedtree_secure.agreed.terms import Terms
from fedtree_secure.agreed.tree import Tree, tree_of
from fedtree_secure.model.facts import ModelFacts
from fedtree_secure.model.layout import Layout

Group = tuple[str, ...]
Path = tuple[Group | None, ...]
"""The sum that a client is in at each layer; None where it keeps the layer to itself."""


@dataclass(frozen=True)
class Era:
    """A tree in force.

    Attributes:
        tree: The tree.
        evidence: What it comes from: digest of the proposal, then of the change; in every plan.
    """

    tree: Tree
    evidence: str


@dataclass(frozen=True)
class Roll:
    """All trees of a run so far and who belongs to it.

    Attributes:
        eras: From the first to the one in force.
        seated: Clients that distances have placed, in whatever groups.
        gone: Clients that left for good, or were declared gone.
    """

    eras: tuple[Era, ...]
    seated: frozenset[str]
    gone: frozenset[str] = frozenset()

    @property
    def tree(self) -> Tree:
        """The tree in force."""
        return self.eras[-1].tree


def first_roll(terms: Terms, tree: Tree, proposal: ProposeTree | None) -> Roll:
    """Return the roll of a run whose first tree was adopted.

    Args:
        proposal: Where the tree comes from; None for a tree without distances, which places all.
    """
    seated = terms.names if proposal is None else proposal.members
    evidence = "" if proposal is None else digest(proposal)
    return Roll((Era(tree, evidence),), frozenset(seated))


# --- the disclosure rule ------------------------------------------------------------------------


def may_follow(earlier: Iterable[Collection[str]], members: Collection[str], least: int) -> bool:
    """Say whether a sum over these members may follow sums over earlier ones.

    Clients that were in exactly the same of all these sums are one atom. Each must have at least
    ``least`` members: every linear combination of the sums is the same for a whole atom, so none is
    about fewer clients. Moves between any two of the sums are unions of atoms.
    """
    sums = [set(members), *map(set, earlier)]
    everybody: set[str] = set().union(*sums)
    atoms = Counter(tuple(name in held for held in sums) for name in everybody)
    return min(atoms.values()) >= least


def successor(roll: Roll, layers: int, nearest: Mapping[str, Path], gone: frozenset[str]) -> Tree:
    """Return the tree that follows.

    A sum takes in the late clients that are nearest to it and lets go of those who left, where
    `may_follow` allows either. Who left and may not be let go of stays a member that misses every
    round. A sum with fewer than `min_group` members that did not leave closes: it is never opened
    again, and its members keep these layers to themselves.

    Args:
        roll: What was before.
        layers: Parts of the tree that are layers; the others are heads.
        nearest: For each late client, the path that it would take; see `nearest_paths`.
        gone: All who left so far.
    """
    tree, least = roll.tree, roll.tree.min_group
    olds = _sums(tree, layers)
    taken = {(kind, group) for kind, group, _ in olds}
    next_of: dict[tuple[int, Group], Group] = {}
    for kind, group, parts in olds:
        came = {name for name, path in nearest.items() if kind == "node" and group in path}
        went = gone.intersection(group)
        history = [old for part in parts for old in _ancestors(roll, part, group)]
        whole = set(group)
        wished = (whole | came) - went, whole | came, whole - went, whole
        new = next(
            found
            for found in (tuple(sorted(wish)) for wish in wished)
            if found == group or ((kind, found) not in taken and may_follow(history, found, least))
        )
        open_ = len(set(new) - gone) >= least
        taken.add((kind, new))
        for part in parts:
            next_of[part, group] = new if open_ else ()
    if all(new == group for (_, group), new in next_of.items()):
        return tree
    return _labelled(tree, next_of)


def _sums(tree: Tree, layers: int) -> list[tuple[str, Group, tuple[int, ...]]]:
    """Kind, members and parts of each sum. A group that is one in several layers is one sum."""
    found: dict[tuple[str, Group, int], list[int]] = {}
    for part in range(len(tree.labels)):
        kind, own = ("node", -1) if part < layers else ("head", part)
        for group in tree.released(part):
            found.setdefault((kind, group, own), []).append(part)
    return [(kind, group, tuple(parts)) for (kind, group, _), parts in found.items()]


def _ancestors(roll: Roll, part: int, group: Group) -> Iterator[Group]:
    """Yield what a sum of a part was, from now back to the first tree."""
    now: Group = group
    for era in reversed(roll.eras):
        # Groups of a part share no member, and members come only from outside of all of them.
        now = next(old for old in era.tree.released(part) if not set(old).isdisjoint(now))
        yield now


def _labelled(tree: Tree, next_of: Mapping[tuple[int, Group], Group]) -> Tree:
    rows = []
    for part, row in enumerate(tree.labels):
        places: dict[str, object] = dict(zip(tree.members, row, strict=True))
        for group in tree.released(part):
            places |= {name: ("apart", name) for name in group}
        for group in tree.released(part):
            places |= dict.fromkeys(next_of[part, group], ("sum", group))
        numbers: dict[object, int] = {}
        rows.append(tuple(numbers.setdefault(places[n], len(numbers)) for n in tree.members))
    return tree_of(tree.members, tuple(rows), tree.min_group)


# --- where late clients belong ------------------------------------------------------------------


def nearest_paths(
    terms: Terms, facts: ModelFacts, roll: Roll, distances: ProposeTree, late: Sequence[str]
) -> dict[str, Path]:
    """Return for each late client the path of those whose vectors are nearest to its own: the
    smallest mean squared distance over members and layers, noise taken off; the first of equals.

    Raises:
        WireError: The distances cannot be read.
    """
    evidence = evidence_of(distances, terms.job, facts)
    noise = evidence.noise[:, None] + evidence.noise[None, :]
    mean = (evidence.squared - noise).mean(axis=0)
    at = {name: place for place, name in enumerate(distances.members)}
    paths: dict[Path, list[int]] = {}
    for name in distances.members:
        path = tuple(roll.tree.group_of(name, layer) for layer in range(facts.depth))
        if name in roll.seated and any(path):
            paths.setdefault(path, []).append(at[name])
    if not paths:
        return {}
    order = list(paths)
    found = {}
    for name in late:
        away = [float(np.mean(mean[at[name], paths[path]])) for path in order]
        found[name] = order[int(np.argmin(away))]
    return found


def next_tree(
    terms: Terms, facts: ModelFacts, roll: Roll, change: Change
) -> tuple[Tree, frozenset[str]]:
    """Return the tree that a change makes, and the late clients that it seats: those who came into
    a sum. The others may come with a later batch.
    """
    nearest: dict[str, Path] = {}
    if change.distances is not None:
        nearest = nearest_paths(terms, facts, roll, change.distances, change.late)
    gone = frozenset(name for name, _ in change.gone)
    tree = successor(roll, facts.depth, nearest, gone)
    came = frozenset(
        name
        for name in change.late
        if any(tree.group_of(name, layer) is not None for layer in range(facts.depth))
    )
    return tree, came


def follow(terms: Terms, facts: ModelFacts, roll: Roll, change: Change) -> Roll:
    """Check a change against what was before, and return what it leads to.

    Raises:
        WireError: It is not the next one, or not what follows from what it says.
    """
    if change.number != len(roll.eras) or change.before != roll.eras[-1].evidence:
        raise WireError(f"change {change.number} does not follow the tree that is in force")
    _check_gone(terms, roll, change)
    _check_late(terms, roll, change)
    tree, came = next_tree(terms, facts, roll, change)
    if tree == roll.tree:
        raise WireError("a change that changes nothing")
    if tree.labels != change.labels:
        raise WireError("the labels of the change do not follow from what it says")
    gone = frozenset(name for name, _ in change.gone)
    return Roll((*roll.eras, Era(tree, change_digest(change))), roll.seated | came, gone)


def _check_gone(terms: Terms, roll: Roll, change: Change) -> None:
    names = [name for name, _ in change.gone]
    if names != sorted(set(names)) or not roll.gone <= set(names) <= set(terms.names):
        raise WireError("those who left must be clients of the roster, sorted, and stay away")
    for name, signature in change.gone:
        if signature and not terms.roster.verifies(name, signature, leave_bytes(terms, name)):
            raise WireError(f"{name} did not sign that it leaves")


def _check_late(terms: Terms, roll: Roll, change: Change) -> None:
    late, distances = change.late, change.distances
    if not late:
        if distances is not None:
            raise WireError("distances of a change that nobody comes with")
        return
    if not terms.job.cohort.late:
        raise WireError("this job takes nobody in late")
    if list(late) != sorted(set(late)) or not set(late) <= set(terms.names):
        raise WireError("late clients must be of the roster, sorted, each once")
    if len(late) < terms.job.masking.min_group:
        raise WireError(f"{len(late)} late clients; a batch has at least min_group")
    if set(late) & (roll.seated | {name for name, _ in change.gone}):
        raise WireError("a client that has its place, or left, comes late")
    if distances is None or not set(late) <= set(distances.members) or distances.gradients:
        raise WireError("late clients are placed by distances of fingerprints that theirs are in")
    check_members(distances.members, terms)


def change_digest(change: Change) -> str:
    """SHA-256 of a change; it holds the digest of what was before, so it names the whole line."""
    return hashlib.sha256(
        b"fedtree-secure/change/v1\n" + msgspec.msgpack.encode(change)
    ).hexdigest()


def change_vote_bytes(terms: Terms, change: Change) -> bytes:
    """Return what a client signs to say that it computed a change itself."""
    named = bytes.fromhex(change_digest(change))
    return b"fedtree-secure/change-vote/v1\n" + terms.digest + named


def leave_bytes(terms: Terms, name: str) -> bytes:
    """Return what a client signs to leave a run for good."""
    return b"fedtree-secure/leave/v1\n" + terms.digest + name.encode()


# --- lines of nodes -----------------------------------------------------------------------------


def line_of(trees: Sequence[Tree], layout: Layout, node: Node) -> Iterator[tuple[int, Node]]:
    """Yield what a node of the last tree was under each tree, with the tree's place, from the last
    one back.
    """
    now = node
    for place in range(len(trees) - 1, -1, -1):
        now = next(
            old
            for old in nodes_of(trees[place], layout)
            if old.ranges == now.ranges and not set(old.members).isdisjoint(now.members)
        )
        yield place, now
