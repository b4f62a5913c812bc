"""Differential privacy for adapters: budgets, accounting, ledger, noise and the DP-SGD engine.

The names of the engine half are imported on first use, because torch and Opacus take seconds to load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedtree_dp.accounting import epsilon_of
from fedtree_dp.budget import PrivacyBudget
from fedtree_dp.calibration import calibrate
from fedtree_dp.checkpoint import Checkpoint
from fedtree_dp.entries import Entry
from fedtree_dp.errors import (
    BudgetExceeded,
    ConfigurationError,
    DPError,
    LedgerError,
    LedgerTampered,
    TrainingError,
)
from fedtree_dp.events import Event, Gaussian, PoissonGaussian, TruncatedPoissonGaussian
from fedtree_dp.filters import RenyiFilter
from fedtree_dp.ledger import Ledger
from fedtree_dp.statements import Statement, statement

if TYPE_CHECKING:
    from fedtree_dp.discrete import discrete_gaussian
    from fedtree_dp.engine import DPSGD, StepReport
    from fedtree_dp.losses import per_sequence_loss
    from fedtree_dp.mechanisms import gaussian_mean
    from fedtree_dp.noise import NoiseSource
    from fedtree_dp.optimizer import PrivateOptimizer
    from fedtree_dp.sampling import PoissonSampler

_LATER = {
    "DPSGD": "engine",
    "NoiseSource": "noise",
    "PoissonSampler": "sampling",
    "PrivateOptimizer": "optimizer",
    "StepReport": "engine",
    "discrete_gaussian": "discrete",
    "gaussian_mean": "mechanisms",
    "per_sequence_loss": "losses",
}

__all__ = [
    "DPSGD",
    "BudgetExceeded",
    "Checkpoint",
    "ConfigurationError",
    "DPError",
    "Entry",
    "Event",
    "Gaussian",
    "Ledger",
    "LedgerError",
    "LedgerTampered",
    "NoiseSource",
    "PoissonGaussian",
    "PoissonSampler",
    "PrivacyBudget",
    "PrivateOptimizer",
    "RenyiFilter",
    "Statement",
    "StepReport",
    "TrainingError",
    "TruncatedPoissonGaussian",
    "calibrate",
    "discrete_gaussian",
    "epsilon_of",
    "gaussian_mean",
    "per_sequence_loss",
    "statement",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
