"""Tree-structured federated LoRA with DP-SGD and secure aggregation: import from here alone."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedtree_dp import BudgetExceeded, Ledger, LedgerError, PrivacyBudget
    from fedtree_secure.client.data import Client
    from fedtree_secure.config import Cohort, Lora, Masking, Pacing, Server, Topology, Training
    from fedtree_secure.errors import (
        BackboneError,
        ConfigurationError,
        DataError,
        FedTreeError,
        RunFolderError,
        RunStopped,
        StoreError,
    )
    from fedtree_secure.federation import Federation
    from fedtree_secure.report.summary import Result

_HOMES = {
    "BudgetExceeded": "fedtree_dp",
    "Ledger": "fedtree_dp",
    "LedgerError": "fedtree_dp",
    "PrivacyBudget": "fedtree_dp",
    "Cohort": "fedtree_secure.config",
    "Lora": "fedtree_secure.config",
    "Masking": "fedtree_secure.config",
    "Pacing": "fedtree_secure.config",
    "Server": "fedtree_secure.config",
    "Topology": "fedtree_secure.config",
    "Training": "fedtree_secure.config",
    "Client": "fedtree_secure.client.data",
    "BackboneError": "fedtree_secure.errors",
    "ConfigurationError": "fedtree_secure.errors",
    "DataError": "fedtree_secure.errors",
    "FedTreeError": "fedtree_secure.errors",
    "RunFolderError": "fedtree_secure.errors",
    "RunStopped": "fedtree_secure.errors",
    "StoreError": "fedtree_secure.errors",
    "Federation": "fedtree_secure.federation",
    "load_adapter": "fedtree_secure.model.delivered",
    "Result": "fedtree_secure.report.summary",
}

__all__ = [
    "BackboneError",
    "BudgetExceeded",
    "Client",
    "Cohort",
    "ConfigurationError",
    "DataError",
    "FedTreeError",
    "Federation",
    "Ledger",
    "LedgerError",
    "Lora",
    "Masking",
    "Pacing",
    "PrivacyBudget",
    "Result",
    "RunFolderError",
    "RunStopped",
    "Server",
    "StoreError",
    "Topology",
    "Training",
    "load_adapter",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
