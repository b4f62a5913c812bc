"""Errors that audits raise on purpose.

::

    AuditError
     ├── ScoresError      (also ValueError)  scores that allow no bound: nan, ties only, one class
     ├── UnknownAudit     (also ValueError)  no audit has this name
     └── MissingEvidence                     the run lacks what the audit needs: INCONCLUSIVE
"""


class AuditError(Exception):
    """Base of all errors of `fedtree_audits`."""


class ScoresError(AuditError, ValueError):
    """Scores or settings from which no valid bound follows; the text says which and what is
    allowed.
    """


class MissingEvidence(AuditError):  # noqa: N818 - what is the case, not a fault of the caller
    """The run does not hold a file or record that this audit reads; named in the text."""


class UnknownAudit(AuditError, ValueError):  # noqa: N818 - what is the case
    """There is no audit of this name; those that there are stand in the text."""
