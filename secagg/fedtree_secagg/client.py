"""The client's five steps: advertise, share, mask, confirm, reveal.

Each step takes the state of the one before, which it consumes when it succeeds, and the server's
message as bytes; it returns the next state and the bytes to send. No step does I/O, keeps a global
or draws randomness of its own. A step that refuses its input leaves the state as it was and has
revealed nothing.

What the client relies on: its own identity, the pinned roster and the plan. Everything the server
sends is checked against what other clients signed. Source: Bonawitz et al., "Practical Secure
Aggregation", CCS 2017, figure 4, with self masks per node of the tree (SPEC.md).
"""

import hmac
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.agreed.identity import Identity, Roster
from fedtree_secagg.agreed.plan import Plan
from fedtree_secagg.errors import ConfigurationError, ProtocolError
from fedtree_secagg.primitives import keys, shamir
from fedtree_secagg.primitives.ring import Words
from fedtree_secagg.primitives.secret import OneShot, Secret, check_randomness
from fedtree_secagg.rounds import messages
from fedtree_secagg.rounds.messages import (
    Advert,
    Adverts,
    Inbox,
    Masked,
    Reveal,
    Shares,
    Survivors,
    Vote,
    Votes,
)
from fedtree_secagg.rounds.session import Cohort, Session, require, sharers_hash, view_hash

Bundle = tuple[
    bytes, ...
]  # the shares one holder has of one dealer: key first, then seeds in node order


class _Me(OneShot):
    """What every state of a client carries."""

    __slots__ = ("identity", "name", "session")

    def __init__(self, identity: Identity, name: str, session: Session) -> None:
        super().__init__()
        self.identity = identity
        self.name = name
        self.session = session


class Advertised(_Me):
    """After `advertise`: fresh keys and seeds."""

    __slots__ = ("advert", "channel", "mask", "seeds")

    mask: keys.Pair
    channel: keys.Pair
    seeds: tuple[Secret, ...]
    advert: bytes


class _InCohort(_Me):
    __slots__ = ("bundles", "cohort", "link")

    cohort: Cohort
    bundles: dict[str, Bundle]
    link: Secret  # agreed with the server: authenticates what only the server reads

    def inherit(self, other: "_InCohort") -> None:
        """Take over cohort, bundles and link of the state before."""
        self.cohort, self.bundles, self.link = other.cohort, other.bundles, other.link


class Shared(_InCohort):
    """After `share`: the session id is fixed, own bundle kept, channels to all others open."""

    __slots__ = ("channels", "mask", "seeds")

    mask: keys.Pair
    seeds: tuple[Secret, ...]
    channels: dict[str, Secret]


class Uploaded(_InCohort):
    """After `mask`: the update is out; keys and seeds of this client are gone, others' shares are
    held.
    """

    __slots__ = ("sharers", "spoken")

    sharers: Group
    spoken: tuple[
        bytes, ...
    ]  # what this client signed in this session, and need not verify when it comes back


class Confirmed(_InCohort):
    """After `confirm`: this client signed one survivor set and answers for no other."""

    __slots__ = ("sharers", "spoken", "survivors")

    sharers: Group
    spoken: tuple[bytes, ...]
    survivors: Group


def advertise(
    identity: Identity,
    name: str,
    roster: Roster,
    plan: Plan,
    *,
    round: int,  # noqa: A002
    attempt: int,
    randomness: bytes,
) -> tuple[Advertised, bytes]:
    """Make the keys of one attempt and sign them.

    Args:
        identity: this client's identity; must be the one the roster pins under the name.
        name: this client.
        roster: pinned keys.
        plan: what will be summed; must name this client.
        round: see `Session`; (round, attempt) must never be used twice.
        attempt: see `Session`.
        randomness: 32 fresh bytes.

    Returns:
        The state for `share`, and the advert: 64 + about 170 bytes and 34 a node.

    Raises:
        ConfigurationError: identity, roster and plan do not fit together.
    """
    session = Session(roster, plan, round, attempt)
    if name not in plan.place:
        raise ConfigurationError(
            f"{name!r} is in no node of this plan and takes no part in the round"
        )
    if not hmac.compare_digest(roster.keys[name], identity.public_bytes):
        raise ConfigurationError(f"the roster pins another key for {name!r} than this identity's")
    stream = keys.Stream(check_randomness(randomness), b"advertise")
    state = Advertised(identity, name, session)
    state.mask, state.channel = keys.Pair(stream(32)), keys.Pair(stream(32))
    nodes = plan.nodes_of(name)
    state.seeds = tuple(Secret(stream(32)) for _ in nodes)
    commitments = tuple(
        keys.seed_commitment(seed.reveal(), session.instance, name, node.name)
        for seed, node in zip(state.seeds, nodes, strict=True)
    )
    advert = Advert(
        session.instance, name, state.mask.public_bytes, state.channel.public_bytes, commitments
    )
    state.advert = messages.sign(identity, session.instance, advert, name)
    return state, state.advert


