"""Every mutant of `mutants.py` still has the line that it changes and a test that could
notice it.
"""

import ast
import re
from functools import cache

import pytest
from mutants import GROUPS

WORDS = re.compile(r"\w+")
ALL = [(name, mutant) for name, group in GROUPS.items() for mutant in group.mutants]


@cache
def names(package: str, within: str) -> list[str]:
    paths = sorted(GROUPS[package].tests.rglob(within))
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize(("package", "mutant"), ALL, ids=[f"{p}: {m.name}" for p, m in ALL])
def test_a_mutant_changes_one_place_and_names_a_test(package, mutant):
    assert (GROUPS[package].package / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    alternatives = [WORDS.findall(part) for part in mutant.tests.split(" or ")]
    assert not {"and", "not"} & {word for words in alternatives for word in words}, (
        "say so here first"
    )
    found = [name for name in names(package, mutant.within) if name.startswith("test_")]
    for words in alternatives:
        assert any(all(word in name for word in words) for name in found), words


def test_no_two_mutants_have_one_name():
    assert len({(package, mutant.name) for package, mutant in ALL}) == len(ALL)


@pytest.mark.parametrize(("package", "least"), [("secagg", 70), ("dp", 45), ("secure", 60)])
def test_no_group_is_left_out(package, least):
    assert len(GROUPS[package].mutants) >= least
