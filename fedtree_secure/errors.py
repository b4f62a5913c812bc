"""Every error that the toolkit raises on purpose, in one tree.

::

    FedTreeError
     ├── ConfigurationError  (also ValueError)  a setting is missing, unknown or out of range
     ├── DataError           (also ValueError)  a client's texts or labels cannot be used
     ├── BackboneError       (also ValueError)  the model cannot be loaded or has no place for LoRA
     ├── RunFolderError                         the output folder is another job's or damaged
     ├── StoreError                             a data set's store cannot be used as it is
     ├── RunStopped                             a run ended early; says why and how to continue
     ├── fedtree_dp.DPError                     budget, ledger and training errors
     └── fedtree_secagg.SecAggError             protocol errors

A wrong setting raises the same `ConfigurationError` in every package: this one is `fedtree_dp`'s,
and `fedtree_secagg`'s is a subclass of it. The lower packages import no package of ours, so they
are hung into the tree here, when the tree is first loaded.
"""

import difflib
from collections.abc import Iterable

from fedtree_dp import DPError
from fedtree_dp.errors import ConfigurationError
from fedtree_secagg import ConfigurationError as SecAggConfigurationError
from fedtree_secagg import SecAggError


class FedTreeError(Exception):
    """Base of all errors of this project."""


def _hang_into_tree() -> None:
    """Make `except FedTreeError` catch the errors of the lower packages, too."""
    DPError.__bases__ = (FedTreeError,)
    SecAggError.__bases__ = (FedTreeError,)
    SecAggConfigurationError.__bases__ = (SecAggError, ConfigurationError)


_hang_into_tree()


class DataError(FedTreeError, ValueError):
    """A client's data cannot be used as given. Nothing was charged."""


class BackboneError(FedTreeError, ValueError):
    """The backbone cannot be loaded, or has no layer that LoRA could be attached to."""


class RunFolderError(FedTreeError):
    """The output folder holds another job, is in use, or lacks a file that it must have."""


class StoreError(FedTreeError):
    """A data set's store is foreign, damaged, or cannot be written. Nothing was sent."""


class RunStopped(FedTreeError):  # noqa: N818 - what happened, not a fault
    """A run ended early; what was finished is kept and the text says how to continue."""


def suggest(given: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed name, or the list of all names."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(names)}"


__all__ = [
    "BackboneError",
    "ConfigurationError",
    "DataError",
    "FedTreeError",
    "RunFolderError",
    "RunStopped",
    "StoreError",
    "suggest",
]
