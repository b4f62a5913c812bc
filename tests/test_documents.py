"""What the documents cite exists: files, tests, attacks by name, settings of the environment."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOT_DOCUMENTS = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = (
    *ROOT_DOCUMENTS,
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
ROOTS = (
    ROOT,
    ROOT / "docs",
    ROOT / "fedtree_secure",
    ROOT / "dp",
    ROOT / "audits",
    ROOT / "secagg",
)
PATH = re.compile(r"`((?:[\w-]+/)+[\w-]+\.(?:py|md|toml)|(?:[\w-]+/)+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
TEST = re.compile(r"`(test_\w+?)(_?\.\.\.)?`")
# Folders and files that a run or a command makes.
MADE = (
    "runs/",
    "adapters/NAME/",
    "report/no-names/",
    "docs/_build",
    "ledgers/",
    "references/",
    "server/state",
    "mutants_of",
)


@pytest.fixture(scope="module")
def tests():
    texts = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py")]
    return set(re.findall(r"^def (test_\w+)", "\n".join(texts), re.MULTILINE))


def read(name):
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_cited_files_exist(name):
    cited = [path for path in PATH.findall(read(name)) if not path.startswith(MADE)]
    missing = [path for path in cited if not any((root / path).exists() for root in ROOTS)]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    assert [link for link in LINK.findall(read(name)) if not (folder / link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_cited_tests_exist(name, tests):
    lacking = [
        cited
        for cited, more in TEST.findall(read(name))
        if not (cited in tests or (more and any(test.startswith(cited) for test in tests)))
    ]
    assert lacking == []


def test_every_attack_of_a_lying_server_is_carried_out(tests):
    text = read("docs/threats.md")
    names = re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE)
    assert len(names) == len(set(names)) == 15
    for name in names:
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert re.findall(r"^\*\*([\w ]+)\.\*\*", section, re.MULTILINE) == [
            "Attack",
            "What stops it",
            "Tests",
            "What remains",
        ], name
        prefix = f"test_hostile_{name.replace('-', '_')}_"
        assert any(test.startswith(prefix) for test in tests), prefix


def test_attacks_on_masking_are_cited_by_names_of_the_specification():
    table = read("secagg/SPEC.md").split("## 13. Attacks")[1]
    names = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert len(names) == 20
    cited = set()
    for name in ("SECURITY.md", "docs/threats.md"):
        cited |= set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", read(name)))
    assert {"partition", "other_model", "split_view", "shrunken_node"} <= cited & names


def test_the_page_of_stores_names_every_place_that_the_environment_moves():
    sources = "".join(
        (ROOT / "fedtree_secure" / name).read_text()
        for name in ("storage.py", "client/data_sets.py")
    )
    places = set(re.findall(r'"(FEDTREE_[A-Z_]+)"', sources))
    assert places == set(re.findall(r"FEDTREE_[A-Z_]+", read("docs/stores.md")))
    assert len(places) == 3


def test_the_readmes_table_is_what_the_benchmark_wrote():
    rows = re.findall(
        r"^\| mean \| ([^|]+) \| all \| (.+) \|$", read("docs/accuracy.md"), re.MULTILINE
    )
    assert len(rows) == 4
    table = read("README.md").split("<!-- table: python benchmarks/accuracy.py")[1]
    shown = re.findall(r"^\| (\d|no DP) \| (.+) \|$", table.split("<!-- end -->")[0], re.MULTILINE)
    assert shown == rows


def test_no_document_promises_that_nobody_can_be_told():
    for name in DOCUMENTS:
        assert "anonym" not in read(name).lower()
