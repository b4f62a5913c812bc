"""The gate as a pytest fixture, for pipelines whose checks are tests.

Put ``pytest_plugins = ["fedtree_secure.report.pytest_gate"]`` into a conftest.py; nothing is loaded
otherwise. See ``examples/ci/test_release.py``.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtree_secure.report.exit_codes import Exit
from fedtree_secure.report.gate import Decision, Limits, decide

PrivacyGate = Callable[[str | Path, Limits], Decision]


@pytest.fixture
def privacy_gate() -> PrivacyGate:
    """Return a function that fails the test unless a run folder passes, and says why.

    Its arguments are the run folder and the `Limits`; it returns the `Decision`.
    """

    def check(run: str | Path, limits: Limits) -> Decision:
        found = decide(Path(run), limits)
        if found.code is not Exit.OK:
            reasons = "\n".join(f"  {t.code:d} {t.said}" for t in found.troubles)
            pytest.fail(f"{run} does not pass ({found.code:d}):\n{reasons}", pytrace=False)
        return found

    return check
