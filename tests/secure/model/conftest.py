"""Models whose depth matters."""

import pytest


@pytest.fixture(scope="session")
def tiny_bert(deep_bert):
    """Of four layers in this folder."""
    return deep_bert
