"""What a result says of a cohort that changed: trees by round, who came late, left or waits.

Made of public values, those that the server holds; a run whose cohort stayed as it began says
nothing of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtree_secure.agreed.cohort import Roll, line_of
from fedtree_secure.agreed.round_plan import nodes_of
from fedtree_secure.agreed.tree import Tree
from fedtree_secure.model.layout import Layout


@dataclass(frozen=True)
class Attendance:
    """What became of a cohort.

    Attributes:
        roll: All trees.
        first_rounds: Of each tree, the first one's is 0.
        gone: Who left, and whether it said so itself.
        waiting: Who came late and got no place.
        least: `min_group`.
    """

    roll: Roll
    first_rounds: tuple[int, ...]
    gone: Mapping[str, bool]
    waiting: tuple[str, ...]
    least: int


def cohort_report(
    found: Attendance, layout: Layout, part_names: Sequence[str]
) -> dict[str, Any] | None:
    """Return the summary's ``cohort``, None where nothing changed.

    Args:
        found: What became of it.
        layout: Coordinates of all parts.
        part_names: Name of each part of the tree.
    """
    if not (found.gone or found.waiting or len(found.roll.eras) > 1):
        return None
    trees = [era.tree for era in found.roll.eras]
    told = list(zip(found.first_rounds, trees, strict=True))
    came = {
        name: first
        for before, (first, tree) in zip(trees, told[1:], strict=False)
        for name in _came(before, tree)
    }
    closed = [
        {"round": first, "node": node.name, "members": list(node.members)}
        for before, (first, tree) in zip(trees, told[1:], strict=False)
        for node in _closed(before, tree, layout)
    ]
    return {
        "trees": [
            {"first_round": first, "released": _released(tree, part_names)} for first, tree in told
        ],
        "late": came,
        "left": sorted(name for name, said in found.gone.items() if said),
        "declared_gone": sorted(name for name, said in found.gone.items() if not said),
        "waiting": list(found.waiting),
        "closed": closed,
        "sentences": _sentences(found, came, closed),
    }


def _sentences(
    found: Attendance, came: Mapping[str, int], closed: Sequence[Mapping[str, Any]]
) -> list[str]:
    said = [f"{name} came late and is in sums from round {first}" for name, first in came.items()]
    members = found.roll.tree.sharers
    for name, own_word in sorted(found.gone.items()):
        how = "left for good" if own_word else "was declared gone by the server"
        rest = (
            "still counts as a member that misses every round, because fewer than "
            f"{found.least} left its sums"
            if name in members
            else "is a member of no sum any more"
        )
        said.append(f"{name} {how} and {rest}")
    if found.waiting:
        said.append(
            f"{', '.join(found.waiting)} came late and had to wait: a batch has at least "
            f"{found.least} clients that fit into one group"
        )
    said += [
        f"{entry['node']} closed before round {entry['round']}: fewer than {found.least} of its "
        f"{len(entry['members'])} members stayed; its experts stopped moving there"
        for entry in closed
    ]
    return said


def _came(before: Tree, after: Tree) -> list[str]:
    """Who is in a sum of a part in which it was in none; a head's group has all from the start."""
    return sorted(
        {
            name
            for part in range(len(after.labels))
            for group in after.released(part)
            for name in group
            if before.group_of(name, part) is None
        }
    )


def _released(tree: Tree, part_names: Sequence[str]) -> dict[str, list[list[str]]]:
    return {
        name: [list(group) for group in tree.released(part)] for part, name in enumerate(part_names)
    }


def _closed(before: Tree, after: Tree, layout: Layout) -> list[Any]:
    kept = set()
    for node in nodes_of(after, layout):
        line = dict(line_of((before, after), layout, node))
        kept.add((line[0].name, line[0].ranges))
    return [node for node in nodes_of(before, layout) if (node.name, node.ranges) not in kept]