def share(state: Advertised, adverts: bytes, *, randomness: bytes) -> tuple[Shared, bytes]:
    """Fix the session id over the adverts and deal encrypted shares of key and seeds.

    Args:
        state: from `advertise`.
        adverts: the server's broadcast.
        randomness: 32 fresh bytes.

    Raises: ProtocolError: an advert is not what its sender signed for this attempt, two share a
        key, a key has small
            order, or this client's own advert is missing or changed.
        ThresholdError: fewer adverts than the threshold.
    """
    stream = keys.Stream(check_randomness(randomness), b"share")
    with state:
        message = messages.decode(Adverts, adverts)
        if state.advert not in message.adverts:
            raise ProtocolError("adverts: this client's own advert is missing or changed")
        shown, own = message.adverts, (state.advert,)
        cohort = Cohort(
            state.session, message.server_key, shown, reader=state.name, root=message.root, own=own
        )
        following = Shared(state.identity, state.name, state.session)
        following.cohort, following.mask, following.seeds = cohort, state.mask, state.seeds
        following.channels = {
            peer: state.channel.agree(cohort.id, peer, cohort.adverts[peer].channel_key)
            for peer in cohort.holders(state.name)
            if peer != state.name
        }
        following.link = state.channel.agree(cohort.id, "the server", cohort.server_key)
        dealt = _deal(state, cohort, stream)
        following.bundles = {name: bundle for name, bundle in dealt.items() if name == state.name}
        return following, _sealed(following, dealt, stream)


def mask(
    state: Shared, inbox: bytes, vector: npt.NDArray[Any], *, randomness: bytes
) -> tuple[Uploaded, bytes]:
    """Quantise the update, mask it and sign it: the one upload of the attempt.

    Once that has left, the update is burnt: it must not be uploaded again in any other round or
        attempt (attack 5).

    Args: state: from `share`. inbox: the server's message to this client. vector: shape
        (plan.length,), float32 or float64, each value within the quantiser's clip; only the
        coordinates
            of this client's nodes are read.
        randomness: 32 fresh bytes.

    Returns:
        The state for `confirm`, and the upload: about 140 bytes and the ring's 2 or 4 per value.

    Raises: ConfigurationError: the vector has another length or type, or values the quantiser
        refuses. ProtocolError: a bundle does not open, or is not the one that its dealer signed for
        (blames the dealer only
            when nobody else can have caused it).
        ThresholdError: fewer sharers than the threshold.
    """
    stream = keys.Stream(check_randomness(randomness), b"mask")
    with state:
        cohort, plan = state.cohort, state.session.plan
        _check_vector(vector, plan)
        message = messages.decode(Inbox, inbox)
        sharers = cohort.group(message.sharers, "inbox")
        _check_stage(state, message.session, sharers, "inbox")
        following = Uploaded(state.identity, state.name, state.session)
        following.inherit(state)
        following.sharers = sharers
        following.bundles = {**state.bundles, **_open_inbox(state, message, sharers)}
        upload = _upload(state, sharers, vector, stream)
        following.spoken = (messages.detach(upload)[0],)
        return following, upload


def confirm(state: Uploaded, survivors: bytes) -> tuple[Confirmed, bytes]:
    """Sign the sets of sharers and survivors the server claims; this client will answer for these
    only.

    Raises:
        ProtocolError: the set lacks this client, or has one who did not share.
        ThresholdError: fewer survivors among this client's holders than the threshold.
    """
    with state:
        message = messages.decode(Survivors, survivors)
        alive = state.cohort.group(message.survivors, "survivors")
        _check_stage(state, message.session, alive, "survivors")
        if not alive.within(state.sharers):
            raise ProtocolError("survivors: a client that did not share is among them")
        following = Confirmed(state.identity, state.name, state.session)
        following.inherit(state)
        following.sharers, following.survivors = state.sharers, alive
        vote = Vote(state.cohort.id, state.name, view_hash(state.cohort.id, state.sharers, alive))
        signed = messages.sign(state.identity, state.cohort.id, vote, state.name)
        following.spoken = (*state.spoken, signed)
        return following, signed


