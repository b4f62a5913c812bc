"""Models whose depth matters: with layers in the middle."""

import pytest
from tiny_models import write_bert


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A 4-layer BERT with hidden size 32 and a word-level tokenizer."""
    return write_bert(tmp_path_factory.mktemp("tiny-bert"), layers=4)
