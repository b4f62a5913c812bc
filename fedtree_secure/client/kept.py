"""What the frozen layers below the first adapter make of a client's rows: computed once, then kept.

As private as the rows: it never leaves the client. A row's activations are those of a training step
to the last bit, for they are computed in physical batches of the very shape that steps have, where
what a row gives depends on that row alone (`fedtree_dp.sgd.shapes`). So a step with them releases
what it would release without, and an engine never learns which it was.

Up to `Training.activations_in_memory` they stay in memory. Beyond, they lie in a file without a
name (mode 600) in the client's own folder of the run: it goes with the process, however that ends.
Each row is encrypted and authenticated there under a key that is in memory alone and is drawn anew
each time, so what a disk keeps of it tells nothing, and a row that was edited, or is another's, is
noticed. Whatever goes wrong afterwards costs time alone: the layers are run again.
"""

import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtree_dp import NoiseSource
from fedtree_dp.sgd.shapes import DUMMY, Buckets, PhysicalBatch, plan_slots
from fedtree_secure.client.seats import slots_of
from fedtree_secure.config import Job
from fedtree_secure.errors import ConfigurationError
from fedtree_secure.model.backbone import Backbone
from fedtree_secure.model.rows import Table
from fedtree_secure.storage import PRIVATE_FILE, private_folder

log = logging.getLogger("fedtree_secure.client")
MIB = 2**20
FOLDER = "activations"  # in the client's folder of a run
_WIDEST = 4  # bytes of a value, at most
_TAG = 16  # bytes that authenticate a row
WORTH = 1.5  # passes over the rows: to compute and keep costs one, and some copying


class Shelf(Protocol):
    """Where rows are kept, by number."""

    def put(self, number: int, row: torch.Tensor) -> None:
        """Keep a row of shape (width, hidden)."""

    def get(self, number: int) -> torch.Tensor:
        """Return it."""

    def close(self) -> None:
        """Forget everything."""


class InMemory:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}

    def put(self, number: int, row: torch.Tensor) -> None:
        """See `Shelf`."""
        self._rows[number] = row.clone()

    def get(self, number: int) -> torch.Tensor:
        """See `Shelf`."""
        return self._rows[number]

    def close(self) -> None:
        """See `Shelf`."""
        self._rows.clear()


class OnDisk:
    """Rows in a file without a name, each encrypted under a key that is in memory alone.

    Args:
        folder: Of this file alone, new.
        sizes: Bytes of each row, at most.
        about: What the rows belong to; authenticated with each of them.

    Raises:
        OSError: The disk has no room for all of them.
    """

    def __init__(self, folder: Path, sizes: Sequence[int], about: bytes) -> None:
        self._folder, self._about = folder, about
        # A row's number is its nonce: it is written once, under a key of this object.
        self._cipher = AESGCM(secrets.token_bytes(32))
        self._starts = np.cumsum([0, *(size + _TAG for size in sizes)]).tolist()
        self._kinds: dict[int, tuple[torch.dtype, torch.Size, int]] = {}
        private_folder(folder)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see `close`
        try:
            os.fchmod(self._file.fileno(), PRIVATE_FILE)
            _reserve(self._file.fileno(), self._starts[-1])
        except OSError:
            self.close()
            raise

    def put(self, number: int, row: torch.Tensor) -> None:
        """See `Shelf`."""
        if number in self._kinds:
            raise ValueError(f"row {number} is written twice")
        plain = row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        sealed = self._cipher.encrypt(number.to_bytes(12, "big"), plain, self._about)
        start, end = self._starts[number], self._starts[number + 1]
        if len(sealed) > end - start or os.pwrite(self._file.fileno(), sealed, start) < len(sealed):
            raise OSError("a row does not fit")
        self._kinds[number] = row.dtype, row.shape, len(sealed)

    def get(self, number: int) -> torch.Tensor:
        """See `Shelf`.

        Raises:
            cryptography.exceptions.InvalidTag: The row was changed.
        """
        kind, shape, size = self._kinds[number]
        sealed = os.pread(self._file.fileno(), size, self._starts[number])
        plain = self._cipher.decrypt(number.to_bytes(12, "big"), sealed, self._about)
        return torch.frombuffer(bytearray(plain), dtype=kind).reshape(shape)

    def close(self) -> None:
        """See `Shelf`."""
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _reserve(descriptor: int, size: int) -> None:
    """Take the room now, so that a disk that is too full is found before anything is charged."""
    if not hasattr(os, "posix_fallocate"):
        found = os.fstatvfs(descriptor)
        if size > found.f_bavail * found.f_frsize:
            raise OSError("no space left")
    elif size:
        os.posix_fallocate(descriptor, 0, size)


