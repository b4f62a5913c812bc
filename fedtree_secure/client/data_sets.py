"""Where the stores of an owner's data sets lie, and which rows are known under which name.

A store belongs to the data, not to a run: its default place is the user's data folder, whatever
``--out`` says, so two runs on the same rows share one budget. The signed head of each store lies in
a second place (`fedtree_dp.ledger.head`). Both can be moved with ``FEDTREE_STATE`` and
``FEDTREE_HEADS``.

The same rows under another name would be a second budget for them. So a keyed sketch of the rows
is kept beside the stores: the 256 smallest of their keyed hashes (bottom-k, Broder 1997). Rows of
which half or more are known under another name are refused, a part of a known data set included.
The sketch is private and stays here.
"""

import contextlib
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from fedtree_dp import Ledger, LedgerError, PrivacyBudget
from fedtree_secure.errors import ConfigurationError, StoreError, suggest
from fedtree_secure.storage import PRIVATE_FILE, SecretBox, private_folder, write_atomically

STATE, HEADS = "FEDTREE_STATE", "FEDTREE_HEADS"
APP = "fedtree-secure"
SKETCH = 256
SAME = 0.5  # share of the smaller of two data sets that the other holds as well


@dataclass(frozen=True)
class DataSets:
    """All data sets of one owner.

    Attributes:
        stores: Folder of the stores, one folder for each data set.
        heads: Folder of their signed heads; in another place, so that a restored backup of one of
            the two is noticed.
    """

    stores: Path
    heads: Path

    @classmethod
    def of_user(
        cls, state: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> "DataSets":
        """Return the owner's data sets.

        Args:
            state: Folder of the stores; ``FEDTREE_STATE`` or the user's data folder if None.
            environment: Read for ``FEDTREE_STATE`` and ``FEDTREE_HEADS``.
        """
        given = state or environment.get(STATE) or platformdirs.user_data_dir(APP)
        stores = Path(given).expanduser().resolve()
        if place := environment.get(HEADS):
            return cls(stores, Path(place).expanduser().resolve())
        # Heads of different folders of stores must not meet under one name.
        tag = hashlib.sha256(os.fsencode(stores)).hexdigest()[:16]
        return cls(stores, Path(platformdirs.user_state_dir(APP)) / "heads" / tag)

    @classmethod
    def inside(cls, folder: Path) -> "DataSets":
        """Return data sets that end with a folder: for simulations, which spend nothing."""
        return cls(folder / "stores", folder / "heads")

    def store_of(self, dataset: str) -> Path:
        """Path of a data set's store."""
        return self.stores / dataset / "store.sqlite"

    def head_of(self, dataset: str) -> Path:
        """Path of its signed head."""
        return self.heads / f"{dataset}.json"

    @contextlib.contextmanager
    def opened(
        self,
        dataset: str,
        budget: PrivacyBudget | None,
        texts: Iterable[str],
        *,
        create: bool = True,
    ) -> Iterator[Ledger]:
        """Open the store of a data set for this process alone.

        Args:
            dataset: Its name.
            budget: What may be spent; must equal what the store says. None: the store's own.
            texts: The rows, to recognise them under another name. They are not stored.
            create: Whether a missing store is made.

        Raises:
            StoreError: The rows are known under another name, or the store was deleted.
            fedtree_dp.LedgerError: Foreign, damaged, set back, in use, or with another budget.
        """
        self.check_rows(dataset, texts)
        path, head = self.store_of(dataset), self.head_of(dataset)
        if head.exists() and not path.exists():
            raise StoreError(
                f"the store of {dataset!r} is missing at {path}, but its head is at {head}: "
                "restore it, for a new one would forget what was spent. Where the data set and "
                "all that was released of it are gone for good, remove the head by hand"
            )
        private_folder(path.parent)
        private_folder(head.parent)
        with Ledger.open(
            path, dataset=dataset, budget=budget, create=create, head=head, exclusive=True
        ) as ledger:
            self._note_rows(dataset, texts)
            yield ledger

    def check_rows(self, dataset: str, texts: Iterable[str]) -> None:
        """Refuse rows that are known under another name; nothing is written but the key.

        Raises:
            StoreError: Half or more of them are.
        """
        own = self._sketch(texts)
        for name, known in self._known().items():
            if name != dataset and _shared(own, known) >= SAME:
                raise StoreError(
                    f"the rows of data set {dataset!r} are those of {name!r}, whose budget they "
                    f"would get a second time; use dataset = {name!r}"
                )

    def adopt(self, ledger: Path, dataset: str) -> Path:
        """Move a ledger of an earlier version to the place of its data set's store.

        Raises:
            ConfigurationError: A store is there already.
            fedtree_dp.LedgerError: No ledger of this data set.
        """
        path = self.store_of(dataset)
        if path.exists():
            raise ConfigurationError(f"data set {dataset!r} has a store already: {path}")
        Ledger.open(ledger, dataset=dataset, create=False).close()
        private_folder(path.parent)
        private_folder(self.heads)
        ledger.replace(path)
        Ledger.open(path, dataset=dataset, create=False, head=self.head_of(dataset)).close()
        return path

    @contextlib.contextmanager
    def existing(self, dataset: str) -> Iterator[Ledger]:
        """Open the store of a data set that was used before, for whoever changes its budget.

        Raises:
            StoreError: There is none.
            fedtree_dp.LedgerError: Foreign, damaged, set back or in use.
        """
        path = self.store_of(dataset)
        if not path.exists():
            known = sorted(p.parent.name for p in self.stores.glob("*/store.sqlite"))
            raise StoreError(
                f"there is no store of data set {dataset!r} in {self.stores}"
                f"{suggest(dataset, known) if known else ''}"
            )
        with Ledger.open(
            path, dataset=dataset, create=False, head=self.head_of(dataset), exclusive=True
        ) as ledger:
            yield ledger

    # --- known rows -----------------------------------------------------------------------------

    def _sketch(self, texts: Iterable[str]) -> "_Sketch":
        key = self._key()
        found = {
            hashlib.blake2b(" ".join(text.split()).encode(), key=key, digest_size=8).digest()
            for text in texts
        }
        return _Sketch(frozenset(sorted(found)[:SKETCH]), len(found))

    def _key(self) -> bytes:
        """The key of the hashes; at rest as all secrets, so that no thief can test a guess."""
        path, box = private_folder(self.stores) / "rows.key", SecretBox.from_environment()
        if not path.exists():
            sealed = box.seal(secrets.token_bytes(32))
            write_atomically(path, lambda target: target.write_bytes(sealed), PRIVATE_FILE)
        return box.open(path.read_bytes())

    def _known(self) -> dict[str, "_Sketch"]:
        with self._index() as index:
            rows = index.execute("SELECT dataset, sketch, rows FROM known").fetchall()
        return {
            name: _Sketch(frozenset(data[at : at + 8] for at in range(0, len(data), 8)), count)
            for name, data, count in rows
        }

    def _note_rows(self, dataset: str, texts: Iterable[str]) -> None:
        sketch = self._sketch(texts)
        data = b"".join(sorted(sketch.smallest))
        with self._index() as index:
            index.execute(
                "INSERT OR REPLACE INTO known VALUES (?, ?, ?)", (dataset, data, sketch.rows)
            )

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        path = private_folder(self.stores) / "rows.sqlite"
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=60.0)) as index, index:
                index.execute(
                    "CREATE TABLE IF NOT EXISTS known "
                    "(dataset TEXT PRIMARY KEY, sketch BLOB, rows INTEGER)"
                )
                path.chmod(PRIVATE_FILE)
                yield index
        except sqlite3.Error as error:
            raise StoreError(f"{path}: the index of known rows cannot be used ({error})") from None


