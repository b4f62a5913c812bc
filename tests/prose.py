"""Holds the prose of the documents to a few rules: `python tests/prose.py [--wrap] [FILES]`.

Lines of up to 100 columns outside of tables and code, plain words instead of house words, nothing
that promises too much, one heading of the first level. ``--wrap`` refills what is too long.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 100
DOCUMENTS = ("*.md", "docs/*.md", "secagg/*.md", "dp/*.md", "audits/*.md")
# A word or phrase in lower case as a regular expression, and what to write instead.
WORDS = {
    r"anonym\w*": "say what is protected, and how much",
    r"(military|bank)-grade|unbreakable|bullet-?proof|100\s?% (secure|private)": "say what holds",
    r"state[- ]of[- ]the[- ]art|seamless(ly)?|cutting[- ]edge|revolutionary|blazing\w*": "a figure",
    r"simply|obviously|trivially": "leave it out",
    r"belongings": "client state",
    r"outlook": "priced plan",
    r"knows? nobody|knows? nothing of the": "imports no",
    r"goes on(?= (where|after|with)\b|[.,;:])": "continues",
    r"not told apart|told apart from nothing": "statistically indistinguishable",
    r"utilis\w+|utiliz\w+|leverag(e|es|ing)": "use",
    r"in order to": "to",
    r"e\.g\.|i\.e\.|etc\.": "for example, that is, and so on",
    r"todo|fixme|xxx": "an issue",
    r"/(root|work|home/\w+)/\S*": "no path of a machine",
}
_WORDS = {
    re.compile(rf"(?<![\w/-])(?:{w.replace(' ', chr(92) + 's+')})(?![\w-])", re.IGNORECASE): instead
    for w, instead in WORDS.items()
}
_TWICE = re.compile(r"\b([a-z]+)\s\1\b(?!\s\1)")
_ALLOWED_TWICE = {"that", "had", "very", "one"}
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.)\s+")
_FENCE = re.compile(r"^\s*(```|~~~|:::)")
_STRUCTURE = re.compile(r"^\s*(\||#|>|<|\[[^\]]+\]:|---|===|$)")
_UNSAFE = re.compile(r"^([-+*#>|=~]|\d+[.)]$|:::|```)")
_INLINE = re.compile(r"`[^`]*`|https?://\S+|\]\([^)]*\)")


def documents() -> list[Path]:
    """Every document that the rules hold for."""
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def _outside_code(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without those of code blocks."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


def problems(text: str) -> list[str]:
    """Say what is wrong in a document, each with its line."""
    found, first, plain = [], 0, {}
    for number, line in _outside_code(text):
        table = line.lstrip().startswith(("|", "<!--"))
        indented = line.startswith("    ") and not line.strip().startswith(("-", "*"))
        if len(line) > WIDTH and not table and not indented and _breakable(line):
            found.append(f"line {number}: {len(line)} columns; at most {WIDTH}")
        if line != line.rstrip() and not table:
            found.append(f"line {number}: blanks at its end")
        if re.match(r"#\s", line):
            first += 1
        plain[number] = "" if indented or line.startswith("<!--") else _INLINE.sub("~", line)
    found += _of_words([plain.get(n, "") for n in range(1, text.count("\n") + 2)])
    if first != 1:
        found.append(f"{first} headings of the first level; one")
    if not text.endswith("\n") or text.endswith("\n\n"):
        found.append("the end: exactly one line end")
    return found


def _of_words(lines: list[str]) -> Iterator[str]:
    """What is said that should not be, over the ends of lines as well."""
    whole = "\n".join(lines)
    for pattern, instead in _WORDS.items():
        for hit in pattern.finditer(whole):
            said = " ".join(hit[0].split())
            yield f"line {whole.count(chr(10), 0, hit.start()) + 1}: {said!r}; instead: {instead}"
    for hit in _TWICE.finditer(whole):
        if hit[1] not in _ALLOWED_TWICE:
            said = " ".join(hit[0].split())
            yield f"line {whole.count(chr(10), 0, hit.start()) + 1}: {said!r} twice"


def _breakable(line: str) -> bool:
    """Whether a line has a place to break it within the width."""
    return len(_pieces(line)) > 1 and len(_pieces(line)[0]) <= WIDTH


def _pieces(text: str) -> list[str]:
    """Words; code between backticks and whatever cannot begin a line stay with what is before."""
    pieces: list[str] = []
    ticks = 0
    for word in text.split():
        if pieces and (ticks % 2 or _UNSAFE.match(word)):
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
        ticks += word.count("`")
    return pieces


def _fill(block: list[str]) -> list[str]:
    """Refill a paragraph or a list item; its first line's indent and marker stay."""
    item = _ITEM.match(block[0])
    indent = item[0] if item else re.match(r"\s*", block[0])[0]  # type: ignore[index]
    rest = " " * len(indent)
    lines, current = [], indent
    for piece in _pieces(" ".join([block[0][len(indent) :], *block[1:]])):
        if len(current) + len(piece) > WIDTH and current.strip() and current != indent:
            lines.append(current.rstrip())
            current = rest
        current += f"{piece} "
    return [*lines, current.rstrip()]


def wrap(text: str) -> str:
    """Refill every paragraph and list item that has a line beyond the width; leave the rest."""
    made: list[str] = []
    block: list[str] = []

    def close() -> None:
        made.extend(_fill(block) if any(len(line) > WIDTH for line in block) else block)
        block.clear()

    inside = False
    for line in text.splitlines():
        fence = bool(_FENCE.match(line))
        code = line.startswith("    ") and not block
        if inside or fence or code or _STRUCTURE.match(line):
            close()
            made.append(line)
            inside = inside != fence
            continue
        if _ITEM.match(line):
            close()
        block.append(line)
    close()
    return "\n".join(made) + "\n"


def main() -> int:
    """Check documents, or refill them; return how many have problems."""
    arguments = [Path(a).resolve() for a in sys.argv[1:] if a != "--wrap"]
    bad = 0
    for path in arguments or documents():
        text = path.read_text("utf-8")
        if "--wrap" in sys.argv:
            path.write_text(wrap(text), "utf-8")
            continue
        for problem in problems(text):
            print(f"{path.relative_to(ROOT)}, {problem}")
            bad += 1
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