class Kept:
    """A client's activations in one run.

    Args:
        backbone: The model; with layers below its first adapter.
        job: Its settings.
        table: The rows, of which lengths are read now and tokens when they are first asked for.
        slots: Rows of a physical batch of the steps.
        shelf: Where they are kept.
    """

    def __init__(
        self, backbone: Backbone, job: Job, table: Table, slots: int, shelf: Shelf
    ) -> None:
        self._backbone, self._job, self._table = backbone, job, table
        self._slots, self._shelf = slots, shelf
        self._key = key_of(backbone, job, table, slots)
        self._buckets = Buckets.up_to(job.training.max_length)
        self._filled = self._over = False

    def fits(self, table: Table, slots: int) -> bool:
        """Whether these are the activations of such rows in steps of such a shape."""
        return not self._over and key_of(self._backbone, self._job, table, slots) == self._key

    def of(self, plan: PhysicalBatch) -> torch.Tensor | None:
        """Return the activations of a physical batch, shape (rows, width, hidden).

        None where they cannot be had, for good: whether they can is no answer about rows, because
        a step with them is the step without.
        """
        if self._over:
            return None
        try:
            if not self._filled:
                self._fill()
            numbers = [self._number(row, plan.width) for row in plan.rows]
            found = {number: self._shelf.get(number) for number in set(numbers)}
            return torch.stack([found[number] for number in numbers]).to(self._backbone.device)
        except Exception as error:  # its text could quote rows
            log.warning(
                "kept activations cannot be used (%s): the frozen layers run in every step again",
                type(error).__name__,
            )
            self.close()
            return None

    def close(self) -> None:
        """Delete them, for good."""
        self._over = True
        self._shelf.close()

    def _fill(self) -> None:
        """Run the lower layers over all rows, in physical batches like those of steps."""
        lower, table = self._backbone.lower, self._table
        assert lower is not None
        lengths, every = [len(row) for row in table.tokens], np.arange(len(table))
        dummies: set[int] = set()
        # Seats of their own randomness: that of a step's seed is what it is without.
        for plan in plan_slots(lengths, every, self._buckets, self._slots, NoiseSource.from_os()):
            device, pad = self._backbone.device, self._backbone.pad
            batch = table.batch(plan.rows, pad, device, width=plan.width)
            with self._backbone.arithmetic():
                states = lower.states(batch).cpu()
            for row, state in zip(plan.rows, states, strict=True):
                if row != DUMMY or plan.width not in dummies:
                    self._shelf.put(self._number(row, plan.width), state)
                if row == DUMMY:
                    dummies.add(plan.width)
        self._filled = True

    def _number(self, row: int, width: int) -> int:
        """On the shelf: of a row, or of all dummies of a width."""
        at = self._buckets.widths.index(width)
        return len(self._table) + at if row == DUMMY else row


def keep(
    backbone: Backbone, job: Job, table: Table, records: int, place: Path | None
) -> Kept | None:
    """Prepare to keep a client's activations, and take the room for them.

    Args:
        backbone, job: The model and its settings.
        table: The client's training rows; only their lengths are read.
        records: Declared size, see `Mechanism`.
        place: The client's own folder of the run; without one nothing lies on a disk.

    Returns:
        None where nothing is gained, or nothing can be kept.

    Raises:
        ConfigurationError: The disk has no room. Nothing was charged.
    """
    settings = job.training
    if place is not None:  # a process that was killed may have left something on some file systems
        shutil.rmtree(place / FOLDER, ignore_errors=True)
    # Public numbers decide, so that the time of a first step says nothing but what they say.
    if not settings.keep_activations or passes_of(job) < WORTH or backbone.lower is None:
        return None
    slots, buckets = slots_of(job, records), Buckets.up_to(settings.max_length)
    widths = [*(buckets.width_of(len(row)) for row in table.tokens), *buckets.widths]
    sizes = [width * backbone.hidden_size * _WIDEST for width in widths]
    if sum(sizes) <= settings.activations_in_memory * MIB:
        return Kept(backbone, job, table, slots, InMemory())
    if place is None:
        return None
    try:
        private_folder(place)
        shelf = OnDisk(place / FOLDER, sizes, key_of(backbone, job, table, slots))
    except OSError as error:
        raise ConfigurationError(
            f"the activations of the frozen layers take {sum(sizes) / MIB:.0f} MiB, which cannot "
            f"be kept in {place} ({error.strerror or error}): free that much there, raise "
            f"training.activations_in_memory (now {settings.activations_in_memory} MiB), or set "
            "training.keep_activations = false, which computes them in every step"
        ) from None
    return Kept(backbone, job, table, slots, shelf)


def passes_of(job: Job) -> float:
    """How often the steps of a job pass a row on average, from public numbers."""
    steps = job.rounds * job.training.local_steps
    if job.topology.source == "lora_b":
        steps += job.topology.warmup_steps
    return job.training.sample_rate * steps


def key_of(backbone: Backbone, job: Job, table: Table, slots: int) -> bytes:
    """SHA-256 of what activations depend on: the model with its tokenizer, the rows, the shapes."""
    kind = "bfloat16" if backbone.bfloat16 else "float32"
    shapes = f"{job.training.max_length}/{slots}/{len(table)}/{kind}\n".encode()
    digest = hashlib.sha256(b"fedtree-secure/activations/v1\n" + backbone.digest + shapes)
    for row in table.tokens:
        digest.update(len(row).to_bytes(8, "big") + np.asarray(row, np.int64).tobytes())
    return digest.digest()
