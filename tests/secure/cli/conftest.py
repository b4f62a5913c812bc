"""A job file for the tests of the commands."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode adds no folder to the path

from command_line import write_job


@pytest.fixture
def job_file(tmp_path, tiny_bert):
    return write_job(tmp_path, tiny_bert)
