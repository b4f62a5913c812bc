"""Whose turn a round is, where a job asks a share of its clients: drawn from what is public.

The draw saves clients work and budget. It hides nobody: all know whose turn it is, so no
amplification by sampling of clients is claimed, and the noise is that of clients who take every
round. Who is not asked stays a member of its sums, like one that misses the round: the members of a
sum do not move.
"""

import hashlib
import math
from collections.abc import Collection

from fedtree_secure.agreed.stages import FIRST
from fedtree_secure.agreed.terms import Terms


def turn_of(terms: Terms, number: int) -> frozenset[str]:
    """Return the clients that a round asks: ``cohort.share`` of the roster, rounded up.

    The merge and the first round ask everybody: heads and trees are made of them.
    """
    names, share = terms.names, terms.job.cohort.share
    if share == 1.0 or number <= FIRST:
        return frozenset(names)

    def drawn(name: str) -> bytes:
        counter = number.to_bytes(4, "big")
        return hashlib.sha256(
            b"fedtree-secure/schedule/v1\n" + terms.digest + counter + name.encode()
        ).digest()

    return frozenset(sorted(names, key=drawn)[: math.ceil(share * len(names))])


def opens(terms: Terms, turn: Collection[str], members: Collection[str]) -> bool:
    """Say whether a sum could open in a round: enough of its members are asked."""
    return len(set(turn).intersection(members)) >= terms.job.masking.min_group
