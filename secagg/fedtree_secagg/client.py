"""The client's steps: advertise, share, receive, upload, confirm, reveal.

`receive` checks all that the server sent before an upload, `upload` reads the vector; `mask` is
both in one, for an application that has its vector before the round begins.

Each step takes the state of the one before, which it consumes when it succeeds, and the server's
message as bytes; it returns the next state and the bytes to send. No step does I/O, keeps a global
or draws randomness of its own. A step that refuses its input leaves the state as it was and has
revealed nothing.

What the client relies on: its own identity, the pinned roster and the plan. Everything the server
sends is checked against what other clients signed. Source: Bonawitz et al., "Practical Secure
Aggregation", CCS 2017, figure 4, with self masks per node of the tree (SPEC.md).
"""

import hmac
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
from fedtree_secagg.primitives.secret import Secret, check_randomness
from fedtree_secagg.rounds import bundles, messages, words
from fedtree_secagg.rounds.bundles import Bundle
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
from fedtree_secagg.rounds.session import (
    Cohort,
    Session,
    check_late,
    require,
    sharers_hash,
    view_hash,
)
from fedtree_secagg.rounds.states import (
    Advertised,
    Confirmed,
    InCohort,
    Opened,
    Shared,
    Uploaded,
)

__all__ = [
    "Advertised",
    "Confirmed",
    "Opened",
    "Shared",
    "Uploaded",
    "advertise",
    "confirm",
    "mask",
    "receive",
    "reveal",
    "share",
    "upload",
]


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

    Raises:
        ProtocolError: an advert is not what its sender signed for this attempt, two share a key, a
            key has small order, or this client's own advert is missing or changed.
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


def receive(state: Shared, inbox: bytes, *, late: bytes = b"") -> Opened:
    """Open and check all that the server sent before the upload; read no private value for it.

    Training may begin after this step: nothing that the server sent is left to refuse. So whether
    and when an upload comes does not depend on data that the server could choose by refusing.

    Args:
        state: from `share`.
        inbox: the server's message to this client.
        late: 32 bytes that all members must give alike, where the plan says `late`: the digest of
            what the application's clients were given since they dealt shares.

    Returns:
        The state for `upload`.

    Raises:
        ConfigurationError: a late context is missing, or the plan has none.
        ProtocolError: a bundle does not open, or is not the one that its dealer signed for (blames
            the dealer only when nobody else can have caused it).
        ThresholdError: fewer sharers than the threshold.
    """
    check_late(state.session.plan, late)
    with state:
        return _received(state, inbox, late)


def upload(
    state: Opened, vector: npt.NDArray[Any], *, randomness: bytes, on_grid: bool = False
) -> tuple[Uploaded, bytes]:
    """Quantise the update, mask it and sign it: the one upload of the attempt.

    Once that has left, the update is burnt: it must not be uploaded again in any other round or
    attempt (SPEC.md, section 7).

    Args:
        state: from `receive`.
        vector: shape (plan.length,), float32 or float64, each value within the quantiser's clip;
            only the coordinates of this client's nodes are read.
        randomness: 32 fresh bytes.
        on_grid: the vector is int64, whole numbers of grid steps, of an application that rounds and
            adds noise on the grid itself. They are taken as they are, modulo 2^w, neither refused
            nor cut: a sum of values that were cut one by one would be no function of the sum.

    Returns:
        The state for `confirm`, and the upload: about 140 bytes and the ring's 2 or 4 per value.

    Raises:
        ConfigurationError: the vector has another length or type, or values the quantiser refuses,
            or the randomness is none. Nothing that others sent can make this step fail.
    """
    stream = keys.Stream(check_randomness(randomness), b"mask")
    with state:
        _check_vector(vector, state.session.plan, on_grid=on_grid)
        return _uploaded(state, vector, stream)


def mask(
    state: Shared,
    inbox: bytes,
    vector: npt.NDArray[Any],
    *,
    randomness: bytes,
    on_grid: bool = False,
    late: bytes = b"",
) -> tuple[Uploaded, bytes]:
    """Do `receive` and `upload` in one step, for a vector that is there already.

    Who computes on private data between the two must call them apart: a server that sends a broken
    inbox would else have that data computed on for nothing, and learn from what comes back.

    Args:
        state: from `share`.
        inbox, late: see `receive`.
        vector, on_grid: see `upload`.
        randomness: 32 fresh bytes.

    Returns:
        As `upload`, the same bytes.

    Raises:
        ConfigurationError: see `upload` and `receive`.
        ProtocolError: see `receive`.
        ThresholdError: see `receive`.
    """
    stream = keys.Stream(check_randomness(randomness), b"mask")
    check_late(state.session.plan, late)
    with state:
        _check_vector(vector, state.session.plan, on_grid=on_grid)
        return _uploaded(_received(state, inbox, late), vector, stream)


