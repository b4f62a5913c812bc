"""The key schedule: which key comes from which secret, under which tag, and what it is used for.

Every derivation is HKDF-SHA256 with the session id as its salt and a domain tag first in its info,
so that no two uses share a key and nothing carries over between sessions. SPEC.md, "Key schedule",
has the table.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtree_secagg.errors import ProtocolError
from fedtree_secagg.primitives.secret import Secret, Unprintable

TAG = b"fedtree-secagg/v1/"
NONCE_BYTES = 12
TAG_BYTES = 16
BOX_OVERHEAD = NONCE_BYTES + TAG_BYTES
FIELD = 2**255 - 19
# The canonical u-coordinates of order 1, 2, 4 and 8 on Curve25519 and its twist (RFC 7748, section
# 6.1).
SMALL_ORDER = frozenset(
    {
        0,
        1,
        FIELD - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


def field(value: str | bytes) -> bytes:
    """Return a value with its length before it, so that joined fields have one reading."""
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def extract(salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869)."""
    return hmac.digest(salt, secret, "sha256")


def expand(key: bytes, tag: bytes, *fields: str | bytes) -> bytes:
    """HKDF-Expand with SHA-256 to one block (RFC 5869); info is the tag and the framed fields."""
    return hmac.digest(key, TAG + tag + b"\0" + b"".join(map(field, fields)) + b"\x01", "sha256")


def digest(tag: bytes, *fields: str | bytes) -> bytes:
    """SHA-256 over a tag and fields with their lengths."""
    return hashlib.sha256(TAG + tag + b"\0" + b"".join(map(field, fields))).digest()


def keystream(key: bytes, count: int) -> bytes:
    """Return the first bytes of AES-256-CTR under this key."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(count))


class Stream(Unprintable):
    """Uniform bytes from a step's 32 fresh ones: AES-256-CTR, a stream per purpose."""

    __slots__ = ("_encryptor",)

    def __init__(self, randomness: bytes, purpose: bytes) -> None:
        key = expand(extract(b"", randomness), b"step-randomness", purpose)
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __call__(self, count: int) -> bytes:
        """Return the next bytes."""
        return self._encryptor.update(bytes(count))


class Pair(Unprintable):
    """A fresh X25519 key of one attempt."""

    __slots__ = ("_key", "public_bytes")

    def __init__(self, private_bytes: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private_bytes)
        self.public_bytes = self._key.public_key().public_bytes_raw()

    def to_private_bytes(self) -> bytes:
        """Return the 32 private bytes: they are what is shared among the holders."""
        return self._key.private_bytes_raw()

    def agree(self, session: bytes, peer: str, public_bytes: bytes) -> Secret:
        """Return the HKDF pseudorandom key of this pair in this session.

        Raises:
            ProtocolError: the peer's key is refused (`check_public`); the all-zero secret is
                thereby excluded.
        """
        check_public(public_bytes, peer)
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(public_bytes))
        return Secret(extract(session, shared))


def check_public(public_bytes: bytes, owner: str, *, blame: bool = True) -> None:
    """Refuse X25519 keys of small order, and encodings that are not the only one of their point.

    X25519 ignores the top bit and reduces modulo the field: without this, a copied key could hide
    as other bytes.

    Raises:
        ProtocolError: blames the owner, who signed the key; with `blame=False`, for a key nobody
            signed, no one.
    """
    point = int.from_bytes(public_bytes, "little")
    if point >= FIELD or point in SMALL_ORDER:
        raise ProtocolError(
            f"the key of {owner!r} has small order or is not in canonical form",
            blames=owner if blame else None,
        )


def pair_mask_key(agreed: Secret, node: str, late: bytes = b"") -> bytes:
    """Return the AES key of the mask of a pair in a node; equal at both ends, which must have the
    same late context, if the plan has one.
    """
    return expand(agreed.reveal(), b"pair-mask", node, *_given(late))


def self_mask_key(seed: bytes, session: bytes, owner: str, node: str, late: bytes = b"") -> bytes:
    """Return the AES key of a client's self mask in a node."""
    return expand(extract(session, seed), b"self-mask", owner, node, *_given(late))


def _given(late: bytes) -> tuple[bytes, ...]:
    return (late,) if late else ()


def seed_commitment(seed: bytes, instance: bytes, owner: str, node: str) -> bytes:
    """Return the commitment to a self-mask seed; hiding, since the seed has 256 bits of entropy."""
    return digest(b"seed-commitment", instance, owner, node, seed)


def share_hashes(
    shares: Sequence[bytes],
    session: bytes,
    dealer: str,
    holder: str,
    opened: Sequence[bool] | None = None,
) -> list[bytes]:
    """Return the hash of each share of a bundle: it stands for a share that is not opened.

    Args:
        shares: the bundle; slot 0 is the key's share, the others the nodes'.
        session: the session id.
        dealer: whose secrets these are.
        holder: whose bundle this is.
        opened: which of `shares` are shares; the others already are hashes and are taken over.
            None: all are shares.
    """
    # The same bytes as digest(b"share", session, dealer, holder, slot, share), with the common head
    # made once: a round of n clients hashes n^2 bundles on either side.
    head = TAG + b"share\0" + field(session) + field(dealer) + field(holder) + b"\0\2"
    return [
        hashlib.sha256(
            head + slot.to_bytes(2, "big") + len(share).to_bytes(2, "big") + share
        ).digest()
        if opened is None or opened[slot]
        else share
        for slot, share in enumerate(shares)
    ]


def bundle_digest(hashes: Iterable[bytes]) -> bytes:
    """Return the digest of a holder's bundle, from its share hashes: the dealer vouches for it."""
    return digest(b"bundle", *hashes)


def message_tag(agreed: Secret, stage: str, sender: str, payload: bytes) -> bytes:
    """Return the 32-byte HMAC of a client's message for the server; a key per stage and sender."""
    return hmac.digest(expand(agreed.reveal(), b"message", stage, sender), payload, "sha256")


def upload_tag(agreed: Secret, nonce: bytes, body: memoryview) -> bytes:
    """Return the GMAC tag (AES-256-GCM without a plaintext) of a masked vector, 16 bytes.

    A MAC with the server and not a hash in the signature: it runs at ten times the speed of
    SHA-256, and the server is the only one who needs to know that nobody on the way changed the
    vector.
    """
    return AESGCM(expand(agreed.reveal(), b"upload")).encrypt(nonce, b"", body)


def upload_verifies(agreed: Secret, nonce: bytes, tag: bytes, body: memoryview) -> bool:
    """Say whether this is the tag of these bytes."""
    try:
        AESGCM(expand(agreed.reveal(), b"upload")).decrypt(nonce, tag, body)
    except InvalidTag:
        return False
    return True


def seal(agreed: Secret, nonce: bytes, plaintext: bytes, *binding: str | bytes) -> bytes:
    """Return `nonce || AES-256-GCM ciphertext`, bound to session, direction and digest."""
    info = b"".join(map(field, binding))
    return nonce + AESGCM(expand(agreed.reveal(), b"channel", info)).encrypt(nonce, plaintext, info)


def unseal(agreed: Secret, box: bytes, *binding: str | bytes) -> bytes | None:
    """Return a box's plaintext; None if this peer did not seal it for this session."""
    info = b"".join(map(field, binding))
    if len(box) < BOX_OVERHEAD:
        return None
    try:
        return AESGCM(expand(agreed.reveal(), b"channel", info)).decrypt(
            box[:NONCE_BYTES], box[NONCE_BYTES:], info
        )
    except InvalidTag:
        return None
