"""Rows from files, as they stand there: nothing is guessed.

A CSV holds text and nothing else: ``01`` stays ``01`` and ``True`` stays ``True``. JSON and Parquet
have types of their own, which are kept; a column of JSON holds one type.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedtree_secure.errors import DataError

Columns = dict[str, list[Any]]
_OTHERS = {
    ";": "semicolons",
    "\t": "tabs",
    "|": "bars",
}  # what spreadsheets write instead of commas


def read_rows(path: Path, client: str) -> Any:
    """Read a CSV, JSON, JSONL or Parquet file into a `datasets.Dataset`.

    Args:
        path: The file; its suffix says what it is.
        client: Whose it is, for errors.

    Raises:
        DataError: It is missing, of another kind, damaged, or a row does not fit its header.
    """
    import datasets

    if not path.is_file():
        raise DataError(f"client {client}: there is no file {path}")
    if path.suffix not in READERS:
        raise DataError(
            f"client {client}: {path.name} has suffix {path.suffix!r}; allowed: "
            f"{', '.join(READERS)}"
        )
    try:
        return datasets.Dataset.from_dict(READERS[path.suffix](path))
    except DataError as error:
        raise DataError(f"client {client}: {path}: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"client {client}: {path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    except (ValueError, OSError, TypeError, csv.Error) as error:
        raise DataError(
            f"client {client}: {path} cannot be read: {type(error).__name__}: {error}"
        ) from None


def _csv(path: Path) -> Columns:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        lines = csv.reader(handle, strict=True)
        header = next(lines, None)
        if not header or len(set(header)) != len(header):
            raise DataError("its first line must name the columns, each once")
        if len(header) == 1 and (other := [mark for mark in _OTHERS if mark in header[0]]):
            raise DataError(
                f"its only column would be {header[0]!r}; separate columns by commas, not by "
                f"{_OTHERS[other[0]]}"
            )
        rows = []
        for row in lines:
            if row and len(row) != len(header):
                raise DataError(
                    f"line {lines.line_num} has {len(row)} fields, the header {len(header)}; put "
                    'texts with commas between double quotes: "like, this"'
                )
            if row:
                rows.append(row)
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


def _records(records: Any) -> Columns:
    if not isinstance(records, list) or not all(isinstance(row, dict) for row in records):
        raise DataError("it must hold objects, one for each row")
    names = list(dict.fromkeys(name for row in records for name in row))
    columns = {name: [row.get(name) for row in records] for name in names}
    for name, values in columns.items():
        kinds = {type(value).__name__ for value in values if value is not None}
        if len(kinds) > 1 and kinds != {"int", "float"}:
            raise DataError(
                f"column {name!r} holds values of several kinds ({', '.join(sorted(kinds))}); "
                "write all of them as text"
            )
    return columns


def _jsonl(path: Path) -> Columns:
    lines = path.read_text("utf-8-sig").split("\n")  # a text may hold other ends of lines
    return _records([json.loads(line) for line in lines if line.strip()])


def _json(path: Path) -> Columns:
    return _records(json.loads(path.read_text("utf-8-sig")))


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet

    table: Columns = pyarrow.parquet.read_table(path).to_pydict()
    return table


READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
