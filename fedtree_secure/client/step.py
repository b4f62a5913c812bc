"""What a checked request leads to, before anything of it has happened.

A handler looks at a request and returns a `Step`; it changes nothing. `Participant.handle` alone
carries steps out, in the one order that is allowed: write down and charge, compute, keep, send.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fedtree_dp import Event
from fedtree_secure.agreed.messages import Reply, WireError
from fedtree_secure.client.sessions import Session
from fedtree_secure.client.store import Record


class OutOfOrder(WireError):  # noqa: N818 - what happened, as in the states' names
    """A request came out of order, twice, or for another stage. Nothing was changed."""


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """A public reason not to take part, found before anything was written down or charged.

    Attributes:
        reason: One of `agreed.messages.REASONS`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True)
class Charge:
    """What a step costs.

    Attributes:
        purpose: Its name in the ledger.
        event: The mechanism.
        repeatable: True where the result depends on the rows, the charge's own seed and public
            constants alone, never on what a server sent. It can then be computed again after a
            crash and is the same result, so it costs nothing more. An upload is never repeatable.
    """

    purpose: str
    event: Event
    repeatable: bool


@dataclass(frozen=True)
class Step:
    """One request's consequences.

    Attributes:
        answer: Computes the reply and the next session from the charge's seed (32 bytes, empty
            without a charge). It runs after the charge: whether and what it answers must not depend
            on rows but through a private mechanism.
        write: Notes the decision in the client's record, in one transaction with the charge.
        charge: What it costs, None if nothing private is computed.
        takes: Takes values over that the computation begins with. They are kept in the transaction
            of ``write``, which notes that they are held; only where there is a charge.
        keeps: Whether the client's values change and must be written down before the reply leaves.
        paced: Whether the reply's time could tell about rows, see `pacing`.
    """

    answer: Callable[[bytes], tuple[Session, Reply]]
    write: Callable[[Record], None] = lambda _: None
    charge: Charge | None = None
    takes: Callable[[], None] | None = None
    keeps: bool = False
    paced: bool = False
