"""`fedtree_audits.audit`: one audit of one run, from Python."""

import tomllib
from pathlib import Path

import pytest

from fedtree_audits import audit
from fedtree_audits.errors import UnknownAudit

ROOT = Path(__file__).parents[2]


def test_every_audit_of_the_command_line_can_be_called(tmp_path):
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name in groups["fedtree_secure.audits"]:
        assert audit(tmp_path, name).verdict == "INCONCLUSIVE"  # there is no run


def test_a_misspelt_audit_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(UnknownAudit, match="no audit 'ledgr'"):
        audit(tmp_path, "ledgr")
