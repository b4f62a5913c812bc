"""Canaries of an auditable run: records of random tokens that join a client's rows by a fair coin.

Carlini et al. (1802.08232) planted secrets to see what a model keeps; Steinke et al. (2305.08846)
turned independent coins into a bound. Coins are committed to by hash before anything is trained and
opened when the run is over, so that nobody can choose them after the fact.

What they cost: no epsilon, since a canary is a record like any other under DP-SGD. About half of
them are in the data and take their share of every batch, which is training signal lost; declared
sizes and sample rates stay as they are.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785

from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError, RunFolderError
from fedtree_secure.model.rows import ClientData, Table, tokenise
from fedtree_secure.storage import read_json, write_json

TOKENS = 8
FEWEST = 20
COMMITMENTS = "commitments.json"
_TAG = b"fedtree-secure/canaries/v1\n"


@dataclass(frozen=True)
class Canaries:
    """Canaries of one client.

    Attributes:
        texts: (canaries,) random tokens, decoded.
        labels: (canaries,) positions in the label set; empty for language modelling.
        included: (canaries,) the coins.
        salt: 64 hexadecimal digits that keep the commitment from being guessed.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    included: tuple[bool, ...]
    salt: str

    @property
    def commitment(self) -> str:
        """SHA-256 over salt, canaries and coins."""
        return hashlib.sha256(_TAG + rfc8785.dumps(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "texts": list(self.texts),
            "labels": list(self.labels),
            "included": list(self.included),
            "salt": self.salt,
        }

    def save(self, path: Path) -> None:
        """Write them for their client.

        Whoever reads them before the run is over can choose scores to fit.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> "Canaries":
        """Read what `save` wrote; `RunFolderError` if it is missing or damaged."""
        found = read_json(path)
        try:
            texts, coins = tuple(map(str, found["texts"])), tuple(map(bool, found["included"]))
            return cls(texts, tuple(map(int, found["labels"])), coins, str(found["salt"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{path} holds no canaries: {type(error).__name__} {error}"
            ) from None

    def planted(self, data: ClientData, job: Job, tokenizer: Any) -> ClientData:
        """Return the client's data with the included canaries behind its training rows.

        Where the job protects units, a canary is a whole unit: as many copies of its text as a unit
        may have rows.
        """
        copies = job.max_per_unit or 1
        chosen = [i for i, coin in enumerate(self.included) if coin for _ in range(copies)]
        tokens, labels = (
            tokenise([self.texts[i] for i in chosen], tokenizer, job),
            data.train.labels,
        )
        units = data.train.units
        if units is not None:
            new = int(units.max(initial=-1)) + 1 + np.arange(len(chosen)) // copies
            units = np.concatenate([units, new])
        if labels is not None:
            labels = np.concatenate(
                [labels, np.array([self.labels[i] for i in chosen], dtype=np.int64)]
            )
        return replace(data, train=Table(data.train.tokens + tokens, labels, units))


def draw_canaries(count: int, tokenizer: Any, outputs: int, randomness: bytes) -> Canaries:
    """Draw canaries and coins.

    Args:
        count: how many coins, at least 20 (fewer allow no bound).
        tokenizer: of the backbone; its special tokens are left out.
        outputs: size of the label set, 0 for language modelling.
        randomness: 32 fresh bytes; all coins follow from them, so they are kept secret until the
            end.

    Raises:
        ConfigurationError: too few canaries.
    """
    if count < FEWEST:
        raise ConfigurationError(
            f"{count} canaries were asked for; use 0 for none, or at least {FEWEST}: fewer allow "
            "no bound"
        )
    seed, salt = (hashlib.sha256(_TAG + what + randomness).digest() for what in (b"coins", b"salt"))
    rng = np.random.default_rng(list(seed))
    ids = np.array(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    texts = tuple(tokenizer.decode(row) for row in rng.choice(ids, size=(count, TOKENS)).tolist())
    labels = tuple(rng.integers(outputs, size=count).tolist()) if outputs else ()
    return Canaries(texts, labels, tuple((rng.random(count) < 0.5).tolist()), salt.hex())


def plant(
    folder: Path,
    data: Mapping[str, ClientData],
    job: Job,
    tokenizer: Any,
    count: int,
    randomness: Callable[[int], bytes],
) -> dict[str, ClientData]:
    """Give every client its canaries, and commit to them all before anything is trained.

    Files: ``clients/ID/canaries.json`` for the client and, once the run is over, for auditors;
    ``commitments.json`` for everybody. A resumed run takes the canaries that it has.

    Args:
        folder: of the run.
        data: by client id, without canaries.
        count: of each client's coins.
        randomness: gives fresh bytes.

    Raises:
        ConfigurationError: too few canaries.
        RunFolderError: stored canaries do not fit the commitments.
    """
    found, path = {}, folder / COMMITMENTS
    for name, given in data.items():
        own = folder / "clients" / name / "canaries.json"
        if not own.exists():
            draw_canaries(count, tokenizer, len(given.label_set), randomness(32)).save(own)
        found[name] = Canaries.load(own)
    commitments = {name: canaries.commitment for name, canaries in sorted(found.items())}
    if path.exists() and read_json(path) != commitments:
        raise RunFolderError(
            f"{path} commits to other canaries than the clients hold; the folder was changed"
        )
    write_json(path, commitments)
    return {name: canaries.planted(data[name], job, tokenizer) for name, canaries in found.items()}
