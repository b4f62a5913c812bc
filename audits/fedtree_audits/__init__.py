"""Audits: attack the running system and compare what leaks with what was claimed.

::

    from fedtree_audits import audit

    assert audit("runs/first", "ledger").verdict == "PASS"
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedtree_audits.command import audit

__all__ = ["audit"]


def __getattr__(name: str) -> Any:
    """Import `audit` when it is first used: what it needs takes seconds to load."""
    if name != "audit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fedtree_audits.command import audit

    return audit
