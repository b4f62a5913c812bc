"""A client's private rows: read, checked and tokenised, before anything is charged.

Nothing here leaves the client. Counts that are read from private rows (how many there are) are used
for local checks only; whatever enters a formula of the mechanism comes from the configuration.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedtree_dp import PrivacyBudget
from fedtree_secure.client.files import read_rows
from fedtree_secure.client.units import Units, check_agreed, find_units
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, DataError
from fedtree_secure.job_file import ClientFiles
from fedtree_secure.model.rows import ClientData, Label, Table, tokenise
from fedtree_secure.names import check_name


@dataclass(frozen=True)
class Client:
    """A participant and its private data.

    Attributes:
        id: Unique name (see `check_name`); part of the pinned roster.
        train: `datasets.Dataset` (or anything with ``column_names`` and column access) of private
            training rows.
        test: The client's own rows for evaluation; they never train anything. May be None.
        text, label: Column names. ``label`` is not read for causal language modelling.
        labels: Declared label set, in the order of the head's outputs. Without it the `ClassLabel`
            names or the labels found in ``train`` are taken, and the run's statement lists the
            label set as public. Labels are names: text, or whole numbers, which are their digits.
        records: Declared size of the training set, a rounded public constant; the job's
            `Training.records` if None.
        dataset: Name of the data set in the ledger (see `check_name`); the client's id if empty.
        privacy: This client's own budget, at most the job's; it becomes part of the job, which all
            see (`Job.budgets`). The job's if None.
        unit: Column that names each row's unit, where the job protects units (`Job.unit`); the
            job's name for it if empty.

    Raises:
        ConfigurationError: ``id`` or ``dataset`` cannot be part of a path.
        DataError: ``records`` is no whole number above 0.
    """

    id: str
    train: Any
    test: Any = None
    text: str = "text"
    label: str = "label"
    labels: tuple[Label, ...] = ()
    records: int | None = None
    dataset: str = ""
    privacy: PrivacyBudget | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        check_name("client id", self.id)
        if self.dataset:
            check_name(f"dataset of client {self.id}", self.dataset)
        whole = isinstance(self.records, int) and not isinstance(self.records, bool)
        if self.records is not None and not (whole and self.records >= 1):
            raise DataError(
                f"client {self.id}: declared records is {self.records!r}; it must be a whole "
                "number above 0"
            )
        labels: object = self.labels
        if isinstance(labels, str) or not isinstance(labels, Sequence):
            raise DataError(
                f"client {self.id}: labels is {self.labels!r}; give all of them, such as "
                '("negative", "positive")'
            )
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.privacy is not None and not isinstance(self.privacy, PrivacyBudget):
            raise ConfigurationError(
                f"client {self.id}: privacy is {self.privacy!r}; allowed: PrivacyBudget(...) or "
                "None for the job's"
            )


def place_of(path: str, folder: Path) -> Path:
    """Return where a file of a job lies: relative to the job's folder; ``~`` is the home folder."""
    return folder / Path(path).expanduser()


def load_clients(entries: Sequence[ClientFiles], folder: Path) -> list[Client]:
    """Read the files of a job's ``[[clients]]`` entries, relative to ``folder``."""
    return [
        client_of(
            entry,
            read_rows(place_of(entry.train, folder), entry.id),
            None if entry.test is None else read_rows(place_of(entry.test, folder), entry.id),
        )
        for entry in entries
    ]


def client_of(entry: ClientFiles, train: Any, test: Any) -> Client:
    """Return the client of a ``[[clients]]`` entry, with its rows."""
    return Client(
        id=entry.id,
        train=train,
        test=test,
        text=entry.text,
        label=entry.label,
        labels=entry.labels,
        records=entry.records,
        dataset=entry.dataset,
        privacy=entry.privacy,
        unit=entry.unit,
    )


def prepare(client: Client, job: Job, tokenizer: Any) -> ClientData:
    """Check and tokenise a client's rows.

    Raises:
        DataError: A column is missing, a split is empty, a text or label is missing, a label is
            not in the label set, or the rows have no such units as the job protects; nothing has
            been charged at this point.
    """
    budget = client.privacy or job.budget_of(client.id)
    texts = _texts(client, client.train, "train")
    held_out = None if client.test is None else _texts(client, client.test, "test")
    units = units_of(client, job)
    protected, what = (len(texts), "record") if units is None else (units.count, "unit")
    if budget.delta >= 1 / protected:
        raise DataError(
            f"client {client.id}: delta is {budget.delta:g}, not below 1/n for its training "
            f"{'rows' if units is None else 'units'}; such a delta "
            f"would allow one {what} to be published outright. Choose a smaller delta"
        )
    if job.task == "causal-lm":
        train = _table(tokenise(texts, tokenizer, job), None, units)
        test = None if held_out is None else Table(tokenise(held_out, tokenizer, job), None)
        return ClientData(train, test, (), labels_declared=True)
    label_set, declared = _label_set(client)
    train = _table(
        tokenise(texts, tokenizer, job),
        _labels(client, client.train, "train", label_set),
        units,
    )
    test = None
    if held_out is not None:
        test = Table(
            tokenise(held_out, tokenizer, job), _labels(client, client.test, "test", label_set)
        )
    return ClientData(train, test, label_set, declared)


