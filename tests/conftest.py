"""Makes the helpers beside it importable, and gives the tests a place in memory to write to.

Importlib mode adds no folder to the path. Stores are synced to the disk hundreds of times in a
small run, which is most of the suite's time; what kill -9 leaves behind does not depend on it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # tests run beside one another; as `make test` says it
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on what a hub answers

MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # bytes; containers often have 64 MiB


def _write_in_memory() -> None:
    """Let temporary folders, ours and pytest's, be in memory, unless somebody chose a place."""
    chosen = {"TMPDIR", "TEMP", "TMP"} & os.environ.keys()
    if chosen or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None  # read anew


_write_in_memory()

# Each of the packages whose coverage is held is covered by the tests of its own folder, not by what
# a run or an audit happens to reach; tracing all others would make them half as slow again.
COVERING = [Path(__file__).parent / f for f in ("secagg", "dp", "secure/client", "secure/agreed")]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Pause coverage for a whole test, its fixtures included, where it does not cover."""
    coverage = getattr(item.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if coverage is None or any(item.path.is_relative_to(folder) for folder in COVERING):
        return (yield)
    coverage.pause()
    try:
        return (yield)
    finally:
        coverage.resume()
