"""The site's pages: each block of ours is run here, or the page says which test runs it."""

import importlib
import io
import re
import runpy
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from fedtree_secure import demo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?P<mark><!-- shown: [^\n]*-->\n)?^```(?P<kind>[\w-]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
OURS = re.compile(r"^\s*(fedtree-secure |pip install |uvx |make )", re.MULTILINE)
# Pages that a test of their own walks through, block by block.
WALKED = {
    "commands.md": "tests/secure/cli/test_commands_page.py",
    "quickstart.md": "tests/secure/cli/test_quickstart.py",
    "deploy.md": "tests/flower/test_deploy.py",
}
RUN_HERE = ("choosing.md", "migration.md", "engine.md")
# What a page's first block needs and does not say.
BEFORE = {"engine.md": ROOT / "tests" / "secure" / "page_of_the_engine.py"}


def blocks(name):
    return [match.groupdict() for match in BLOCK.finditer((DOCS / name).read_text("utf-8"))]


def pages():
    return sorted(path.name for path in DOCS.glob("*.md"))


def shown_elsewhere(block):
    return re.findall(r"[\w/.-]+\.py", block["mark"] or "")


@pytest.mark.parametrize("name", pages())
def test_every_block_of_ours_is_run_somewhere(name):
    """A page that is not run as a whole names the test beside each block."""
    if name in WALKED:
        assert name in (ROOT / WALKED[name]).read_text("utf-8")
        return
    lacking = []
    for block in blocks(name):
        ours = block["kind"] in ("python", "toml") or OURS.search(block["text"])
        here = name in RUN_HERE and block["kind"] == "python"
        if ours and not here and not shown_elsewhere(block):
            lacking.append(block["text"].strip().splitlines()[0])
    assert lacking == []


def test_every_page_is_in_the_contents():
    listed = (DOCS / "index.md").read_text("utf-8").splitlines()
    assert [name for name in pages() if name != "index.md" and name[:-3] not in listed] == []


@pytest.mark.parametrize("name", pages())
def test_the_tests_that_pages_name_exist(name):
    named = [path for block in blocks(name) for path in shown_elsewhere(block)]
    assert [path for path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_python_of_a_page_runs_in_its_order(name, tmp_path, monkeypatch, tiny_bert):
    """With a tiny model in the demo's place; what a block prints stands below it."""
    monkeypatch.setattr(demo, "minilm", lambda: tiny_bert)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(BEFORE[name])) if name in BEFORE else {}
    names["__name__"] = "__main__"
    found = blocks(name)
    ran = 0
    for block, after in zip(found, [*found[1:], {"kind": ""}], strict=True):
        if block["kind"] != "python" or block["mark"]:
            continue
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(block["text"], name, "exec"), names)
        ran += 1
        if after["kind"] == "text":
            assert out.getvalue() == after["text"]
    assert ran >= 1


@pytest.mark.parametrize("package", ["fedtree_secure", "fedtree_dp", "fedtree_secagg"])
def test_the_api_page_has_every_public_name(package):
    page = (DOCS / "api.md").read_text("utf-8")
    listed = set(
        re.findall(r"^\.\. auto(?:class|function):: (?:[\w.]+\.)?(\w+)$", page, re.MULTILINE)
    )
    for members in re.findall(r":members: ([\w, ]+)$", page, re.MULTILINE):
        listed |= set(members.split(", "))
    for module in re.findall(r"^\.\. automodule:: ([\w.]+)$", page, re.MULTILINE):
        listed |= {module.rpartition(".")[2], *vars(importlib.import_module(module))}
    assert sorted(set(importlib.import_module(package).__all__) - listed) == []


def test_the_pictures_are_those_that_their_script_draws(tmp_path):
    script = runpy.run_path(str(DOCS / "pictures" / "draw.py"))
    for name, draw in script["PICTURES"].items():
        assert (DOCS / "pictures" / name).read_text("utf-8") == draw().svg()
    drawn = {path.name for path in (DOCS / "pictures").glob("*.svg")}
    assert drawn == set(script["PICTURES"])
