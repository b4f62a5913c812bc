"""Tests with real processes: SuperLink, server and nodes on 127.0.0.1, TLS, node authentication.

They need Flower, which has an environment of its own: `make test-flower`. Where Flower is not
installed, `make test` collects nothing here.
"""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS / "secure" / "site"), str(TESTS / "secure"), str(TESTS)]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
os.environ.update(QUIET)
collect_ignore_glob = [] if importlib.util.find_spec("flwr") else ["test_*.py"]

if not collect_ignore_glob:
    from fixtures_of_flower import (  # noqa: F401
        backbone,
        module_stores,
        six,
        stores,
        tiny,
    )


def pytest_configure(config):
    """Flower's own dependencies warn of each other; ours are watched by `make test`."""
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:(flwr|typer|click).*")
