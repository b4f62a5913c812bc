"""Which rows belong together: the column that names each row's unit, read and checked.

A unit of protection is a person of whom there may be many rows. All here happens before anything is
charged; no text of an error holds a unit's name, which may be a patient's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtree_dp import PrivacyUnit
from fedtree_secure.config import Job
from fedtree_secure.errors import DataError

Ints = np.ndarray[Any, np.dtype[np.int64]]
LARGEST_SHARE = 0.5  # of the rows that one unit may hold


@dataclass(frozen=True, repr=False)
class Units:
    """The units of a client's training rows. Private.

    Attributes:
        kept: (kept,) positions of the rows that are trained on, ascending: of each unit the first
            `max_per_unit` in the order of the file. Which they are depends on nothing but the
            unit's own rows.
        of_rows: (kept,) number of each kept row's unit, from 0.
    """

    kept: Ints
    of_rows: Ints

    @property
    def count(self) -> int:
        """How many units there are."""
        return int(self.of_rows.max(initial=-1)) + 1


def check_agreed(client: str, column: str, job: Job) -> None:
    """Refuse a client that names units where its job protects records.

    Raises:
        DataError: It does.
    """
    if column and job.privacy_unit is None:
        raise DataError(
            f"client {client}: its rows have units (column {column!r}), and the job protects "
            "single records; set unit and max_per_unit in the job, or remove the client's unit"
        )


def find_units(
    client: str, unit: PrivacyUnit, train: Sequence[Any], test: Sequence[Any] | None
) -> Units:
    """Return the units of a client's rows.

    Args:
        client: Whose they are, for errors.
        unit: What the job protects.
        train, test: The values of the unit's column, one for each row.

    Raises:
        DataError: A row names no unit, a unit is in both splits, or one holds most rows.
    """
    names = [_name(client, value, i, "train") for i, value in enumerate(train)]
    tested = {_name(client, value, i, "test") for i, value in enumerate(test or ())}
    shared = len(tested & set(names))
    if shared:
        raise DataError(
            f"client {client}: {shared} units have rows in train and in test; give each unit's "
            "rows to one of them, for what was trained on proves nothing"
        )
    largest = max(Counter(names).values(), default=0)
    if largest > LARGEST_SHARE * len(names):
        raise DataError(
            f"client {client}: one unit holds {largest} of {len(names)} training rows, more than "
            f"half; is {unit.name!r} the column that names each row's unit?"
        )
    return _cut(names, unit.at_most)


def _cut(names: Sequence[str], at_most: int) -> Units:
    numbers: dict[str, int] = {}
    taken: Counter[str] = Counter()
    kept, of_rows = [], []
    for row, name in enumerate(names):
        taken[name] += 1
        if taken[name] <= at_most:
            kept.append(row)
            of_rows.append(numbers.setdefault(name, len(numbers)))
    return Units(np.array(kept, dtype=np.int64), np.array(of_rows, dtype=np.int64))


def _name(client: str, value: Any, row: int, split: str) -> str:
    """A unit is a name, or a whole number, which is its digits; as labels are."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if value is None or isinstance(value, str) or (isinstance(value, float) and np.isnan(value)):
        raise DataError(
            f"client {client}: row {row} of {split} names no unit; every row must belong to one. "
            "Fill the column, or remove the row"
        )
    raise DataError(
        f"client {client}: row {row} of {split} names its unit by a {type(value).__name__}; units "
        "are text, or whole numbers"
    )
