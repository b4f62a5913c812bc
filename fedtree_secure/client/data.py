"""A client's private rows: read, checked and tokenised, before anything is charged.

Nothing here leaves the client. Counts that are read from private rows (how many there are) are used
for local checks only; whatever enters a formula of the mechanism comes from the configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedtree_dp import PrivacyBudget
from fedtree_secure.config import ClientFiles, Job
from fedtree_secure.errors import DataError

if TYPE_CHECKING:
    import torch

Label = str | int


@dataclass(frozen=True)
class Client:
    """A participant and its private data.

    Attributes: id: Unique name; part of the pinned roster. train: `datasets.Dataset` (or anything
        with ``column_names`` and column access) of private training rows. test: The client's own
        rows for evaluation; they never train anything. May be None. text, label: Column names.
        ``label`` is not read for causal language modelling. labels: Declared label set, in the
        order of the head's outputs. Without it the `ClassLabel` names or the
            labels found in ``train`` are taken, and the run's statement lists the label set as
            public.
        records: Declared size of the training set, a rounded public constant; the job's
            `Training.records` if None.
        dataset: Name of the data set in the ledger; the client's id if empty.
        privacy: This client's own budget; the job's if None.
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

    def __post_init__(self) -> None:
        allowed = (
            self.id
            and all(c.isalnum() or c in "-_." for c in self.id)
            and not self.id.startswith(".")
        )
        if not allowed or len(self.id) > 64:
            raise DataError(
                f"client id {self.id!r}: use 1 to 64 letters, digits, '-', '_' or '.', not "
                "starting with '.'"
            )
        if self.records is not None and (isinstance(self.records, bool) or self.records < 1):
            raise DataError(
                f"client {self.id}: declared records is {self.records!r}; it must be a whole "
                "number above 0"
            )


@dataclass(frozen=True)
class Table:
    """Tokenised rows of one split.

    Attributes:
        tokens: Token ids of each row, cut to the job's maximum length.
        labels: (n,) int64 positions in the label set, or None for language modelling.
    """

    tokens: tuple[tuple[int, ...], ...]
    labels: "np.ndarray[tuple[int], np.dtype[np.int64]] | None"

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(
        self, indices: Sequence[int] | Any, pad: int, device: "torch.device | str" = "cpu"
    ) -> dict[str, "torch.Tensor"]:
        """Collate rows into ``input_ids``, ``attention_mask`` of shape (n, longest) and ``labels``
        of shape (n,).
        """
        import torch

        rows = [self.tokens[int(i)] for i in indices]
        width = max((len(r) for r in rows), default=1)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[np.asarray(indices, dtype=np.int64)]).to(
                device
            )
        return batch


@dataclass(frozen=True)
class ClientData:
    """What training and evaluation need of a client.

    Attributes: train, test: Tokenised splits; ``test`` may be None. label_set: Names of the head's
        outputs; empty for language modelling. labels_declared: False if the label set was read from
        the rows and is therefore listed as public.
    """

    train: Table
    test: Table | None
    label_set: tuple[Label, ...]
    labels_declared: bool

    @property
    def majority(self) -> float | None:
        """Accuracy on the test rows of always answering the most frequent training label."""
        if self.train.labels is None or self.test is None or self.test.labels is None:
            return None
        frequent = int(np.bincount(self.train.labels, minlength=len(self.label_set)).argmax())
        return float((self.test.labels == frequent).mean())


def load_clients(entries: Sequence[ClientFiles], folder: Path) -> list[Client]:
    """Read the files of a job's ``[[clients]]`` entries, relative to ``folder``."""
    return [
        Client(
            id=entry.id,
            train=read_rows(folder / entry.train, entry.id),
            test=None if entry.test is None else read_rows(folder / entry.test, entry.id),
            text=entry.text,
            label=entry.label,
            labels=entry.labels,
            records=entry.records,
            dataset=entry.dataset,
            privacy=entry.privacy,
        )
        for entry in entries
    ]