def problems(client: Client, job: Job) -> list[str]:
    """Return everything that `prepare` would refuse of a client's rows, one sentence each: the
    first of each kind in each split.
    """
    splits = [(client.train, "train")]
    splits += [] if client.test is None else [(client.test, "test")]
    checks: list[Callable[[], object]] = [
        functools.partial(_texts, client, rows, split) for rows, split in splits
    ]
    if job.task == "classification":
        checks += [
            functools.partial(_labels_of_split, client, rows, split) for rows, split in splits
        ]
    checks.append(functools.partial(units_of, client, job))
    found = []
    for check in checks:
        try:
            check()
        except DataError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _labels_of_split(client: Client, rows: Any, split: str) -> None:
    _labels(client, rows, split, _label_set(client)[0])


def units_of(client: Client, job: Job) -> Units | None:
    """Return the units of a client's training rows; None where single rows are protected.

    Raises:
        DataError: The rows have no such units as the job protects, or have units and it protects
            single rows.
    """
    check_agreed(client.id, client.unit, job)
    unit = job.privacy_unit
    if unit is None:
        return None
    column = client.unit or unit.name
    train = _column(client, client.train, "train", column)
    test = None if client.test is None else _column(client, client.test, "test", column)
    return find_units(client.id, unit, train, test)


def _table(tokens: tuple[tuple[int, ...], ...], labels: Any, units: Units | None) -> Table:
    """The training rows, without those that their unit has too many of."""
    if units is None:
        return Table(tokens, labels)
    kept = tuple(tokens[i] for i in units.kept.tolist())
    return Table(kept, None if labels is None else labels[units.kept], units.of_rows)


def texts_of(client: Client) -> list[str]:
    """Return the texts of a client's training rows, checked."""
    return _texts(client, client.train, "train")


def _texts(client: Client, rows: Any, split: str) -> list[str]:
    values = _column(client, rows, split, client.text)
    if not values:
        raise DataError(
            f"client {client.id}: its {split} split has no rows; remove the client or give it data"
        )
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"client {client.id}: row {i} of {split} has no text in column {client.text!r}"
            )
    return values


def _column(client: Client, rows: Any, split: str, name: str) -> list[Any]:
    if not hasattr(rows, "column_names") and not isinstance(rows, Mapping):
        raise DataError(
            f"client {client.id}: {split} is a {type(rows).__name__}; allowed: a datasets.Dataset, "
            "or a mapping of column names to lists. From a file: Federation.from_toml, or "
            "datasets.Dataset.from_csv"
        )
    columns = list(rows.column_names if hasattr(rows, "column_names") else rows.keys())
    if name not in columns:
        raise DataError(
            f"client {client.id}: {split} has no column {name!r}; it has "
            f"{', '.join(columns) or 'none'}"
        )
    return list(rows[name])


def _label_set(client: Client) -> tuple[tuple[str, ...], bool]:
    if client.labels:
        declared = tuple(_name(client, label, "labels") for label in client.labels)
        if len(set(declared)) != len(declared):
            raise DataError(f"client {client.id}: declared labels {client.labels} repeat a name")
        return declared, True
    names = getattr(getattr(client.train, "features", {}).get(client.label), "names", None)
    if names:
        return tuple(names), True
    values = _column(client, client.train, "train", client.label)
    found = {_name(client, value, "train") for value in values if not _missing(value)}
    return tuple(sorted(found, key=label_order)), False


def label_order(name: str) -> tuple[bool, int, str]:
    """Whole numbers by their size, then all other names by the alphabet."""
    number = name.lstrip("-").isdecimal()
    return not number, int(name) if number else 0, name


def _labels(
    client: Client, rows: Any, split: str, label_set: tuple[str, ...]
) -> "np.ndarray[Any, Any]":
    position = {name: i for i, name in enumerate(label_set)}
    class_names = getattr(getattr(rows, "features", {}).get(client.label), "names", None)
    values = _column(client, rows, split, client.label)
    if len(values) != len(rows[client.text]):
        raise DataError(
            f"client {client.id}: {split} has {len(rows[client.text])} texts and {len(values)} "
            "labels; each text needs one"
        )
    out = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        if _missing(value):
            raise DataError(
                f"client {client.id}: row {i} of {split} has no label in column {client.label!r}"
            )
        if class_names is not None and isinstance(value, int):
            name = str(class_names[value])
        else:
            name = _name(client, value, split)
        if name not in position:
            shown = ", ".join(map(repr, label_set[:12])) + (", ..." if len(label_set) > 12 else "")
            raise DataError(
                f"client {client.id}: row {i} of {split} has label {name!r}, which the head does "
                f"not know; it knows {shown}. Declare all labels in `labels`, or mend the row"
            )
        out[i] = position[name]
    if len(label_set) < 2:
        raise DataError(
            f"client {client.id}: its label set is {label_set}; a classifier needs at least two "
            "labels"
        )
    return out


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _name(client: Client, value: Any, where: str) -> str:
    """A label is a name. A whole number is its digits; anything else must be text already.

    A fraction, a truth value or a list is refused: how it would be spelled is a guess, and two
    guesses can make one label of two.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise DataError(
        f"client {client.id}: {where} has the label {value!r} ({type(value).__name__}); labels "
        "are text, or whole numbers. Write them as text"
    )
