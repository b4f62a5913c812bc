"""Shamir secret sharing of 32-byte secrets over the prime field of 2^521 - 1.

Any `threshold` shares rebuild a secret, fewer say nothing about it. A wrong share rebuilds a wrong
secret silently; so every secret of the protocol has a public commitment, which the caller compares
with (`server.open_sums`). Source: Shamir, "How to share a secret", CACM 1979.
"""

import math
from collections.abc import Callable, Sequence

PRIME = 2**521 - 1
SECRET_BYTES = 32
SHARE_BYTES = 66


def split(
    secret: bytes, points: Sequence[int], threshold: int, random: Callable[[int], bytes]
) -> list[bytes]:
    """Return the share at each of the points, 66 bytes big-endian each.

    Args:
        secret: 32 bytes.
        points: distinct positive integers, at least `threshold` of them.
        threshold: number of shares that rebuild the secret.
        random: gives that many fresh uniform bytes.
    """
    # 82 bytes reduced mod a 521-bit prime are uniform up to 2^-135.
    coefficients = [int.from_bytes(random(82), "big") % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    return [_evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points]


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Return the Lagrange weights that map shares at these points to their secret."""
    everything, weights = math.prod(points), []
    for x in points:
        # points are small: plain products are cheaper than reducing after every factor
        denominator = math.prod(other - x for other in points if other != x)
        weights.append(everything // x * pow(denominator, -1, PRIME) % PRIME)
    return weights


def combine(shares: Sequence[bytes], weights: Sequence[int]) -> bytes | None:
    """Return the 32-byte secret of these shares, or None if they rebuild none."""
    total = (
        sum(
            int.from_bytes(share, "big") * weight
            for share, weight in zip(shares, weights, strict=True)
        )
        % PRIME
    )
    return total.to_bytes(SECRET_BYTES, "big") if total.bit_length() <= 8 * SECRET_BYTES else None


def is_share(share: bytes) -> bool:
    """Say whether these 66 bytes are a field element in its only encoding."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = value * x + coefficient
        value = (value & PRIME) + (value >> 521)  # 2^521 = 1 mod p: cheaper than a division
    return value % PRIME
