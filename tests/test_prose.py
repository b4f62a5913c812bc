"""The documents keep to the rules of `prose`, and the rules find what they are for."""

import re
import tomllib
from pathlib import Path

import prose
import pytest

ROOT = Path(__file__).parents[1]
GOOD = "# Title\n\nA line that nobody minds, with `some code` and [a link](there.md).\n"


@pytest.mark.parametrize("path", prose.documents(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_document_keeps_the_rules(path):
    assert prose.problems(path.read_text("utf-8")) == []


def test_a_good_text_has_no_problem():
    assert prose.problems(GOOD) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("so many words " * 8, "112 columns"),
        ("ends with a blank ", "blanks at its end"),
        ("The data are Anonymous.", "'Anonymous'"),
        ("| a table | anonymised |", "'anonymised'"),
        ("It is state-of-the-art.", "'state-of-the-art'"),
        ("The client's belongings are kept.", "'belongings'"),
        ("It lies in /root/x.", "'/root/x.'"),
        ("This is is wrong.", "'is is' twice"),
        ("# A second title", "2 headings"),
    ],
)
def test_a_rule_finds_what_it_is_for(line, told):
    found = prose.problems(f"{GOOD}\n{line}\n")
    assert any(told in problem for problem in found), found


@pytest.mark.parametrize(
    "line",
    [
        "x" * 120,
        "```\nanonymous " + "so many words " * 9 + "\n```",
        "| " + "of a table " * 12 + "|",
        "See https://example.org/anonymous.",
    ],
)
def test_code_tables_and_addresses_are_left_alone(line):
    assert [p for p in prose.problems(f"{GOOD}\n{line}\n") if "blanks" not in p] == []


def test_wrapping_keeps_every_word_code_and_marker():
    text = (
        f"# Title\n\n{'many words ' * 12}`code with blanks` and - a dash {'more ' * 9}1. end.\n\n"
        f"- an item {'of words ' * 15}\n  and its second line\n\n```\n{'code ' * 40}\n```\n"
        f"| {'cell ' * 40}|\n"
    )
    made = prose.wrap(text)
    assert made.split() == text.split()
    assert prose.wrap(made) == made
    outside = made.split("```")[0].splitlines()
    assert max(map(len, outside)) <= prose.WIDTH
    assert "`code with blanks`" in made
    assert not [line for line in outside if re.match(r"(- a dash|1\. end)", line)]


def test_the_spelling_is_checked_with_the_words_that_are_ours():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["codespell"]
    assert "anonym" not in settings["ignore-words-list"]
    assert "codespell" in (ROOT / "Makefile").read_text("utf-8")