@dataclass(frozen=True)
class _Sketch:
    """What is kept of a set of rows.

    Attributes:
        smallest: The `SKETCH` smallest hashes.
        rows: How many different rows there are.
    """

    smallest: frozenset[bytes]
    rows: int


def _shared(first: _Sketch, second: _Sketch) -> float:
    """Estimate which share of the smaller set is in the other, so that a part is recognised, too.

    The smallest hashes of the union are a random sample of it; the share of them that both have is
    the Jaccard similarity J, and the intersection is J / (1 + J) of both sizes together.
    """
    both = first.smallest & second.smallest
    if not both:  # the usual case, for each two data sets of an owner
        return 0.0
    union = sorted(first.smallest | second.smallest)[:SKETCH]
    similar = sum(value in both for value in union) / len(union)
    common = similar / (1.0 + similar) * (first.rows + second.rows)
    return common / min(first.rows, second.rows)


def refuse_legacy(run_folder: Path, datasets: Iterable[str], stores: DataSets) -> None:
    """Refuse to begin anew where an earlier version kept a ledger beside the run folder.

    Raises:
        LedgerError: There is one; it must be adopted, or what it says was spent is forgotten.
    """
    for name in datasets:
        old = run_folder.resolve().parent / "ledgers" / f"{name}.sqlite"
        if old.exists() and not stores.store_of(name).exists():
            raise LedgerError(
                f"an earlier version kept the ledger of {name!r} at {old}; move it to its data "
                f"set's store first: fedtree-secure ledger adopt {old} --dataset {name}"
            )
