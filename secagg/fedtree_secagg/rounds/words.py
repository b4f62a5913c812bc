"""Whose signed word a client needs before it reveals: the committee's votes, the dealers' heads."""

from collections.abc import Sequence

from fedtree_secagg.errors import ProtocolError
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import Masked, Vote, Votes
from fedtree_secagg.rounds.session import require, sharers_hash, view_hash
from fedtree_secagg.rounds.states import Confirmed


def check_votes(state: Confirmed, message: Votes) -> None:
    """Refuse unless a threshold of the committee and every dealer signed what this client saw.

    Raises:
        ProtocolError: a word is forged, repeated, foreign or for other sets, or one is missing.
        ThresholdError: fewer votes than the threshold.
    """
    session, roster = state.cohort.id, state.session.roster
    if message.session != session:
        raise ProtocolError("votes: made for another session")
    votes = [
        messages.verify(Vote, data, roster, session, own=state.spoken) for data in message.votes
    ]
    heads = [
        messages.verify(Masked, data, roster, session, own=state.spoken) for data in message.heads
    ]
    spoken: list[Vote | Masked] = [*votes, *heads]
    for word in spoken:
        if word.session != session:
            raise ProtocolError(
                f"votes: {word.sender!r} speaks of another session", blames=word.sender
            )
    agreed = view_hash(session, state.sharers, state.survivors, state.late)
    for vote in votes:
        if vote.view != agreed:
            raise ProtocolError(
                f"votes: {vote.sender!r} was shown another survivor set; nothing is revealed"
            )
    for head in heads:
        if head.sharers != sharers_hash(session, state.sharers, state.late):
            raise ProtocolError(
                f"votes: {head.sender!r} was shown other sharers or another late context; "
                "nothing is revealed"
            )
    _check_everyone_spoke(state, [word.sender for word in votes], [word.sender for word in heads])


def _check_everyone_spoke(state: Confirmed, voters: Sequence[str], others: Sequence[str]) -> None:
    plan, spoke = state.session.plan, {*voters, *others}
    committee = set(state.survivors.select(state.cohort.graph.committee, plan.place))
    dealers = set(state.cohort.dealers(state.name, state.survivors))
    if (
        len(spoke) != len(voters) + len(others)
        or not committee.issuperset(voters)
        or not dealers.issuperset(others)
    ):
        raise ProtocolError("votes: someone votes twice, is no survivor, or has no say here")
    require(plan, "votes", len(voters))
    silent = dealers.difference(spoke)
    if silent:
        raise ProtocolError(
            f"votes: no signed word of {min(silent)!r} on who shared; nothing is revealed"
        )
