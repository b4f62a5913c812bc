"""Every error that the toolkit raises on purpose, in one tree.

::

    FedTreeError
     ├── ConfigurationError   (also ValueError)  a setting is missing, unknown or out of range
     ├── DataError            (also ValueError)  a client's texts or labels cannot be used
     ├── BackboneError        (also ValueError)  the model cannot be loaded or has no place for LoRA
     ├── RunFolderError                          the output folder is another job's or damaged
     └── RunStopped                              a run ended early; says why and how to continue

Budget, ledger and protocol errors are raised by the layers below (`fedtree_dp`, `fedtree_secagg`)
and pass through unchanged.
"""

import difflib
from collections.abc import Iterable


class FedTreeError(Exception):
    """Base of all errors of `fedtree_secure`."""


class ConfigurationError(FedTreeError, ValueError):
    """A setting is missing, unknown or outside its allowed range. Nothing was started."""


class DataError(FedTreeError, ValueError):
    """A client's data cannot be used as given. Nothing was charged."""


class BackboneError(FedTreeError, ValueError):
    """The backbone cannot be loaded, or has no layer that LoRA could be attached to."""


class RunFolderError(FedTreeError):
    """The output folder holds another job, is in use, or lacks a file that it must have."""


class RunStopped(FedTreeError):  # noqa: N818 - what happened, not a fault
    """A run ended early; what was finished is kept and the text says how to continue."""


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or the list of all names."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(names)}"
