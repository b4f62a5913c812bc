"""The primitives of SPEC.md in plain Python, from their standards: slow, and independent of any
library but hashlib.

Ed25519 (RFC 8032), X25519 (RFC 7748), AES-256 with CTR and GCM (FIPS 197, SP 800-38A, SP 800-38D),
MessagePack. For tests only: nothing here runs in constant time.
"""

import hashlib
import hmac
import struct

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
BASE_Y = 4 * pow(5, -1, P) % P


def x25519(secret, u_bytes):
    k = bytearray(secret)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    scalar, u = int.from_bytes(k, "little"), int.from_bytes(u_bytes, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in range(254, -1, -1):
        bit = scalar >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a % P, c * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def x25519_public(secret):
    return x25519(secret, (9).to_bytes(32, "little"))


def _recover_x(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0
    return P - x if x & 1 != sign else x


def _add(p, q):
    (x1, y1), (x2, y2) = p, q
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def _times(scalar, point):
    total = (0, 1)
    for bit in f"{scalar:b}":
        total = _add(total, total)
        if bit == "1":
            total = _add(total, point)
    return total


def _encode(point):
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = (_recover_x(BASE_Y, 0), BASE_Y)


def _expand_secret(secret):
    h = hashlib.sha512(secret).digest()
    scalar = int.from_bytes(h[:32], "little") & (2**254 - 8) | 2**254
    return scalar, h[32:]


def ed25519_public(secret):
    return _encode(_times(_expand_secret(secret)[0], BASE))


def ed25519_sign(secret, message):
    scalar, prefix = _expand_secret(secret)
    public = _encode(_times(scalar, BASE))
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    big_r = _encode(_times(r, BASE))
    k = int.from_bytes(hashlib.sha512(big_r + public + message).digest(), "little") % L
    return big_r + ((r + k * scalar) % L).to_bytes(32, "little")


def _gf_times(a, b):
    out = 0
    while b:
        if b & 1:
            out ^= a
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return out


def _sbox():
    box = []
    for value in range(256):
        inverse = next((x for x in range(256) if _gf_times(value, x) == 1), 0)
        out = 0x63
        for shift in range(5):
            out ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        box.append(out)
    return box


SBOX = _sbox()
TIMES2 = [_gf_times(2, v) for v in range(256)]
TIMES3 = [_gf_times(3, v) for v in range(256)]


def aes256_schedule(key):
    words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
    constant = 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= constant
            constant = TIMES2[constant]
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(words[-8], word, strict=True)])
    return [[byte for word in words[4 * r : 4 * r + 4] for byte in word] for r in range(15)]


def aes256_block(schedule, block):
    state = [a ^ b for a, b in zip(block, schedule[0], strict=True)]
    for r in range(1, 15):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # SubBytes and ShiftRows
        if r < 14:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                mixed += [
                    TIMES2[a[i]] ^ TIMES3[a[(i + 1) % 4]] ^ a[(i + 2) % 4] ^ a[(i + 3) % 4]
                    for i in range(4)
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, schedule[r], strict=True)]
    return bytes(state)


def aes256_ctr(key, count, start=bytes(16), width=128):
    """Return `count` bytes of keystream; the lowest `width` bits of the block count."""
    schedule, counter, out = aes256_schedule(key), int.from_bytes(start, "big"), b""
    high = counter >> width << width
    while len(out) < count:
        out += aes256_block(schedule, counter.to_bytes(16, "big"))
        counter = high | (counter + 1) % 2**width
    return out[:count]


def _ghash_times(x, y):
    out, v = 0, y
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            out ^= v
        v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
    return out


def aes256_gcm_encrypt(key, nonce, plain, data):
    schedule = aes256_schedule(key)
    h = int.from_bytes(aes256_block(schedule, bytes(16)), "big")
    first = nonce + (1).to_bytes(4, "big")
    pad = aes256_ctr(key, 16 + len(plain), first, 32)
    cipher = bytes(a ^ b for a, b in zip(plain, pad[16:], strict=True))
    tag = 0
    for part in (data, cipher):
        padded = part + bytes(-len(part) % 16)
        for i in range(0, len(padded), 16):
            tag = _ghash_times(tag ^ int.from_bytes(padded[i : i + 16], "big"), h)
    lengths = (8 * len(data)).to_bytes(8, "big") + (8 * len(cipher)).to_bytes(8, "big")
    tag = _ghash_times(tag ^ int.from_bytes(lengths, "big"), h)
    return cipher + bytes(a ^ b for a, b in zip(tag.to_bytes(16, "big"), pad[:16], strict=True))


def hmac_sha256(key, message):
    return hmac.digest(key, message, "sha256")


def msgpack(value):
    """Return the shortest MessagePack encoding of None, bool, int, float, str, bytes or list."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if value < 128:
            return bytes([value])
        size = next(s for s in (1, 2, 4, 8) if value < 1 << 8 * s)
        return bytes([{1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}[size]]) + value.to_bytes(size, "big")
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) < 32:
            return bytes([0xA0 | len(raw)]) + raw
        return b"\xd9" + bytes([len(raw)]) + raw
    if isinstance(value, bytes):
        size = next(s for s in (1, 2, 4) if len(value) < 1 << 8 * s)
        return bytes([{1: 0xC4, 2: 0xC5, 4: 0xC6}[size]]) + len(value).to_bytes(size, "big") + value
    head = (
        bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + len(value).to_bytes(2, "big")
    )
    return head + b"".join(map(msgpack, value))
