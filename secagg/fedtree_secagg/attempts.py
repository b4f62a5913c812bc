"""Which attempts a client has begun, how far each went, and what may follow: the journal's rules.

One attempt at a time, with one exception: while an attempt has uploaded and waits to be opened, the
next round may be begun *ahead*, so that its keys and shares travel with the messages that open this
one. Of the two only the earlier has an upload: as soon as the later records one, the earlier is
given up, and nothing more is said in it. An attempt that was begun ahead and has uploaded nothing
may be given up for another attempt of the round before it, which a server that crashed then runs
again. No (round, attempt) serves twice, whatever happens.
"""

from fedtree_secagg.errors import ProtocolError, shown

STAGES = ("begun", "advertised", "shared", "masked", "confirmed", "revealed")
AHEAD = "ahead"  # stands for the first stage of an attempt that was begun ahead
LARGEST_COUNTER = 2**31 - 1
LARGEST_JUMP = 1000  # between two attempts of a round: one absurd number must not use up all others
Key = tuple[int, int]  # round and attempt


class Attempts:
    """The attempts of one client; it checks and notes, and does no I/O.

    Attributes:
        last: The (round, attempt) begun last, or None.
    """

    def __init__(self) -> None:
        self.last: Key | None = None
        self._used: dict[int, int] = {}
        self._stages: dict[Key, str] = {}
        self._unused_ahead = False  # the last one was begun ahead and has uploaded nothing
        self._open: tuple[Key, ...] = ()

    def give_up(self) -> None:
        """End all attempts, as a crash does: what they need lived in memory only."""
        self._open = ()

    def number(
        self,
        round: int,  # noqa: A002
        attempt: int | None,
        *,
        ahead: bool,
        jump: int = LARGEST_JUMP,
    ) -> int:
        """Return the number of an attempt that may begin now.

        Args:
            round: Its round.
            attempt: Its number; None takes the next.
            ahead: Whether the attempt under way goes on beside it.
            jump: How far above the attempts of its round its number may be.

        Raises:
            ProtocolError: It may not begin.
        """
        last_round, _ = self.last or (-1, -1)
        check_counter("round", round)
        back = round == last_round - 1 and self._unused_ahead
        if round < last_round and not back:
            raise ProtocolError(
                f"journal: round {round} is older than {last_round}, "
                "which this client already answered"
            )
        if ahead and not self._may_begin_ahead(round):
            raise ProtocolError(
                "journal: only the round after one that has uploaded, and has confirmed nothing "
                "yet, is begun ahead"
            )
        used = self._used.get(round, -1)
        number = used + 1 if attempt is None else attempt
        check_counter("attempt", number)
        if not used < number <= used + jump:
            raise ProtocolError(
                f"journal: attempt {number} of round {round} does not follow {used}; "
                f"give {used + 1} to {used + jump}"
            )
        return number

    def check_stage(self, of: Key | None, stage: str) -> Key:
        """Return the attempt whose next stage this is.

        Args:
            of: The attempt; None for the one begun last.
            stage: What it comes to.

        Raises:
            ProtocolError: It is no attempt under way, or another stage comes next.
        """
        key = self.last if of is None else of
        if key is None or key not in self._open:
            raise ProtocolError("journal: no attempt is under way in this process; begin one")
        at = STAGES.index(self._stages[key])
        if stage not in STAGES[at + 1 : at + 2]:
            raise ProtocolError(
                f"journal: {stage!r} does not follow {self._stages[key]!r}; each stage happens once"
            )
        return key

    def note(self, key: Key, stage: str) -> None:
        """Take a line over that was checked."""
        ahead = stage == AHEAD
        if ahead or stage == STAGES[0]:
            self.last, self._used[key[0]] = key, key[1]
            self._unused_ahead = ahead
            self._open = (*self._open, key) if ahead else (key,)
            stage = STAGES[0]
        elif stage == "masked":
            self._open = (key,)
            self._unused_ahead = False
        self._stages[key] = stage

    def _may_begin_ahead(self, number: int) -> bool:
        if len(self._open) != 1:
            return False
        (under_way,) = self._open
        return number == under_way[0] + 1 and self._stages[under_way] == "masked"


def check_counter(label: str, value: object) -> None:
    """Refuse what is no counter."""
    if type(value) is not int or not 0 <= value <= LARGEST_COUNTER:
        raise ProtocolError(
            f"journal: {label} is {shown(value)}; give a whole number from 0 to {LARGEST_COUNTER}"
        )
