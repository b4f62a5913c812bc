"""A release check as a test: RUN=runs/first pytest examples/ci/test_release.py."""

import os
from pathlib import Path

from fedtree_secure.report.gate import Limits, read_required

pytest_plugins = ["fedtree_secure.report.pytest_gate"]
HERE = Path(__file__).parent


def test_the_run_may_be_released(privacy_gate):
    """Fails with the gate's reasons unless the run passes."""
    audits = read_required(HERE / "required.toml")
    decision = privacy_gate(os.environ["RUN"], Limits(max_epsilon=8, audits=audits))
    print("largest epsilon:", max(decision.epsilon.values()))
