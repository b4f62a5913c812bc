"""Who shares a head: clients that declared the same label set, and enough of them.

A head is a part of the layout like a layer, one for each group. Who is in a group is public: it
follows from what clients declare, never from their rows, and every party pins it (`Terms.heads`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rfc8785

from fedtree_secure.errors import ConfigurationError


@dataclass(frozen=True)
class HeadGroup:
    """Clients with one declared label set.

    Attributes:
        members: Their ids, sorted.
        outputs: Labels in the set.
        labels: SHA-256 over the labels in the order of the head's outputs.
    """

    members: tuple[str, ...]
    outputs: int
    labels: bytes


def labels_digest(labels: Sequence[str]) -> bytes:
    """Return the SHA-256 of a label set, in the order of the head's outputs."""
    return hashlib.sha256(b"fedtree-secure/labels/v1\n" + rfc8785.dumps(list(labels))).digest()


def head_groups(declared: Mapping[str, Sequence[str]], least: int) -> tuple[HeadGroup, ...]:
    """Group clients by their label sets.

    Args:
        declared: Label set of each client that declared one, by id.
        least: Members of the smallest group, `Masking.min_group`; a client outside every group
            keeps its head to itself.

    Raises:
        ConfigurationError: Two clients declare the same labels in another order: their heads'
            outputs would not mean the same.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    orders: dict[frozenset[str], tuple[str, ...]] = {}
    for name in sorted(declared):
        labels = tuple(declared[name])
        if orders.setdefault(frozenset(labels), labels) != labels:
            other = found[orders[frozenset(labels)]][0]
            raise ConfigurationError(
                f"clients {other} and {name} declare the same labels in another order; declare "
                "them in one order, or the outputs of their shared head would not mean the same"
            )
        found.setdefault(labels, []).append(name)
    groups = [
        HeadGroup(tuple(members), len(labels), labels_digest(labels))
        for labels, members in found.items()
        if len(members) >= least
    ]
    return tuple(sorted(groups, key=lambda group: group.labels))
