"""A model that is loaded once for all sites of this folder."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cli")]

from organisations import ONE, Organisations  # noqa: E402
from small_jobs import make_job  # noqa: E402

from fedtree_secure.model.backbone import Backbone  # noqa: E402


@pytest.fixture(scope="session")
def backbone(tiny_bert):
    """The model as every party has it."""
    return Backbone(make_job(tiny_bert, **ONE))


@pytest.fixture
def clinics(tmp_path, tiny_bert, backbone):
    """Three organisations, ready: keys, roster, policies, stores and approvals."""
    found = Organisations(tmp_path, tiny_bert, tasks=1, **ONE)
    found.ready(backbone.frozen_digest.hex())
    return found
