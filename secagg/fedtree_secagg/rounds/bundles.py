"""The bundles of shares that dealers seal for holders: opened, checked, and who is to blame."""

import hmac
from collections.abc import Mapping

from fedtree_secagg.agreed.group import Group
from fedtree_secagg.errors import ProtocolError
from fedtree_secagg.primitives import keys, shamir
from fedtree_secagg.primitives.secret import Secret
from fedtree_secagg.rounds.messages import Inbox
from fedtree_secagg.rounds.session import Cohort

# The shares that one holder has of one dealer: of the key first, then of the seeds in node order.
Bundle = tuple[bytes, ...]


def digest(bundle: Bundle, session: bytes, dealer: str, holder: str) -> bytes:
    """Return the digest that the dealer vouches for, and that the box is sealed with."""
    return keys.bundle_digest(keys.share_hashes(bundle, session, dealer, holder))


def open_inbox(
    cohort: Cohort, reader: str, channels: Mapping[str, Secret], message: Inbox, sharers: Group
) -> dict[str, Bundle]:
    """Return what every other sharer dealt to this client, by dealer.

    Args:
        cohort: the attempt.
        reader: this client.
        channels: by peer, the key agreed with it.
        message: the inbox.
        sharers: who dealt shares, as the inbox says.

    Raises:
        ProtocolError: a sharer was never shown, a row is missing, or a bundle is false.
    """
    place = cohort.session.plan.place
    unknown = set(sharers.select(cohort.graph.contacts(reader), place)) - cohort.adverts.keys()
    if unknown:
        raise ProtocolError(
            f"inbox: {min(unknown)!r} is said to have shared, "
            "but this client was not shown its advert"
        )
    dealers = [name for name in cohort.dealers(reader, sharers) if name != reader]
    if not len(dealers) == len(message.boxes) == len(message.digests):
        raise ProtocolError("inbox: one digest and one box per other sharer expected")
    rows = zip(dealers, message.digests, message.boxes, strict=True)
    opened = {}
    for dealer, signed, box in rows:
        plain = keys.unseal(channels[dealer], box, cohort.id, dealer, reader, signed)
        opened[dealer] = _checked(cohort, reader, dealer, signed, plain)
    return opened


def _checked(
    cohort: Cohort, reader: str, dealer: str, signed: bytes, plain: bytes | None
) -> Bundle:
    """Return one dealer's bundle; once the seal holds, its content is the dealer's own word."""
    if plain is None:
        raise ProtocolError(
            f"inbox: the box from {dealer!r} was changed on its way or made for another session"
        )
    if len(plain) != cohort.bundle_bytes(dealer):
        raise ProtocolError(f"inbox: the bundle of {dealer!r} has the wrong length", blames=dealer)
    size = shamir.SHARE_BYTES
    bundle = tuple(plain[at : at + size] for at in range(0, len(plain), size))
    if not hmac.compare_digest(digest(bundle, cohort.id, dealer, reader), signed):
        raise ProtocolError(
            f"inbox: the bundle of {dealer!r} is not the one it signed for", blames=dealer
        )
    if not all(map(shamir.is_share, bundle)):
        raise ProtocolError(
            f"inbox: the bundle of {dealer!r} holds no field element", blames=dealer
        )
    return bundle
