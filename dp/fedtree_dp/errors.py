"""Every exception this package raises on purpose.

All of them are a `DPError`:

- `ConfigurationError` (also a `ValueError`): a value that would make a privacy claim false or
  undefined
- `BudgetExceeded`: a release that the budget does not cover; nothing was charged and nothing may
  leave
- `LedgerError`: a ledger that cannot be read, written or used for this data set; a kind of it are
  `LedgerTampered`, a ledger whose contents contradict themselves, its head or a checkpoint, and
  `LedgerRolledBack`, a ledger or its head that was set back to an older copy
- `TrainingError`: a training step that must not be released

Texts say what was given, what is allowed and what to do. They never hold private values: only
names, public numbers and file paths.
"""

from __future__ import annotations


class _Root(Exception):  # noqa: N818 - a place in the tree, not an error
    """Only here so that a package above may put its own root in this place (see its errors)."""


class DPError(_Root):
    """Base of every error of this package."""


class ConfigurationError(DPError, ValueError):
    """A value that would make the privacy claim false or undefined; refused before anything
    happens.
    """


class BudgetExceeded(DPError):  # noqa: N818 - a refusal, named as what happened
    """The release does not fit into the budget. Nothing was charged.

    Attributes:
        spent: epsilon of everything charged so far, at the budget's delta.
        requested_total: epsilon that all charges together would have reached; `inf` when no finite
            value was asked for.
        allowed: epsilon of the budget.
    """

    def __init__(
        self, message: str, *, spent: float, requested_total: float, allowed: float
    ) -> None:
        super().__init__(message)
        self.spent = spent
        self.requested_total = requested_total
        self.allowed = allowed


class LedgerError(DPError):
    """The file is missing, foreign, of another schema, or cannot be read or written durably."""


class LedgerTampered(LedgerError):  # noqa: N818 - as above
    """The hash chain, a row or a checkpoint contradicts the rest. Never repaired silently."""


class LedgerRolledBack(LedgerError):  # noqa: N818 - as above
    """Store, head or key is an older copy than the others: charges may be missing."""


class TrainingError(DPError):
    """A training step failed in a way that must not be released."""
