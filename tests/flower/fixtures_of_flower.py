"""What the tests of this folder share: a tiny model, and organisations that use it."""

import pytest
import torch
from organisations import Organisations
from small_jobs import make_job
from tiny_models import write_bert

from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.facts_file import write_facts

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A 4-layer BERT of hidden size 32."""
    return write_bert(tmp_path_factory.mktemp("tiny-bert"), layers=4)


@pytest.fixture(scope="session")
def backbone(tiny):
    """The model as every party has it; adapters of `make_job`."""
    return Backbone(make_job(tiny))


@pytest.fixture(scope="module", autouse=True)
def module_stores(tmp_path_factory):
    """Stores of embedded runs; never in the user's own folder."""
    place = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTREE_STATE", str(place / "state"))
        patch.setenv("FEDTREE_HEADS", str(place / "heads"))
        yield place


@pytest.fixture(autouse=True)
def stores(module_stores):
    """The same for each test."""
    return module_stores / "state"


@pytest.fixture
def six(tmp_path, tiny, backbone):
    """Makes ready organisations: their job folder has all that `serve` needs."""

    def make(*, tasks=2, each=3, **changes):
        found = Organisations(tmp_path, tiny, tasks=tasks, each=each, **changes)
        found.ready(backbone.frozen_digest.hex())
        found.write_job()
        heads = found.terms("facts").outputs_of_heads
        write_facts(found.folder / "model.facts", backbone.facts(heads))
        return found

    return make
