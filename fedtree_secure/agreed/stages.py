"""Rounds, exchanges and ledger purposes, each spelled once.

An *exchange* is one request to each of some clients and their replies. A *purpose* is what a charge
in a client's ledger was for. Training rounds count from 1; round 0 merges what
was trained alone before (a warm-up, heads).
"""

from enum import StrEnum

MERGE, FIRST = 0, 1

# What an honest server never exceeds, so that a client may refuse it without looking further.
MOST_ATTEMPTS = 900  # of a round or a sketch; a start of a server has two of a round
MOST_SKETCHES = 3  # of one charge: each shows a server with a colluding member `sketch_size` more
COUNTER_WINDOW = 2**31  # a request may be so many numbers after the last one that was answered
REQUESTS_OF_A_START = 2**20  # a server numbers its requests from here on at each start


class Exchange(StrEnum):
    """Names of the exchanges, as transports and transcripts show them."""

    JOIN = "join"
    SKETCH_HELLO = "sketch-hello"
    SKETCH_SEAL = "sketch-seal"
    SKETCH = "sketch"
    TREE = "tree"
    ADOPT = "adopt"
    CHANGE = "change"
    LEARN = "learn"
    PREPARE = "prepare"
    DRAW_COMMIT = "draw-commit"
    DRAW_OPEN = "draw-open"
    DRAW_KEEP = "draw-keep"
    ALONE = "alone"
    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    REVEAL = "reveal"
    FINISH = "finish"
    DELIVER = "deliver"


class Purpose(StrEnum):
    """What a charge was for, beside the rounds."""

    FINGERPRINT = "fingerprint"
    WARM_UP = "warm-up"
    HEAD = "head"


def purpose_of(number: int) -> str:
    """Return the ledger purpose of a training round, from 1."""
    return f"round {number}"


def attempt_of(start: int, *, ahead: bool) -> int:
    """Return the number of a round's attempt in a start of the server.

    A start has two of a round: one that is dealt ahead, with the round before, and another where
    that one is of no use any more. No later start has a number that is not above both.
    """
    return 2 * start - 1 if ahead else 2 * start


def in_round(number: int, exchange: Exchange) -> str:
    """Return the name of an exchange of a round."""
    return f"round-{number}/{exchange}"


def kind_of(name: str) -> Exchange:
    """Return which exchange a name belongs to, its round left out."""
    return Exchange(name.rpartition("/")[2])
