"""The states of a client between its steps: each is consumed by the step that it serves."""

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.identity import Identity
from fedtree_secagg.primitives import keys
from fedtree_secagg.primitives.secret import OneShot, Secret
from fedtree_secagg.rounds.bundles import Bundle
from fedtree_secagg.rounds.session import Cohort, Session


class Me(OneShot):
    """What every state of a client carries."""

    __slots__ = ("identity", "name", "session")

    def __init__(self, identity: Identity, name: str, session: Session) -> None:
        super().__init__()
        self.identity = identity
        self.name = name
        self.session = session


class Advertised(Me):
    """After `advertise`: fresh keys and seeds."""

    __slots__ = ("advert", "channel", "mask", "seeds")

    mask: keys.Pair
    channel: keys.Pair
    seeds: tuple[Secret, ...]
    advert: bytes


class InCohort(Me):
    """What every state has once the session id is fixed."""

    __slots__ = ("bundles", "cohort", "link")

    cohort: Cohort
    bundles: dict[str, Bundle]
    link: Secret  # agreed with the server: authenticates what only the server reads

    def inherit(self, other: "InCohort") -> None:
        """Take over cohort, bundles and link of the state before."""
        self.cohort, self.bundles, self.link = other.cohort, other.bundles, other.link


class Shared(InCohort):
    """After `share`: the session id is fixed, own bundle kept, channels to all others open."""

    __slots__ = ("channels", "mask", "seeds")

    mask: keys.Pair
    seeds: tuple[Secret, ...]
    channels: dict[str, Secret]


class Opened(InCohort):
    """After `receive`: all bundles are held and checked; no private value was read."""

    __slots__ = ("late", "mask", "seeds", "sharers")

    mask: keys.Pair
    seeds: tuple[Secret, ...]
    sharers: Group
    late: bytes


class Uploaded(InCohort):
    """After `upload`: the update is out; own keys and seeds are gone, others' shares are held."""

    __slots__ = ("late", "sharers", "spoken")

    sharers: Group
    late: bytes
    # What this client signed in this session, and need not verify when it comes back.
    spoken: tuple[bytes, ...]


class Confirmed(InCohort):
    """After `confirm`: this client signed one survivor set and answers for no other."""

    __slots__ = ("late", "sharers", "spoken", "survivors")

    sharers: Group
    late: bytes
    spoken: tuple[bytes, ...]
    survivors: Group
