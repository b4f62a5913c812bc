"""Whose rows are in a folder of files: clients and their splits, columns, label sets and sizes.

What can be seen is seen, by the rules below; what cannot be told apart is refused with the option
that says it.

- A client is a file, or a folder of files, without the word for its split: ``heart-train.csv`` and
  ``heart/train.csv`` are the training rows of ``heart``; ``heart.csv`` alone are all of its rows.
- Text and label columns have one of the usual names, or else: the text is the column of strings
  with the longest values, the label one of few values that repeat.
- A label is a name: the text as it stands in the file (`fedtree_secure.client.files`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_secure.client.data import label_order
from fedtree_secure.client.files import READERS, read_rows
from fedtree_secure.errors import ConfigurationError, DataError
from fedtree_secure.names import LONGEST, check_name

TRAIN = frozenset({"train", "training"})
TEST = frozenset({"test", "testing", "eval", "evaluation", "valid", "validation", "dev", "holdout"})
TEXTS = ("text", "note", "message", "sentence", "body", "content", "comment", "description")
LABELS = ("label", "code", "class", "category", "target", "intent", "sentiment", "topic", "urgency")
MOST_LABELS = 100
Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Found:
    """A client as its files show it.

    Attributes:
        id: Made of the files' name.
        train, test: Its files; ``test`` is None without one.
        rows, test_rows: How many there are. Private: what a job declares is rounded.
        text, label: Names of the columns; ``label`` is empty where no column is one.
        labels: Names of all labels in its files, in the order of a label set.
    """

    id: str
    train: Path
    test: Path | None
    rows: int
    test_rows: int
    text: str
    label: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """Columns that were named; empty for what is to be seen."""

    text: str = ""
    label: str = ""


def look(folder: Path, wanted: Wanted) -> list[Found]:
    """Return the clients whose files lie in a folder, by name.

    Raises:
        ConfigurationError: There is no folder, no file of a known kind, or two of one client's.
        DataError: A file cannot be read, or its columns cannot be told apart.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"there is no folder {folder}")
    splits = _splits(folder)
    if not splits:
        raise ConfigurationError(
            f"{folder} holds no {', '.join(READERS)} file; give the folder with one file, or one "
            "folder, for each client"
        )
    return [_client(name, files, wanted) for name, files in sorted(splits.items())]


def _files(folder: Path) -> Iterator[Path]:
    """Files of rows in the folder and in its folders."""
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix in READERS and not hidden:
            yield path


def _splits(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by client and split; the split is empty for a file of all rows."""
    found: dict[str, dict[str, Path]] = {}
    for path in _files(folder):
        name, split = _split_of(path, folder)
        known = found.setdefault(name, {})
        if split in known:
            raise ConfigurationError(
                f"{known[split]} and {path} are both the {split or 'whole'} file of {name!r}; "
                "rename one of them"
            )
        known[split] = path
    return found


def _split_of(path: Path, folder: Path) -> tuple[str, str]:
    words = [word for word in re.split(r"[^A-Za-z0-9]+", path.stem) if word]
    split = ""
    for kind, known in (("train", TRAIN), ("test", TEST)):
        for end in (-1, 0):  # heart-train, train-heart
            if words and words[end].lower() in known:
                split = kind
                del words[end]
                break
        if split:
            break
    own = "-".join(words)
    inside = path.parent.name if path.parent != folder else ""
    return plain_name("-".join(part for part in (inside, own) if part) or folder.name), split


def plain_name(given: str) -> str:
    """Return a name of the roster's alphabet that looks like the given one."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", given).strip("-")[:LONGEST].strip("-")
    return check_name("client id", plain or "client")


def _client(name: str, files: Mapping[str, Path], wanted: Wanted) -> Found:
    if "" in files and "train" in files:
        raise ConfigurationError(
            f"{files['']} and {files['train']} are both the training rows of {name!r}; move one"
        )
    train = files.get("train") or files.get("")
    if train is None:
        raise ConfigurationError(
            f"{files['test']} is a test file of {name!r}, which has no training file; name that "
            f"{name}-train{files['test'].suffix}"
        )
    first = _columns(train, name)
    text = _text_column(first, wanted.text, train)
    if odd := {type(value).__name__ for value in first[text]} - {"str", "NoneType"}:
        raise DataError(f"{train}: column {text!r} holds {min(odd)}, no texts; say --text COLUMN")
    label = _label_column(first, text, wanted.label, train)
    test = files.get("test")
    second = _columns(test, name) if test else {}
    for column in (text, *([label] if label else [])):
        if test and column not in second:
            raise DataError(f"{test} has no column {column!r}, which {train} has")
    found = _labels([*first.get(label, ()), *second.get(label, ())]) if label else ()
    return Found(name, train, test, len(first[text]), len(second.get(text, ())), text, label, found)


def _columns(path: Path, client: str) -> Columns:
    rows = read_rows(path, client)
    if not len(rows):
        raise DataError(f"client {client}: {path} has no rows; give it some, or move it elsewhere")
    return {name: list(rows[name]) for name in rows.column_names}


def _text_column(columns: Columns, wanted: str, path: Path) -> str:
    if wanted:
        return _present(wanted, columns, "text", path)
    usual = _usual(columns, TEXTS)
    if usual:
        return usual
    lengths = {
        name: sum(map(len, values)) / len(values)
        for name, values in columns.items()
        if all(isinstance(value, str) for value in values)
    }
    if not lengths:
        raise DataError(f"{path} has no column of text; it has {', '.join(columns)}")
    ranked = sorted(lengths, key=lambda name: -lengths[name])
    if len(ranked) > 1 and lengths[ranked[1]] > lengths[ranked[0]] / 2:
        raise DataError(
            f"{path}: {ranked[0]!r} and {ranked[1]!r} are both texts by their length; say which "
            "one with --text"
        )
    return ranked[0]


def _label_column(columns: Columns, text: str, wanted: str, path: Path) -> str:
    if wanted:
        return _present(wanted, columns, "label", path)
    others = {name: values for name, values in columns.items() if name != text}
    usual = _usual(others, LABELS)
    if usual:
        return usual
    few = [name for name, values in others.items() if _repeats(values)]
    if len(few) > 1:
        raise DataError(
            f"{path}: {' and '.join(map(repr, few))} both look like labels; say which one with "
            "--label"
        )
    return few[0] if few else ""


def _present(wanted: str, columns: Columns, what: str, path: Path) -> str:
    if wanted not in columns:
        raise DataError(f"{path} has no {what} column {wanted!r}; it has {', '.join(columns)}")
    return wanted


def _usual(columns: Columns, names: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in columns}
    return next((lower[name] for name in names if name in lower), "")


def _repeats(values: list[Any]) -> bool:
    """Whether a column has few values, each more than once on average."""
    kinds = {str(value) for value in values if value is not None}
    return 2 <= len(kinds) <= min(MOST_LABELS, len(values) // 2)


def _labels(values: list[Any]) -> tuple[str, ...]:
    """Names of all labels; a row without one is found by `check`."""
    return tuple(sorted({str(v) for v in values if v not in (None, "")}, key=label_order))
