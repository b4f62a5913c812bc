"""What a client checks of a round whose keys are dealt with the exchanges of the round before.

It holds two sessions then. Of the later one nothing private is read or charged before the earlier
is over or given up: the later begins, for the ledger, with its own inbox and experts. What it makes
ahead is keys and shares, which are gone after a crash like all others (secagg/SPEC.md, "Rounds
dealt ahead").
"""

from dataclasses import dataclass

from fedtree_secagg import client as masking
from fedtree_secure.agreed.messages import Begin, Mask
from fedtree_secure.agreed.round_plan import late_context
from fedtree_secure.client.party import Party
from fedtree_secure.client.received import checked_experts
from fedtree_secure.client.round_checks import check_round, round_plan
from fedtree_secure.client.sessions import (
    Received,
    RoundAdvertised,
    RoundConfirmed,
    RoundShared,
    RoundUploaded,
    Session,
)
from fedtree_secure.client.step import OutOfOrder


def dealt(session: Session) -> RoundShared | None:
    """Return the round that this client may mask now: dealt by itself; or ahead, and the round
    before is over for this client, or given up because it was never asked to reveal.
    """
    if isinstance(session, RoundConfirmed):
        return session.ahead
    return session if isinstance(session, RoundShared) else None


@dataclass(frozen=True)
class Given:
    """What a round begins with.

    Attributes:
        received: Experts that came with the inbox; None where they came before its keys.
        late: What binds the masks to them; empty where the plan does.
    """

    received: Received | None
    late: bytes


def given(party: Party, session: RoundShared, message: Mask) -> Given:
    """Check experts that come with the inbox; they must come exactly where the keys were dealt
    ahead, or nothing would bind them.
    """
    late = session.state.session.plan.late
    if late != (message.experts is not None):
        raise OutOfOrder(f"{party.id}: experts come with the keys, or with what was dealt ahead")
    if message.experts is None:
        return Given(None, b"")
    received = checked_experts(party, message.experts, session.number)
    return Given(received, late_context(party.terms, received.digests))


def advertise(
    party: Party, session: RoundShared, message: Begin | None
) -> tuple[RoundAdvertised, bytes] | None:
    """Make keys for the next round; None where the server does not ask for them.

    Raises:
        OutOfOrder, Refusal: It is not the next one, brings experts, or is no round of this client.
    """
    if message is None:
        return None
    if session.merge or message.round != session.number + 1 or message.experts is not None:
        raise OutOfOrder(f"{party.id}: only the next round is dealt ahead, without its experts")
    check_round(party, message)
    state, advert = masking.advertise(
        party.member.identity,
        party.id,
        party.terms.roster,
        round_plan(party, message, None),
        round=message.round,
        attempt=message.attempt,
        randomness=party.fresh(),
    )
    return RoundAdvertised(message.round, False, state), advert


def note(party: Party, ahead: RoundAdvertised) -> None:
    """Write down that its keys leave, in the transaction that burns this round's update."""
    session = ahead.state.session
    party.store.journal.begin(session.round, session.attempt, ahead=True)
    party.store.journal.record("advertised")


def share(party: Party, session: RoundUploaded, adverts: bytes) -> tuple[RoundShared, bytes] | None:
    """Deal the next round's shares; None where the server does not ask for them.

    Raises:
        OutOfOrder: This client advertised for no next round.
        ProtocolError: The adverts are not what roster members signed for that very round.
    """
    if not adverts:
        return None
    if session.ahead is None:
        raise OutOfOrder(f"{party.id}: no round is dealt ahead")
    ahead = session.ahead
    state, shares = masking.share(ahead.state, adverts, randomness=party.fresh())
    return RoundShared(ahead.number, ahead.merge, state), shares