def reveal(state: Confirmed, votes: bytes) -> bytes:
    """Open what the survivors' sums need, once a threshold of the committee signed the same sets as
    this client.

    Every survivor whose shares this client holds must have signed the same sharers as well, in its
    vote or its upload: an upload masked with fewer peers than the others believe would lie open as
    soon as its seed and one of those peers' keys are known. (In a full graph the committee is
    everyone, and so are the dealers.)

    Returns: The answer, with a MAC for the server: for each dealer 66 bytes per opened and 32 per
        unopened share.

    Raises: ProtocolError: a vote is forged, repeated, foreign, or is for other sets; or a
        survivor's word is missing. ThresholdError: fewer votes than the threshold.
    """
    with state:
        _check_votes(state, messages.decode(Votes, votes))
        body = b"".join(_answer(state, dealer) for dealer in sorted(state.bundles))
        return messages.authenticate(
            state.link, Reveal(state.cohort.id, state.name, body), state.name
        )


def _deal(state: Advertised, cohort: Cohort, stream: keys.Stream) -> dict[str, Bundle]:
    holders = cohort.holders(state.name)
    points = cohort.points(state.name, holders)
    secrets = (state.mask.to_private_bytes(), *(seed.reveal() for seed in state.seeds))
    columns = [
        shamir.split(secret, points, state.session.plan.threshold, stream) for secret in secrets
    ]
    return dict(zip(holders, zip(*columns, strict=True), strict=True))


def _sealed(state: Shared, dealt: dict[str, Bundle], stream: keys.Stream) -> bytes:
    session, me = state.cohort.id, state.name
    digests = {holder: _digest(bundle, session, me, holder) for holder, bundle in dealt.items()}
    boxes = tuple(
        keys.seal(
            channel,
            stream(keys.NONCE_BYTES),
            b"".join(dealt[peer]),
            session,
            me,
            peer,
            digests[peer],
        )
        for peer, channel in state.channels.items()
    )
    return messages.authenticate(
        state.link, Shares(session, me, tuple(digests.values()), boxes), me
    )


def _digest(bundle: Bundle, session: bytes, dealer: str, holder: str) -> bytes:
    return keys.bundle_digest(keys.share_hashes(bundle, session, dealer, holder))


def _check_vector(vector: npt.NDArray[Any], plan: Plan) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype not in (np.float32, np.float64):
        raise ConfigurationError("the update must be a numpy vector of float32 or float64")
    if vector.shape != (plan.length,):
        raise ConfigurationError(
            f"the update has shape {vector.shape}, the plan asks for ({plan.length},)"
        )


def _check_stage(state: _InCohort, session: bytes, group: Group, stage: str) -> None:
    plan = state.session.plan
    if session != state.cohort.id:
        raise ProtocolError(f"{stage}: made for another session")
    if not group.flags[plan.place[state.name]]:
        raise ProtocolError(
            f"{stage}: the server counts this client as dropped out, though it answered"
        )
    require(plan, stage, len(group.select(state.cohort.holders(state.name), plan.place)))


def _open_inbox(state: Shared, message: Inbox, sharers: Group) -> dict[str, Bundle]:
    unknown = set(sharers.select(state.cohort.graph.contacts(state.name), state.session.plan.place))
    unknown -= state.cohort.adverts.keys()
    if unknown:
        raise ProtocolError(
            f"inbox: {min(unknown)!r} is said to have shared, but this client was not shown its "
            "advert"
        )
    dealers = [name for name in state.cohort.dealers(state.name, sharers) if name != state.name]
    if not len(dealers) == len(message.boxes) == len(message.digests):
        raise ProtocolError("inbox: one digest and one box per other sharer expected")
    rows = zip(dealers, message.digests, message.boxes, strict=True)
    return {dealer: _open_bundle(state, dealer, digest, box) for dealer, digest, box in rows}


