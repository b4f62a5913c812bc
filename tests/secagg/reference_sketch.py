"""The sketch of SPEC.md section 11 in plain Python floats and integers: independent of the package,
for tests.
"""

import hashlib
import math

from reference import Draw, Reference, expand, extract, f, h
from reference_primitives import aes256_ctr, aes256_gcm_encrypt, x25519, x25519_public


def logarithm(u):
    mantissa, exponent = math.frexp(u)
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2.0 * mantissa, exponent - 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = 1.0 / 23.0
    for odd in range(21, 0, -2):
        series = series * (s * s) + 1.0 / odd
    return exponent * math.log(2.0) + 2.0 * (s * series)


def cosine_and_sine(turns):
    quadrant = math.floor(4.0 * turns + 0.5)
    angle = (turns - 0.25 * quadrant) * (2.0 * math.pi)
    square, cosine, sine = angle * angle, 1.0, 1.0
    for k in range(16, 0, -2):
        cosine = 1.0 - square / float(k * (k - 1)) * cosine
        sine = 1.0 - square / float(k * (k + 1)) * sine
    sine *= angle
    return [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)][quadrant % 4]


def project(key, vector, size):
    """P x for a vector of at most 256 values: one block."""
    raw = aes256_ctr(key, 8 * size * 256)
    uniform = [int.from_bytes(raw[i : i + 8], "little") >> 11 for i in range(0, len(raw), 8)]
    half = len(uniform) // 2
    radii = [math.sqrt(-2.0 * logarithm((u + 1) * 2.0**-53)) for u in uniform[:half]]
    turns = [cosine_and_sine(u * 2.0**-53) for u in uniform[half:]]
    normals = [r * c for r, (c, _) in zip(radii, turns, strict=True)]
    normals += [r * s for r, (_, s) in zip(radii, turns, strict=True)]
    padded, out = list(vector) + [0.0] * (256 - len(vector)), []
    for row in range(size):
        products = [
            p * x for p, x in zip(normals[256 * row : 256 * row + 256], padded, strict=True)
        ]
        while len(products) > 1:
            middle = len(products) // 2
            products = [a + b for a, b in zip(products[:middle], products[middle:], strict=True)]
        out.append(0.0 + products[0])
    return out


class SketchReference(Reference):
    """All members of one sketch; `files` is the parsed sketch.json."""

    def __init__(self, setting, files):
        super().__init__(setting, {})
        self.files, self.context = files, bytes.fromhex(files["context"])
        self.instance = h("sketch-instance", self.roster_hash, self.context, *self.names)

    def run(self):
        fresh = {
            step: {
                n: bytes.fromhex(r[f"randomness_{step}"]) for n, r in self.files["members"].items()
            }
            for step in ("hello", "seal")
        }
        secret = {n: Draw(fresh["hello"][n], "sketch-hello")(32) for n in self.names}
        public = {n: x25519_public(secret[n]) for n in self.names}
        hello = {
            n: self.signed(self.instance, n, ["sketch-hello", self.instance, n, public[n]])
            for n in self.names
        }
        hashes = b"".join(hashlib.sha256(hello[n]).digest() for n in self.names)
        session, leader = (
            h("sketch-session", self.instance, hashlib.sha256(hashes).digest()),
            self.names[0],
        )
        draw = Draw(fresh["seal"][leader], "sketch-seal")
        seed = draw(32)
        commitment, boxes = h("sketch-seed", session, seed), []
        for member in self.names[1:]:
            info, nonce = f(session) + f(leader) + f(member) + f(commitment), draw(12)
            key = expand(extract(session, x25519(secret[leader], public[member])), "channel", info)
            boxes.append(nonce + aes256_gcm_encrypt(key, nonce, seed, info))
        seal = self.signed(session, leader, ["sketch-seal", session, leader, commitment, boxes])
        out = {}
        for name in self.names:
            body = self.body(extract(session, seed), name)
            layers = len(self.setting["sketch_vectors"][name])
            payload = [
                "sketch",
                session,
                name,
                commitment,
                layers,
                self.files["size"],
                self.files["scale"],
                body,
            ]
            out[name] = {
                "hello": hello[name],
                "seal": seal if name == leader else b"",
                "sketch": self.signed(session, name, payload),
            }
        return out

    def body(self, root, name):
        body, size = b"", self.files["size"]
        for layer, vector in enumerate(self.setting["sketch_vectors"][name]):
            binding = (
                layer.to_bytes(4, "big"),
                size.to_bytes(4, "big"),
                len(vector).to_bytes(8, "big"),
            )
            projected = project(expand(root, "sketch-projection", *binding), vector, size)
            raw = aes256_ctr(expand(root, "sketch-blind", *binding), 8 * size)
            for i, y in enumerate(projected):
                word = int.from_bytes(raw[8 * i : 8 * i + 8], "little")
                value = math.floor(y * self.files["scale"] + (word & 0xFFFFFFFF) * 2.0**-32) + (
                    word >> 32
                )
                body += (value % 2**32).to_bytes(4, "little")
        return body
