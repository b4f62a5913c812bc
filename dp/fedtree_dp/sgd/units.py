"""Units of many records: who sits where, and one gradient a unit.

A unit (a patient) holds several records, and one clip bounds all of them together. Their gradients
are computed one by one, exactly as without units, and summed before anything is clipped. So the
records of a unit may sit in different physical batches: of their own widths, beside whomever. What
must not depend on others is a unit's sum, to the last bit. Floating-point addition is not
associative, so the order of addition is fixed: by width, then the unit's own order. `plan_units`
seats each unit's records in that order, and `UnitSums` adds them one after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtree_dp.checks import count
from fedtree_dp.randomness.noise import NoiseSource
from fedtree_dp.sgd.optimizer import finite_rows, wide
from fedtree_dp.sgd.shapes import DUMMY, Buckets, PhysicalBatch, seated

ROOM = 1 << 26  # values of all open sums together: some 256 MiB of float32
FEWEST, MOST = 64, 4096


def units_at_once(values: int) -> int:
    """Return how many units' sums may be open at a time, from the number of trained values."""
    return max(FEWEST, min(MOST, ROOM // count("values", values)))


def plan_units(
    lengths: Sequence[int],
    members: Sequence[Sequence[int]],
    drawn: npt.NDArray[np.int64] | Sequence[int],
    buckets: Buckets,
    slots: int,
    source: NoiseSource,
    *,
    at_once: int,
) -> list[PhysicalBatch]:
    """Seat all records of the drawn units in physical batches of `slots` rows.

    Formal guarantee: units are seated in wards of `at_once`, one ward after the other. In a ward,
    the n records of a width sit in ceil(n / (slots - 1)) batches, on a uniformly random choice of
    their free rows, as in `shapes.plan_slots`; of the rows that a unit has, its records take the
    first to the last in the unit's own order. Add a unit: while numbers of wards and batches stay
    the same, the two seatings can be drawn together such that its records take the place of dummies
    and nobody else moves (take any unit out of a uniformly random injection of records, and what is
    left is one; the order inside a unit is its own). So every other unit's sum has the same terms
    in the same order. Where a batch or a ward is opened, others are seated anew, and each keeps its
    sum as far as a record's gradient does not depend on its row.

    Args:
        lengths: tokens of every record of the data set, at most the largest width.
        members: for each unit the indices of its records, in the unit's own order.
        drawn: indices of the step's units, from a `PoissonSampler` over units.
        buckets: the widths.
        slots: rows of a physical batch, at least 2; a public number.
        source: where the seats come from.
        at_once: units of a ward; a public number, see `units_at_once`. It bounds memory.

    Raises:
        ConfigurationError: a record is longer than the largest width, or a number out of range.
    """
    room = count("slots", slots, at_least=2) - 1
    wards = seated([int(u) for u in drawn], count("at_once", at_once), source)
    return [
        batch
        for ward in wards
        for batch in _marked(list(_ward(lengths, members, ward, buckets, room, source)))
    ]


def _ward(
    lengths: Sequence[int],
    members: Sequence[Sequence[int]],
    ward: npt.NDArray[np.int64],
    buckets: Buckets,
    room: int,
    source: NoiseSource,
) -> Iterator[PhysicalBatch]:
    groups: dict[int, dict[int, list[int]]] = {width: {} for width in buckets.widths}
    for unit in np.sort(ward[ward != DUMMY]).tolist():
        for record in members[unit]:
            width = buckets.width_of(lengths[int(record)])
            groups[width].setdefault(unit, []).append(int(record))
    for width, own in groups.items():
        places = seated([unit for unit, found in own.items() for _ in found], room, source)
        turns = {unit: iter(found) for unit, found in own.items()}
        for row in places.tolist():
            records = [DUMMY if unit == DUMMY else next(turns[unit]) for unit in row]
            yield PhysicalBatch(width, (*records, DUMMY), (*row, DUMMY))


def _marked(batches: list[PhysicalBatch]) -> list[PhysicalBatch]:
    """Mark the last row of every unit of a ward."""
    open_units: set[int] = set()
    marked = []
    for batch in reversed(batches):
        last = []
        for unit in reversed(batch.units):
            last.append(unit != DUMMY and unit not in open_units)
            open_units.add(unit)
        marked.append(dataclasses.replace(batch, last=tuple(reversed(last))))
    return marked[::-1]


class UnitSums:
    """The sums of a step's units, as far as their records have come in.

    A unit contributes once in a step: what comes after its sum was closed is left out.

    Args:
        params: the trainable parameters, in the order of per-sample gradients.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = list(params)
        self._sums: list[Tensor] = []
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._closed: set[int] = set()

    def __len__(self) -> int:
        """Units whose sum is open."""
        return len(self._slots)

    @torch.no_grad()
    def add(self, per_sample: Sequence[Tensor], units: Tensor, usable: Tensor) -> int:
        """Add records to the sums of their units, in the order of the rows.

        Args:
            per_sample: for each parameter, shape (rows, *parameter shape).
            units: shape (rows,), int64: each row's unit; not looked at for rows that are not
                usable.
            usable: shape (rows,), bool: False for dummies and for records without a finite loss.

        Returns:
            How many of the usable records were left out because their gradient is not finite, or
            their unit was closed.
        """
        rows = [wide(g).flatten(1) if g.ndim > 1 else wide(g)[:, None] for g in per_sample]
        finite = finite_rows(rows)[1].to(usable.device)
        kept = (usable & finite).nonzero()[:, 0]
        still = [unit not in self._closed for unit in units[kept].tolist()]
        kept = kept[torch.tensor(still, dtype=torch.bool, device=kept.device)]
        slots = self._slots_of(units[kept].tolist())
        for turn in _turns(slots):
            chosen = kept[torch.tensor(turn, device=kept.device)]
            into = torch.tensor([slots[i] for i in turn])
            for total, g in zip(self._sums, rows, strict=True):
                # No two rows of a turn share a unit: one addition each, in no particular order.
                at = into.to(total.device)
                total[at] += g[chosen.to(g.device)]
        return int(usable.sum()) - len(kept)

    def close(self, units: Sequence[int] | None = None) -> list[Tensor]:
        """Return the sums of these units, or of all, as (units, *parameter shape), and forget them.

        A unit of which no record could be used has a sum of zero.
        """
        wanted = list(self._slots) if units is None else dict.fromkeys(units)
        closing = [u for u in wanted if u != DUMMY and u not in self._closed]
        slots = self._slots_of(closing)
        at = torch.tensor(slots, dtype=torch.int64)
        found = []
        for p, total in zip(self._params, self._sums, strict=True):
            where = at.to(total.device)
            found.append(total[where].view(len(slots), *p.shape))
            total[where] = 0.0
        for unit in closing:
            self._free.append(self._slots.pop(unit))
        self._closed.update(closing)
        return found

    def discard(self) -> None:
        """Forget all sums, and which units were closed: the step is over."""
        self._sums, self._slots, self._free, self._closed = [], {}, [], set()

    def _slots_of(self, units: Sequence[int]) -> list[int]:
        new = [unit for unit in dict.fromkeys(units) if unit not in self._slots]
        if len(new) > len(self._free) or not self._sums:
            self._grow(len(new) - len(self._free))
        for unit in new:
            self._slots[unit] = self._free.pop()
        return [self._slots[unit] for unit in units]

    def _grow(self, needed: int) -> None:
        known = len(self._sums[0]) if self._sums else 0
        size = max(known + max(needed, 1), 2 * known, FEWEST)
        grown = [_zeros(p, size) for p in self._params]
        for new, old in zip(grown, self._sums, strict=False):
            new[:known] = old
        self._sums = grown
        self._free += range(size - 1, known - 1, -1)


def _zeros(p: Tensor, size: int) -> Tensor:
    kind = torch.float64 if p.dtype == torch.float64 else torch.float32
    return torch.zeros(size, p.numel(), dtype=kind, device=p.device)


def _turns(slots: Sequence[int]) -> list[list[int]]:
    """Split positions into turns: a unit's first record is in the first, its second in the next."""
    turns: list[list[int]] = []
    seen: dict[int, int] = {}
    for position, slot in enumerate(slots):
        turn = seen.get(slot, 0)
        seen[slot] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(position)
    return turns
