"""A node of the tree: a group of clients, and the coordinates in which they are summed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.identity import check_name
from fedtree_secagg.errors import ConfigurationError

Range = tuple[int, int]


@dataclass(frozen=True)
class Node:
    """A group of clients and the coordinates in which they are summed.

    Args:
        name: unique in the plan.
        members: names of the clients; kept sorted.
        ranges: half-open intervals [start, stop) of coordinates, sorted and without overlap.
    """

    name: str
    members: tuple[str, ...]
    ranges: tuple[Range, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(
            self, "members", tuple(sorted(check_name(member) for member in self.members))
        )
        object.__setattr__(
            self, "ranges", tuple((int(start), int(stop)) for start, stop in self.ranges)
        )
        if len(set(self.members)) != len(self.members):
            raise ConfigurationError(f"node {self.name!r} names a member twice; name each once")
        _check_ranges(f"node {self.name!r}", self.ranges)

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return sum(stop - start for start, stop in self.ranges)

    def gather(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the node's coordinates of a full-length vector, ranges one after the other."""
        parts = [vector[start:stop] for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def scatter(self, values: npt.NDArray[Any], into: npt.NDArray[Any]) -> None:
        """Write the node's values back into a full-length vector: the inverse of `gather`."""
        at = 0
        for start, stop in self.ranges:
            into[start:stop] = values[at : at + stop - start]
            at += stop - start


def _check_ranges(owner: str, ranges: Iterable[Range]) -> None:
    ranges = tuple(ranges)
    if not ranges:
        raise ConfigurationError(f"{owner} has no coordinates; leave it out of the plan")
    end = 0
    for start, stop in ranges:
        if not end <= start < stop:
            raise ConfigurationError(
                f"{owner}: range [{start}, {stop}) is empty, negative or not after the one before; "
                "give sorted half-open ranges without overlap"
            )
        end = stop
