"""When a reply leaves: at a public time, so that how long it took says little about the rows.

The time of a training step depends on how many records the Poisson coins drew, and so on how many
there are. A reply waits for the next multiple of a public interval after a public minimum. What
remains: a step that takes longer than the interval shows which multiple it needed, so choose the
interval above the longest step; and other programs on the same machine can watch the processor.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """A public timetable for replies.

    Attributes:
        minimum: Seconds that every paced reply takes at least.
        interval: After that, replies leave at multiples of so many seconds.
        clock, sleep: Replaced by tests.
    """

    minimum: float
    interval: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def wait(self, began: float) -> None:
        """Return at the next public moment after ``began`` (a reading of `clock`)."""
        taken = self.clock() - began
        beyond = max(0.0, taken - self.minimum)
        due = self.minimum + math.ceil(beyond / self.interval) * self.interval
        if due > taken:
            self.sleep(due - taken)