def confirm(state: Uploaded, survivors: bytes) -> tuple[Confirmed, bytes]:
    """Sign the sets of sharers and survivors that the server claims, and answer for no others.

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
        following.late = state.late
        view = view_hash(state.cohort.id, state.sharers, alive, state.late)
        vote = Vote(state.cohort.id, state.name, view)
        signed = messages.sign(state.identity, state.cohort.id, vote, state.name)
        following.spoken = (*state.spoken, signed)
        return following, signed


def reveal(state: Confirmed, votes: bytes) -> bytes:
    """Open what the survivors' sums need, once a threshold of the committee signed the same sets.

    Every survivor whose shares this client holds must have signed the same sharers as well, in its
    vote or its upload: an upload masked with fewer peers than the others believe would lie open as
    soon as its seed and one of those peers' keys are known. (In a full graph the committee is
    everyone, and so are the dealers.)

    Returns:
        The answer, with a MAC for the server: for each dealer 66 bytes per opened and 32 per
        unopened share.

    Raises:
        ProtocolError: a vote is forged, repeated, foreign, or is for other sets; or a survivor's
            word is missing.
        ThresholdError: fewer votes than the threshold.
    """
    with state:
        words.check_votes(state, messages.decode(Votes, votes))
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
    digests = {
        holder: bundles.digest(bundle, session, me, holder) for holder, bundle in dealt.items()
    }
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


def _check_vector(vector: npt.NDArray[Any], plan: Plan, *, on_grid: bool) -> None:
    kinds = (np.int64,) if on_grid else (np.float32, np.float64)
    if not isinstance(vector, np.ndarray) or vector.dtype not in kinds:
        named = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigurationError(f"the update must be a numpy vector of {named}")
    if vector.shape != (plan.length,):
        raise ConfigurationError(
            f"the update has shape {vector.shape}, the plan asks for ({plan.length},)"
        )


def _check_stage(state: InCohort, session: bytes, group: Group, stage: str) -> None:
    plan = state.session.plan
    if session != state.cohort.id:
        raise ProtocolError(f"{stage}: made for another session")
    if not group.flags[plan.place[state.name]]:
        raise ProtocolError(
            f"{stage}: the server counts this client as dropped out, though it answered"
        )
    require(plan, stage, len(group.select(state.cohort.holders(state.name), plan.place)))


def _received(state: Shared, inbox: bytes, late: bytes) -> Opened:
    message = messages.decode(Inbox, inbox)
    sharers = state.cohort.group(message.sharers, "inbox")
    _check_stage(state, message.session, sharers, "inbox")
    following = Opened(state.identity, state.name, state.session)
    following.inherit(state)
    following.mask, following.seeds, following.sharers = state.mask, state.seeds, sharers
    following.late = late
    opened = bundles.open_inbox(state.cohort, state.name, state.channels, message, sharers)
    following.bundles = {**state.bundles, **opened}
    return following


def _uploaded(
    state: Opened, vector: npt.NDArray[Any], stream: keys.Stream
) -> tuple[Uploaded, bytes]:
    following = Uploaded(state.identity, state.name, state.session)
    following.inherit(state)
    following.sharers, following.late = state.sharers, state.late
    data = _masked(state, vector, stream)
    following.spoken = (messages.detach(data)[0],)
    return following, data


def _masked(state: Opened, vector: npt.NDArray[Any], stream: keys.Stream) -> bytes:
    session, me, plan = state.cohort.id, state.name, state.session.plan
    head = partial(Masked, session, me, sharers_hash(session, state.sharers, state.late))

    def write(body: memoryview) -> bytes:
        _write_masked(np.frombuffer(body, plan.ring.dtype), state, vector, stream)
        nonce = stream(keys.NONCE_BYTES)
        return messages.sign(
            state.identity, session, head(nonce, keys.upload_tag(state.link, nonce, body)), me
        )

    head_bytes = messages.signed_bytes(head(bytes(keys.NONCE_BYTES), bytes(keys.TAG_BYTES)))
    return messages.attach(head_bytes, plan.width_of(me) * plan.ring.word_bytes, write)


def _write_masked(out: Words, state: Opened, vector: npt.NDArray[Any], stream: keys.Stream) -> None:
    """Write the masked words of all nodes; a pair has masks only in the nodes that it shares."""
    cohort, plan = state.cohort, state.session.plan
    agreed: dict[str, Secret] = {}
    at = 0
    for node, seed in zip(cohort.nodes_of(state.name), state.seeds, strict=True):
        part = out[at : at + node.width]
        key = stream(32)
        if vector.dtype == np.int64:
            part[:] = node.gather(vector).astype(part.dtype)  # keeps the low bits
        else:
            plan.quantiser.quantise_into(part, node.gather(vector), key)
        own = keys.self_mask_key(seed.reveal(), cohort.id, state.name, node.name, state.late)
        masks = [(own, 1)]
        for peer in cohort.peers(state.name, node, state.sharers):
            if peer not in agreed:
                agreed[peer] = state.mask.agree(cohort.id, peer, cohort.adverts[peer].mask_key)
            shared = keys.pair_mask_key(agreed[peer], node.name, state.late)
            masks.append((shared, 1 if state.name < peer else -1))
        plan.ring.add_masks(part, masks)
        at += node.width


def _answer(state: Confirmed, dealer: str) -> bytes:
    opened = state.cohort.opened_slots(dealer, state.survivors)
    bundle = state.bundles[dealer]
    hashes = keys.share_hashes(bundle, state.cohort.id, dealer, state.name)
    return b"".join(
        share if show else h for share, h, show in zip(bundle, hashes, opened, strict=True)
    )
