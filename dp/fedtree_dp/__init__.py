"""Differential privacy for adapters: budgets, accounting, ledger, noise and the DP-SGD engine.

The names of the engine half are imported on first use, because torch and Opacus take seconds to
load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedtree_dp.account.accounting import epsilon_of
from fedtree_dp.account.budget import PrivacyBudget
from fedtree_dp.account.calibration import calibrate
from fedtree_dp.account.events import (
    Event,
    Gaussian,
    PoissonGaussian,
    SharedPoissonGaussian,
    TruncatedPoissonGaussian,
)
from fedtree_dp.account.filters import RenyiFilter
from fedtree_dp.account.shared import given_honest
from fedtree_dp.account.statements import Statement, statement
from fedtree_dp.account.unit import PrivacyUnit
from fedtree_dp.errors import (
    BudgetExceeded,
    ConfigurationError,
    DPError,
    LedgerError,
    LedgerRolledBack,
    LedgerTampered,
    TrainingError,
)
from fedtree_dp.ledger.checkpoint import Checkpoint
from fedtree_dp.ledger.entries import Entry
from fedtree_dp.ledger.ledger import Ledger
from fedtree_dp.ledger.transaction import Transaction

if TYPE_CHECKING:
    from fedtree_dp.randomness.class_sums import class_sums
    from fedtree_dp.randomness.discrete import discrete_gaussian
    from fedtree_dp.randomness.mechanisms import gaussian_mean
    from fedtree_dp.randomness.noise import NoiseSource
    from fedtree_dp.randomness.sampling import PoissonSampler
    from fedtree_dp.sgd.engine import DPSGD, StepReport
    from fedtree_dp.sgd.losses import per_sequence_loss
    from fedtree_dp.sgd.optimizer import PrivateOptimizer

_LATER = {
    "DPSGD": "sgd.engine",
    "NoiseSource": "randomness.noise",
    "PoissonSampler": "randomness.sampling",
    "PrivateOptimizer": "sgd.optimizer",
    "StepReport": "sgd.engine",
    "class_sums": "randomness.class_sums",
    "discrete_gaussian": "randomness.discrete",
    "gaussian_mean": "randomness.mechanisms",
    "per_sequence_loss": "sgd.losses",
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
    "LedgerRolledBack",
    "LedgerTampered",
    "NoiseSource",
    "PoissonGaussian",
    "PoissonSampler",
    "PrivacyBudget",
    "PrivacyUnit",
    "PrivateOptimizer",
    "RenyiFilter",
    "SharedPoissonGaussian",
    "Statement",
    "StepReport",
    "TrainingError",
    "Transaction",
    "TruncatedPoissonGaussian",
    "calibrate",
    "class_sums",
    "discrete_gaussian",
    "epsilon_of",
    "gaussian_mean",
    "given_honest",
    "per_sequence_loss",
    "statement",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
