"""Every mutant of `mutants.py` still has the line that it changes and a test that could
notice it.
"""

import ast
import re
from pathlib import Path

import pytest
from mutants import MUTANTS, PACKAGE

TESTS = Path(__file__).parent
WORDS = re.compile(r"\w+")


def names(within: str) -> list[str]:
    trees = [ast.parse(path.read_text()) for path in sorted(TESTS.rglob(within))]
    return [
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_names_a_test(mutant):
    assert (PACKAGE / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    alternatives = [WORDS.findall(part) for part in mutant.tests.split(" or ")]
    assert not {"and", "not"} & {word for words in alternatives for word in words}, (
        "say so here first"
    )
    found = names(mutant.within)
    for words in alternatives:
        assert any(all(word in name for word in words) for name in found), words
