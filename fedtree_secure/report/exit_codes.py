"""Exit codes that pipelines rely on: each has one meaning, and none is ever given a second one.

`run`, `demo` and the other commands keep 0, 1, 2 and 130 (see `fedtree_secure.cli.app`), `audit` 0,
1 and 2. What `verify` and `gate` found wrong begins at 10, so that no crash, no signal and no usage
error of a shell can be mistaken for it.
"""

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """What `fedtree-secure verify` and `fedtree-secure gate` end with."""

    OK = 0
    USAGE = 2
    BUDGET = 10
    AUDIT = 11
    SIGNATURE = 12
    PROTOCOL = 13
    INCONCLUSIVE = 14


# What makes everything after it meaningless comes first: figures of a changed folder prove nothing.
SEVERITY = (Exit.SIGNATURE, Exit.PROTOCOL, Exit.BUDGET, Exit.AUDIT, Exit.INCONCLUSIVE)


def worst(codes: Iterable[Exit]) -> Exit:
    """Return the code to end with; `Exit.OK` where there are none."""
    found = set(codes)
    return next((code for code in SEVERITY if code in found), Exit.OK)
