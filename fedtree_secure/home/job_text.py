"""A job file for the clients of a folder: every setting that was seen, and what each one means.

The file is public in a run, and all parties hash it. So sizes are rounded, and the label sets,
which come from rows here, are written out for the owner to read before anybody else does.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtree_dp import PrivacyBudget
from fedtree_secure.client.data import label_order
from fedtree_secure.config import Masking
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.home.folder import Found, plain_name

LEAST = Masking().min_group
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Choices:
    """What no folder shows.

    Attributes:
        epsilon: Budget of each client's data set, over all jobs.
        delta: At which delta; None for `delta_for` the largest client.
        backbone: Folder, GGUF file or hub id; empty for `ENCODER`, which classifies.
    """

    epsilon: float
    delta: float | None = None
    backbone: str = ""


def declared(rows: int) -> int:
    """Round a number of rows down to two digits: what is declared of it is public for ever."""
    unit = int(10 ** max(0, len(str(rows)) - 2))
    return rows // unit * unit


def delta_for(records: int) -> float:
    """Return the largest power of ten that is at most a tenth of one over the records."""
    return float(f"1e{-math.ceil(math.log10(10 * records))}")


def job_text(found: Sequence[Found], folder: Path, place: Path, choices: Choices) -> str:
    """Return a TOML job file.

    Args:
        found: The clients.
        folder: Where they were found; its name is part of their data sets' names.
        place: Where the file will lie; paths are relative to its folder.
        choices: What no folder shows.

    Raises:
        ConfigurationError: Too few clients, some with labels and some without, or no backbone for
            a language model.
    """
    if len(found) < LEAST:
        raise ConfigurationError(
            f"{folder} holds the rows of {len(found)} clients ({', '.join(c.id for c in found)}); "
            f"at least {LEAST} are needed, because no sum over fewer is ever opened"
        )
    silent = [client.id for client in found if not client.label]
    if silent and len(silent) < len(found):
        raise ConfigurationError(
            f"no column of {', '.join(silent)} looks like labels, but others have some; name it "
            "with --label"
        )
    if silent and not choices.backbone:
        raise ConfigurationError(
            "no file has labels, so a language model will be trained: name a decoder with "
            "--backbone, or the label column with --label"
        )
    largest = max(declared(client.rows) for client in found)
    delta = choices.delta or delta_for(largest)
    budget = PrivacyBudget(epsilon=choices.epsilon, delta=delta)
    budget.check_records(largest)
    head = _head(found, budget, choices, causal=bool(silent), written=choices.delta is None)
    label_sets = _label_sets(found)
    clients = [_client(c, folder, place.parent, label_sets[c.id]) for c in found]
    return "\n".join([head, *clients])


def _head(
    found: Sequence[Found],
    budget: PrivacyBudget,
    choices: Choices,
    *,
    causal: bool,
    written: bool,
) -> str:
    groups = len(found) >= 2 * LEAST
    source = "fingerprint" if groups else "one_group"
    why = (
        "finds groups of like clients, layer by layer"
        if groups
        else f"{len(found)} clients cannot make two groups of {LEAST}"
    )
    task = 'task = "causal-lm"\n' if causal else ""
    at_delta = "a tenth of 1/records at most" if written else "as given"
    return f"""\
# Written by `fedtree-secure init`. Everything in this file is public in a run: read the labels and
# the sizes, which were taken from your rows, before you share it.

backbone = {_quoted(choices.backbone or ENCODER)}  # local folder, .gguf file or hub id
{task}rounds = 4               # of adapters; 0: heads alone (`check` says where that is better)

[privacy]                # of each client, for its data set, over all jobs on it
epsilon = {budget.epsilon:g}
delta = {budget.delta:g}             # {at_delta}

[training]
max_length = 64          # tokens; `check` says how many texts are cut

[topology]
source = "{source}"  # {why}
"""


def _client(client: Found, folder: Path, base: Path, labels: Sequence[str]) -> str:
    lines = [
        "[[clients]]",
        f"id = {_quoted(client.id)}",
        f"dataset = {_quoted(_dataset(folder, client))}",
        f"train = {_quoted(_relative(client.train, base))}",
    ]
    if client.test is not None:
        lines.append(f"test = {_quoted(_relative(client.test, base))}")
    lines.append(f"records = {declared(client.rows)}  # declared: rounded down, and public")
    lines.append(f"text = {_quoted(client.text)}")
    if client.label:
        lines.append(f"label = {_quoted(client.label)}")
        lines.append(f"labels = [{', '.join(map(_quoted, labels))}]")
    return "\n".join(lines) + "\n"


def _label_sets(found: Sequence[Found]) -> dict[str, tuple[str, ...]]:
    """Each client's label set: that of all whose sets lie in one another's union for the most part.

    Clients with equal sets share a head; one that has not seen a rare label yet is one of them.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for client in sorted(found, key=lambda c: -len(c.labels)):
        own = set(client.labels)
        home = next((g for g in groups if 2 * len(own & g[0]) >= len(own | g[0])), None)
        if home is None:
            groups.append((own, [client.id]))
        else:
            home[0].update(own)
            home[1].append(client.id)
    return {
        name: tuple(sorted(union, key=label_order)) for union, members in groups for name in members
    }


def _dataset(folder: Path, client: Found) -> str:
    """A name for its ledger that another project's client of the same name does not have."""
    return plain_name(f"{folder.resolve().name}-{client.id}")


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
