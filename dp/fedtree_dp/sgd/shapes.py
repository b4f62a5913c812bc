"""Physical batches of fixed shape: what a record meets in its forward pass says nothing about the
others.

A batch that is padded to its longest record couples records: under weights that a hostile server
chose, one longer record turned the gradients of all records beside it into NaN, and the clipped sum
moved by ten clipping norms. Here a record's width is a function of its own length, every physical
batch has the same number of rows, and rows without a record are dummies that contribute exactly
zero (`present` in a `Batch`).

The last row of every physical batch is always a dummy, with one real token and then padding:
transformers takes another attention kernel if no row of a batch is padded, so the first short
record would change the arithmetic of all others.

What is left: how many physical batches each width has depends on the records and shows in the time
that a step takes. To hide that, answer at fixed times.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedtree_dp.checks import count, real
from fedtree_dp.errors import ConfigurationError
from fedtree_dp.randomness.noise import NoiseSource

DUMMY = -1
SIZES = (8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The widths, in tokens, that records are padded to. Public.

    Args:
        widths: ascending, each at least 1.

    Raises:
        ConfigurationError: no widths, or not ascending.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        for width in self.widths:
            count("widths", width)
        if not self.widths or list(self.widths) != sorted(set(self.widths)):
            raise ConfigurationError(f"widths must be ascending, at least one, not {self.widths}")

    @classmethod
    def up_to(cls, max_length: int) -> Buckets:
        """Return 16, 24, 32, 48, 64, 96, ... below `max_length`, and `max_length` itself.

        At most a third of a row is padding, for records of 17 tokens or more.
        """
        limit, widths, power = count("max_length", max_length), [], 16
        while power < limit:
            widths += [power, power * 3 // 2]
            power *= 2
        return cls((*(width for width in widths if width < limit), limit))

    def width_of(self, length: int) -> int:
        """Return the smallest width that holds a record of `length` tokens.

        Raises:
            ConfigurationError: it is longer than the largest width; cut records beforehand.
        """
        if length > self.widths[-1]:
            raise ConfigurationError(
                f"a record is longer than the largest width, {self.widths[-1]}; cut records to it"
            )
        return self.widths[bisect.bisect_left(self.widths, length)]


@dataclasses.dataclass(frozen=True, repr=False)
class PhysicalBatch:
    """Who sits where in one forward pass. Private.

    Attributes:
        width: tokens that every row is padded to.
        rows: for each row the record's index, or `DUMMY`; the last is always a dummy.
        units: for each row the unit that its record belongs to, or `DUMMY`; empty where every
            record is a unit of its own.
        last: for each row whether no later row of the step belongs to its unit; empty as `units`.
    """

    width: int
    rows: tuple[int, ...]
    units: tuple[int, ...] = ()
    last: tuple[bool, ...] = ()

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows hold a record, shape (rows,)."""
        return np.asarray([row != DUMMY for row in self.rows], dtype=np.bool_)


def slots_for(expected_batch_size: float, limit: int) -> int:
    """Return a number of rows for every physical batch, from public numbers alone.

    Of n records in one width, s to a batch, half a batch and n / s last rows are dummies: fewest at
    s = sqrt(2 n). Of `SIZES`, each twice the one before, that with the fewest lies up to 2 sqrt(n);
    where two are alike the larger, whose passes cost less a row. Returned is that for n the
    expected batch, and one row more for the dummy that is always there; at most `limit`.

    Args:
        expected_batch_size: sample rate times the declared size.
        limit: most rows that memory holds; less than 2 counts as 2.
    """
    public = real("expected_batch_size", expected_batch_size, above=0)
    chosen = max((s for s in SIZES if s * s <= 4 * public), default=SIZES[0])
    return max(2, min(chosen + 1, count("limit", limit)))


def plan_slots(
    lengths: Sequence[int],
    drawn: npt.NDArray[np.int64] | Sequence[int],
    buckets: Buckets,
    slots: int,
    source: NoiseSource,
) -> list[PhysicalBatch]:
    """Seat the drawn records in physical batches of `slots` rows, one width after the other.

    Formal guarantee: a width with n records has ceil(n / (slots - 1)) batches, and its records sit
    on a uniformly random choice of their free rows, in random order. Add a record: while the number
    of its width's batches stays the same, the two seatings can be drawn together such that the new
    record takes the place of a dummy, a uniformly random one, and nobody else moves (leave any
    record out of a uniformly random injection, and what is left is one). Other widths never notice.
    Where the record opens a new batch, the others of its width are seated anew, in batches of the
    same shape: each keeps its gradient as far as that does not depend on the row it sits in. It
    does not on the machine that docs/engine.md names; nothing promises that it never does.

    Args:
        lengths: tokens of every record of the data set, at most the largest width.
        drawn: indices of the step's records, from a `PoissonSampler`.
        buckets: the widths.
        slots: rows of a physical batch, at least 2; a public number, see `slots_for`.
        source: where the seats come from.

    Raises:
        ConfigurationError: a record is longer than the largest width, or `slots` is below 2.
    """
    room = count("slots", slots, at_least=2) - 1
    groups: dict[int, list[int]] = {width: [] for width in buckets.widths}
    for index in drawn:
        groups[buckets.width_of(lengths[int(index)])].append(int(index))
    return [
        PhysicalBatch(width, (*(int(i) for i in row), DUMMY))
        for width, members in groups.items()
        for row in seated(members, room, source)
    ]


def seated(members: list[int], room: int, source: NoiseSource) -> npt.NDArray[np.int64]:
    """Return a uniformly random injection of members into as many rows of `room` seats as needed,
    shape (rows, room); free seats are `DUMMY`.

    Equal 64-bit keys keep their order; two of a thousand seats are equal once in 10^13 draws.
    """
    batches = -(-len(members) // room)
    seats = np.full(batches * room, DUMMY, dtype=np.int64)
    order = np.argsort(source.integers(len(seats)), kind="stable")
    seats[order[: len(members)]] = members
    return seats.reshape(batches, room)
