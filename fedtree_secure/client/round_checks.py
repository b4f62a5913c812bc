"""What must hold of a round before a client makes keys for it, whoever deals them and when."""

from fedtree_dp import ConfigurationError, SharedPoissonGaussian
from fedtree_secagg import Plan, ProtocolError
from fedtree_secure.agreed.messages import Begin, NodeDigest
from fedtree_secure.agreed.round_plan import plan_of_round
from fedtree_secure.agreed.shared_noise import honest_in, release_of
from fedtree_secure.agreed.stages import MERGE, MOST_ATTEMPTS
from fedtree_secure.client.cohort_requests import check_here, check_turn
from fedtree_secure.client.graph_requests import checked_beacon
from fedtree_secure.client.party import Party
from fedtree_secure.client.step import OutOfOrder, Refusal

LAST = "all"  # the stage after which no round follows


def check_round(party: Party, message: Begin) -> None:
    """Counters, kind, clip and turn must be what the public computations allow."""
    check_open(party)
    _check_counters(party, message)
    if not party.sums(merge=message.merge):
        raise OutOfOrder(f"{party.id}: this client belongs to no group")
    check_turn(party, message.round)
    _check_clip(party, message)


def round_plan(party: Party, message: Begin, digests: tuple[NodeDigest, ...] | None) -> Plan:
    """Compute the plan of a round from this client's own terms and tree.

    Args:
        digests: What the members hold; None where that comes with the inbox.

    Raises:
        Refusal: Its graph, a group or the grid is not what the client counts on.
    """
    plan = plan_of_round(
        party.terms,
        party.facts,
        party.tree(),
        party.store.record.evidence,
        message.clip,
        digests,
        merge=message.merge,
        beacon=checked_beacon(party, message),
    )
    _check_honest(party, plan, message)
    return plan


def check_open(party: Party) -> None:
    """After the last experts no round follows: their reach is that of all rounds."""
    check_here(party)
    if LAST in party.store.record.finished:
        raise OutOfOrder(f"{party.id}: the run is over for this client")


def _check_counters(party: Party, message: Begin) -> None:
    if not 0 < message.attempt <= MOST_ATTEMPTS or message.round > party.job.rounds:
        raise OutOfOrder(f"{party.id}: a round or an attempt beyond the job's")
    try:
        party.store.journal.check(message.round, message.attempt)
    except ProtocolError as error:
        raise OutOfOrder(f"{party.id}: {error}") from None
    merges = party.terms.merges
    if message.merge != (message.round == MERGE) or (message.merge and not merges):
        raise OutOfOrder(
            f"{party.id}: round {MERGE} merges what was trained alone, and no other; this one is "
            f"{message.round}"
        )


def kind_of(message: Begin) -> str:
    """Return the kind of a round, by which its clip is kept."""
    return "merge" if message.merge else "round"


def _check_clip(party: Party, message: Begin) -> None:
    """The clip is fixed for the run; see `Party.takes_clip` for what it may be."""
    fixed = party.store.record.clips.get(kind_of(message))
    usable = party.takes_clip(message.clip, merge=message.merge)
    if not usable or (fixed is not None and message.clip != fixed):
        raise Refusal("clip", f"the run's clip of {message.clip:g} would cut this client's updates")


def _check_honest(party: Party, plan: Plan, message: Begin) -> None:
    """The plan that this client computed must open no sum with fewer honest members than its charge
    counts on, and its grid must be fine enough for the noise.
    """
    event = party.round_event()
    if message.merge or not isinstance(event, SharedPoissonGaussian):
        return
    if honest_in(plan) < event.honest:
        raise Refusal("tree", "a sum could open with fewer honest members than are counted on")
    try:
        release_of(party.terms, plan)
    except ConfigurationError as error:
        raise Refusal("clip", str(error)) from None
