"""docs/versions.md says what the code writes; pins, lock and workflows fit each other."""

import importlib
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ROW = re.compile(r"^\| (.+?) \| `([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
LITERAL = re.compile(r'"(?:format|schema)": (\w+)')


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pinned(path):
    """Versions by name of a file of `name==version` lines; other lines are left out."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text("utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def in_code(place):
    if place.endswith(".py"):
        (number,) = set(LITERAL.findall((ROOT / place).read_text("utf-8")))
        return number
    module, name = place.split(":")
    value = getattr(importlib.import_module(module), name)
    return value.decode() if isinstance(value, bytes) else str(value)


def test_every_version_in_the_table_is_the_codes():
    rows = ROW.findall((ROOT / "docs" / "versions.md").read_text("utf-8"))
    assert len(rows) == 20
    wrong = {}
    for artefact, version, place in rows:
        if not in_code(place).startswith(version):
            wrong[artefact] = version, in_code(place)
    assert wrong == {}


def test_every_number_that_a_file_carries_is_in_the_table():
    table = (ROOT / "docs" / "versions.md").read_text("utf-8")
    numbered = re.compile(r"^_?(?:FORMAT|SCHEMA|SCHEMA_VERSION) = ", re.MULTILINE)
    lacking = []
    for top in ("fedtree_secure", "secagg", "dp"):
        for path in (ROOT / top).rglob("*.py"):
            if numbered.search(path.read_text("utf-8")):
                module = path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".")
                if re.sub(r"^(secagg|dp)\.", "", module) not in table:
                    lacking.append(module)
    assert [m for m in lacking if m != "fedtree_secure.report.audit_files"] == []


def test_the_lock_has_every_dependency_at_the_version_that_the_tests_ran_with():
    lock, tested = pinned(ROOT / "requirements.lock"), pinned(ROOT / "constraints.txt")
    for text in project()["dependencies"]:
        needed = Requirement(text)
        assert needed.specifier.contains(lock[canonicalize_name(needed.name)]), text
    differing = {n: v for n, v in lock.items() if tested.get(n, v) != v}
    assert differing == {}
    assert lock["torch"] == tested["torch"] == "2.13.0"


def test_every_line_of_the_lock_has_its_hashes():
    text = (ROOT / "requirements.lock").read_text("utf-8")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned(ROOT / "requirements.lock")) > 60
    assert [e.split("==")[0] for e in entries if "--hash=sha256:" not in e] == []


def test_workflows_have_the_fewest_rights_and_call_targets_that_exist():
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {path.stem for path in WORKFLOWS} == {"ci", "docs", "release"}
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text("utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 90
            for step in job["steps"]:
                if step.get("run", "").startswith("make "):
                    assert step["run"].split()[1] in targets
                assert "secrets." not in str(step)


def test_the_matrix_begins_where_the_package_does():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    suite = workflow["jobs"]["suite"]["strategy"]["matrix"]["python"]
    assert project()["requires-python"] == ">=3.11"
    assert suite == ["3.12", "3.13", "3.14"]
    for version in ("3.11", *suite[:2]):
        assert f"Programming Language :: Python :: {version}" in project()["classifiers"]
