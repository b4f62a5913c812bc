"""A model that is loaded once for all sites of this folder."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

from organisations import Organisations  # noqa: E402
from small_jobs import make_job  # noqa: E402

from fedtree_secure.config import Topology, Training  # noqa: E402
from fedtree_secure.model.backbone import Backbone  # noqa: E402

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(head="local", records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 2,
}


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