def read_rows(path: Path, client: str) -> Any:
    """Read a CSV, JSON, JSONL or Parquet file into a `datasets.Dataset`."""
    import datasets
    import pandas as pd

    if not path.is_file():
        raise DataError(f"client {client}: there is no file {path}")
    readers = {
        ".csv": lambda p: pd.read_csv(p, keep_default_na=False, na_values=[""]),
        ".jsonl": lambda p: pd.read_json(p, lines=True, dtype=False),
        ".json": lambda p: pd.read_json(p, dtype=False),
        ".parquet": pd.read_parquet,
    }
    if path.suffix not in readers:
        raise DataError(
            f"client {client}: {path.name} has suffix {path.suffix!r}; allowed: "
            f"{', '.join(readers)}"
        )
    try:
        frame = readers[path.suffix](path)
    except (ValueError, OSError) as error:
        raise DataError(
            f"client {client}: {path} cannot be read: {type(error).__name__}: {error}"
        ) from None
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def prepare(client: Client, job: Job, tokenizer: Any) -> ClientData:
    """Check and tokenise a client's rows.

    Raises: DataError: A column is missing, a split is empty, a text or label is missing, or a label
        is not in the label
            set; nothing has been charged at this point.
    """
    budget = client.privacy or job.privacy
    texts = _texts(client, client.train, "train")
    held_out = None if client.test is None else _texts(client, client.test, "test")
    if budget.delta >= 1 / len(texts):
        raise DataError(
            f"client {client.id}: delta is {budget.delta:g}, not below 1/n for its training rows; "
            "such a delta "
            f"would allow one record to be published outright. Choose a smaller delta"
        )
    if job.task == "causal-lm":
        train = Table(tokenise(texts, tokenizer, job), None)
        test = None if held_out is None else Table(tokenise(held_out, tokenizer, job), None)
        return ClientData(train, test, (), labels_declared=True)
    label_set, declared = _label_set(client)
    train = Table(
        tokenise(texts, tokenizer, job), _labels(client, client.train, "train", label_set)
    )
    test = None
    if held_out is not None:
        test = Table(
            tokenise(held_out, tokenizer, job), _labels(client, client.test, "test", label_set)
        )
    return ClientData(train, test, label_set, declared)


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
    columns = list(
        getattr(rows, "column_names", ()) or (rows.keys() if isinstance(rows, Mapping) else ())
    )
    if name not in columns:
        raise DataError(
            f"client {client.id}: {split} has no column {name!r}; it has "
            f"{', '.join(columns) or 'none'}"
        )
    return list(rows[name])


def _label_set(client: Client) -> tuple[tuple[Label, ...], bool]:
    if client.labels:
        if len(set(client.labels)) != len(client.labels):
            raise DataError(f"client {client.id}: declared labels {client.labels} repeat a name")
        return tuple(client.labels), True
    names = getattr(getattr(client.train, "features", {}).get(client.label), "names", None)
    if names:
        return tuple(names), True
    found = {
        _plain(v) for v in _column(client, client.train, "train", client.label) if not _missing(v)
    }
    return tuple(sorted(found, key=lambda v: (isinstance(v, str), v))), False


def _labels(
    client: Client, rows: Any, split: str, label_set: tuple[Label, ...]
) -> "np.ndarray[Any, Any]":
    position = {name: i for i, name in enumerate(label_set)}
    class_names = getattr(getattr(rows, "features", {}).get(client.label), "names", None)
    out = np.empty(len(rows[client.text]), dtype=np.int64)
    for i, value in enumerate(_column(client, rows, split, client.label)):
        if _missing(value):
            raise DataError(
                f"client {client.id}: row {i} of {split} has no label in column {client.label!r}"
            )
        name = class_names[value] if class_names and isinstance(value, int) else _plain(value)
        if name not in position:
            shown = ", ".join(map(repr, label_set[:12])) + (", ..." if len(label_set) > 12 else "")
            raise DataError(
                f"client {client.id}: row {i} of {split} has label {name!r}, which the head does "
                "not know; it knows "
                f"{shown}. Declare all labels in `labels`, or mend the row"
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


def _plain(value: Any) -> Label:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str) else int(value)


def tokenise(texts: list[str], tokenizer: Any, job: Job) -> tuple[tuple[int, ...], ...]:
    """Return token ids of each text, cut to the job's maximum length; an end token closes those of
    a language model.
    """
    limit = job.training.max_length
    encoded = tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
    if job.task == "causal-lm" and tokenizer.eos_token_id is not None:
        encoded = [[*row[: limit - 1], tokenizer.eos_token_id] for row in encoded]
    return tuple(tuple(row) for row in encoded)
