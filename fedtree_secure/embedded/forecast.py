"""How long a run will still take: from what was measured in this run, by kind of stage.

The plan of a run is public: which stages there are, how many clients answer in each, and how many
passes of a declared row through the model an answer takes. A kind of stage that was measured counts
with its own seconds, another one with the seconds that a pass took elsewhere in this run. Until a
client has answered in a stage that works on rows, nothing is known, and nothing is said.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedtree_secure.agreed.head_release import answers_of_head
from fedtree_secure.config import Job

TRAIN = 3.0  # forward and backward, in forward passes of a row
HEAD_STEP = 2.0  # a step of the head alone on cached features, in the same unit

PRINTS, HEADS, STEPS, MASKING, TESTING = (
    "private distances",
    "heads",
    "local steps",
    "masking",
    "evaluation",
)


@dataclass(frozen=True)
class Part:
    """A stage of the plan.

    Attributes:
        job, label: Which one it is; a label stands once in a job.
        kind: What is measured together.
        answers: Of how many clients.
        work: Of one answer, in forward passes of a row; 0 where no row is touched.
    """

    job: str
    label: str
    kind: str
    answers: int
    work: float = 0.0


def parts_of(name: str, job: Job, records: Sequence[int]) -> list[Part]:
    """Return the plan of a job from public numbers.

    Args:
        name: Of the job, among those of this run.
        records: Declared size of each client's training set, in the job's unit.
    """
    count, training = len(records), job.training
    rows = job.expected_rows(1.0, 1) * sum(records) / max(count, 1)
    step = TRAIN * training.sample_rate * rows
    source = job.topology.source if job.rounds else "none"
    parts = []
    if source == "fingerprint":
        parts.append(Part(name, "sketch", PRINTS, count, rows))
    if source == "lora_b":
        parts.append(Part(name, "sketch", STEPS, count, step * job.topology.warmup_steps))
    if job.head_steps:
        parts.append(Part(name, "heads", HEADS, count, HEAD_STEP * answers_of_head(job)))
    if job.weighs_noise:
        parts.append(Part(name, "round 1, gradients", STEPS, count, step))
    for number in range(1, job.rounds + 1):
        made = number == 1 and job.weighs_noise  # the round sends what was sketched
        work = 0.0 if made else step * training.local_steps
        parts.append(Part(name, f"round {number}", STEPS, count, work))
        parts.append(Part(name, f"round {number}, opened", MASKING, 1))
    return [*parts, Part(name, "evaluation", TESTING, count, rows / 2)]


@dataclass
class _Measured:
    """What a kind of stage took so far."""

    answers: int = 0
    seconds: float = 0.0
    work: float = 0.0


class Forecast:
    """Estimates the seconds left of a run.

    Args:
        parts: The plan, in order; see `parts_of`.
        clock: Seconds that only grow.
    """

    def __init__(
        self, parts: Iterable[Part] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._parts, self._clock = list(parts), clock
        self._at, self._answered = 0, 0  # the part that the run is in, and its answers so far
        self._here: Part | None = None
        self._since: float | None = None  # when the answer that is awaited was asked for
        self._mark, self._busy = clock(), 0.0  # since when the rest counts, and what is none of it
        self._measured: dict[str, _Measured] = {}

    def reach(self, job: str, label: str) -> None:
        """The run is at this stage; those before it are over, or were in an earlier start.

        A stage that is not planned is not measured.
        """
        for at in range(self._at, len(self._parts)):
            part = self._parts[at]
            if (part.job, part.label) == (job, label):
                if part is not self._here:
                    self._at, self._answered, self._here = at, 0, part
                return
        self._here = None

    def ask(self) -> None:
        """A client was asked."""
        self._since = self._clock()

    def answer(self) -> None:
        """It has answered."""
        if self._here is None or self._since is None:
            return
        seconds = self._clock() - self._since
        self._busy += seconds
        self._count(self._here, seconds)
        self._since = None

    def skip(self) -> None:
        """A client did not answer; what that took says nothing of the others."""
        self._since = None
        if self._here is not None:
            self._answered += 1

    def mark(self) -> None:
        """What is no answer counts as `rest` from here on."""
        self._mark, self._busy = self._clock(), 0.0

    def rest(self, job: str, label: str) -> None:
        """A stage is over that took all the time since the mark but that of answers."""
        self.reach(job, label)
        if self._here is not None:
            self._count(self._here, max(self._clock() - self._mark - self._busy, 0.0))
        self.mark()

    def left(self) -> float | None:
        """Seconds that the run will still take, never negative; None while unknown."""
        if not any(found.work for found in self._measured.values()):
            return None
        seconds = 0.0
        for at, part in enumerate(self._parts[self._at :], self._at):
            each, waiting = self._seconds(part), part.answers
            if at == self._at:
                waiting -= self._answered
                if self._since is not None and self._here is part and waiting > 0:
                    seconds -= min(self._clock() - self._since, each)
            seconds += each * max(waiting, 0)
        return max(seconds, 0.0)

    def _count(self, part: Part, seconds: float) -> None:
        found = self._measured.setdefault(part.kind, _Measured())
        found.answers += 1
        found.work += part.work
        found.seconds += seconds
        self._answered += 1

    def _seconds(self, part: Part) -> float:
        """Seconds of one answer of a stage."""
        found = self._measured.get(part.kind)
        if part.work == 0:
            return found.seconds / found.answers if found and part.kind == MASKING else 0.0
        if found is None or not found.work:
            every = [kind for kind in self._measured.values() if kind.work]
            found = _Measured(0, sum(x.seconds for x in every), sum(x.work for x in every))
        return part.work * found.seconds / found.work


def said(left: float | None) -> str:
    """Say in words how much time is left."""
    if left is None:
        return "time left unknown"
    if left < 90:
        return f"about {left:.0f} s left"
    minutes = round(left / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"
