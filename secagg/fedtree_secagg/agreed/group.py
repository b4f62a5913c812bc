"""Sets of clients as they travel: one bit per client of the plan, 1,250 bytes for 10,000."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedtree_secagg.errors import ProtocolError


class Group:
    """Some of the clients of a cohort: bit i is the i-th name, lowest bit of a byte first.

    Args:
        cohort: all names of the plan, sorted.
        bits: ceil(len(cohort) / 8) bytes.
        stage: the message that `bits` came with, for the error text.

    Raises:
        ProtocolError: another length, or bits beyond the cohort: a set has one encoding.
    """

    __slots__ = ("bits", "cohort", "flags")

    def __init__(self, cohort: Sequence[str], bits: bytes, stage: str = "group") -> None:
        self.cohort, self.bits = cohort, bits
        size = -(-len(cohort) // 8)
        flags = np.unpackbits(np.frombuffer(bits[:size], np.uint8), bitorder="little")
        if len(bits) != size or flags[len(cohort) :].any():
            raise ProtocolError(
                f"{stage}: {len(bits)} bytes are no set of the plan's {len(cohort)} clients"
            )
        self.flags: npt.NDArray[np.bool_] = flags[: len(cohort)].view(np.bool_)

    @classmethod
    def of(cls, cohort: Sequence[str], names: Iterable[str]) -> "Group":
        """Return the group of these names; those that are not in the cohort are left out."""
        chosen = set(names)
        flags = np.fromiter((name in chosen for name in cohort), np.bool_, len(cohort))
        return cls(cohort, np.packbits(flags, bitorder="little").tobytes())

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(self.cohort[place] for place in np.flatnonzero(self.flags).tolist())

    def select(self, names: Iterable[str], place: Mapping[str, int]) -> tuple[str, ...]:
        """Return the names that are in the group, in their order; `place` is `Plan.place`."""
        flags = self.flags
        return tuple(name for name in names if flags[place[name]])

    def within(self, other: "Group") -> bool:
        """Say whether all of this group are in the other, too."""
        return not bool((self.flags & ~other.flags).any())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Group) or self.bits != other.bits:
            return False
        # Comparing 10,000 equal names takes long.
        return self.cohort is other.cohort or self.cohort == other.cohort

    __hash__ = None  # type: ignore[assignment]