def _open_bundle(state: Shared, dealer: str, digest: bytes, box: bytes) -> Bundle:
    """Open one dealer's box; once the seal holds, its content is the dealer's own word."""
    session = state.cohort.id
    plain = keys.unseal(state.channels[dealer], box, session, dealer, state.name, digest)
    if plain is None:
        raise ProtocolError(
            f"inbox: the box from {dealer!r} was changed on its way or made for another session"
        )
    if len(plain) != state.cohort.bundle_bytes(dealer):
        raise ProtocolError(f"inbox: the bundle of {dealer!r} has the wrong length", blames=dealer)
    size = shamir.SHARE_BYTES
    bundle = tuple(plain[at : at + size] for at in range(0, len(plain), size))
    if not hmac.compare_digest(_digest(bundle, session, dealer, state.name), digest):
        raise ProtocolError(
            f"inbox: the bundle of {dealer!r} is not the one it signed for", blames=dealer
        )
    if not all(map(shamir.is_share, bundle)):
        raise ProtocolError(
            f"inbox: the bundle of {dealer!r} holds no field element", blames=dealer
        )
    return bundle


def _upload(state: Shared, sharers: Group, vector: npt.NDArray[Any], stream: keys.Stream) -> bytes:
    session, me, plan = state.cohort.id, state.name, state.session.plan
    head = partial(Masked, session, me, sharers_hash(session, sharers))

    def write(body: memoryview) -> bytes:
        _write_masked(np.frombuffer(body, plan.ring.dtype), state, sharers, vector, stream)
        nonce = stream(keys.NONCE_BYTES)
        return messages.sign(
            state.identity, session, head(nonce, keys.upload_tag(state.link, nonce, body)), me
        )

    head_bytes = messages.signed_bytes(head(bytes(keys.NONCE_BYTES), bytes(keys.TAG_BYTES)))
    return messages.attach(head_bytes, plan.width_of(me) * plan.ring.word_bytes, write)


def _write_masked(
    words: Words, state: Shared, sharers: Group, vector: npt.NDArray[Any], stream: keys.Stream
) -> None:
    """Write the masked words of all nodes; a pair has masks only in the nodes that it shares."""
    cohort, plan = state.cohort, state.session.plan
    agreed: dict[str, Secret] = {}
    at = 0
    for node, seed in zip(cohort.nodes_of(state.name), state.seeds, strict=True):
        part = words[at : at + node.width]
        plan.quantiser.quantise_into(part, node.gather(vector), stream(32))
        masks = [(keys.self_mask_key(seed.reveal(), cohort.id, state.name, node.name), 1)]
        for peer in cohort.peers(state.name, node, sharers):
            if peer not in agreed:
                agreed[peer] = state.mask.agree(cohort.id, peer, cohort.adverts[peer].mask_key)
            masks.append(
                (keys.pair_mask_key(agreed[peer], node.name), 1 if state.name < peer else -1)
            )
        plan.ring.add_masks(part, masks)
        at += node.width


def _check_votes(state: Confirmed, message: Votes) -> None:
    session, roster = state.cohort.id, state.session.roster
    if message.session != session:
        raise ProtocolError("votes: made for another session")
    votes = [
        messages.verify(Vote, data, roster, session, own=state.spoken) for data in message.votes
    ]
    heads = [
        messages.verify(Masked, data, roster, session, own=state.spoken) for data in message.heads
    ]
    words: list[Vote | Masked] = [*votes, *heads]
    for word in words:
        if word.session != session:
            raise ProtocolError(
                f"votes: {word.sender!r} speaks of another session", blames=word.sender
            )
    agreed = view_hash(session, state.sharers, state.survivors)
    for vote in votes:
        if vote.view != agreed:
            raise ProtocolError(
                f"votes: {vote.sender!r} was shown another survivor set; nothing is revealed"
            )
    for head in heads:
        if head.sharers != sharers_hash(session, state.sharers):
            raise ProtocolError(
                f"votes: {head.sender!r} was shown other sharers; nothing is revealed"
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


def _answer(state: Confirmed, dealer: str) -> bytes:
    opened = state.cohort.opened_slots(dealer, state.survivors)
    bundle = state.bundles[dealer]
    hashes = keys.share_hashes(bundle, state.cohort.id, dealer, state.name)
    return b"".join(
        share if show else h for share, h, show in zip(bundle, hashes, opened, strict=True)
    )
