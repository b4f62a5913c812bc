"""Where a client stands between two requests: the class of the session *is* the stage.

Sessions live in memory only and are never written down: after a crash an attempt is over, and the
server begins another. A session may hold that of the next round beside it, which is dealt ahead;
any other request gives both up.
"""

from dataclasses import dataclass

from fedtree_secagg import beacon, sketch
from fedtree_secagg import client as masking
from fedtree_secure.agreed.messages import NodeDigest, ProposeTree
from fedtree_secure.agreed.moves import Floats, NodeValues
from fedtree_secure.agreed.tree import Tree


@dataclass(frozen=True)
class Received:
    """Experts that passed every check, not yet taken over.

    Attributes:
        nodes: Values of the client's nodes, by name.
        external: (layout length,) its external expert.
        known_round: Last round whose sums are in them.
        digests: What all members of each node of the tree hold.
        head_merged: Whether the average of its group's heads is among them.
    """

    nodes: dict[str, NodeValues]
    external: Floats
    known_round: int
    digests: tuple[NodeDigest, ...]
    head_merged: bool


@dataclass(frozen=True)
class Idle:
    """Nothing is under way."""


@dataclass(frozen=True)
class SketchGreeted:
    """The client's advert for a sketch is out."""

    attempt: int
    state: sketch.Greeted


@dataclass(frozen=True)
class SketchSealed:
    """The group of a sketch is fixed."""

    attempt: int
    state: sketch.Sealed


@dataclass(frozen=True)
class GradientGreeted:
    """The client's advert for a sketch of gradients is out; its experts were checked."""

    attempt: int
    state: sketch.Greeted


@dataclass(frozen=True)
class GradientSealed:
    """The group of such a sketch is fixed."""

    attempt: int
    state: sketch.Sealed


@dataclass(frozen=True)
class TreeVoted:
    """The client signed a proposed tree."""

    proposal: ProposeTree
    tree: Tree


@dataclass(frozen=True)
class DrawCommitted:
    """The client's commitment to its part of a graph's randomness is out."""

    state: beacon.Committed


@dataclass(frozen=True)
class DrawOpened:
    """Its part is out, after it saw the commitments of all."""

    state: beacon.Opened


@dataclass(frozen=True)
class FinishVoted:
    """The client checked the last experts and signed them; it keeps them when enough did."""

    received: Received


@dataclass(frozen=True)
class RoundAdvertised:
    """The client's keys for an attempt are out; ``merge`` and ``number`` say what follows."""

    number: int
    merge: bool
    state: masking.Advertised


@dataclass(frozen=True)
class RoundShared:
    """Its shares are out."""

    number: int
    merge: bool
    state: masking.Shared


@dataclass(frozen=True)
class RoundUploaded:
    """Its masked update may have left; so may its keys for the next round, where they are asked
    for.
    """

    state: masking.Uploaded
    ahead: RoundAdvertised | None = None


@dataclass(frozen=True)
class RoundConfirmed:
    """It signed the survivors; its shares for the next round may be out."""

    state: masking.Confirmed
    ahead: RoundShared | None = None


Session = (
    Idle
    | SketchGreeted
    | SketchSealed
    | GradientGreeted
    | GradientSealed
    | TreeVoted
    | DrawCommitted
    | DrawOpened
    | FinishVoted
    | RoundAdvertised
    | RoundShared
    | RoundUploaded
    | RoundConfirmed
)
