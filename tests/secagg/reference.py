"""One attempt of the protocol in plain Python, written from SPEC.md: no import of the package, no
numpy, no library.

It plays all clients at once, honestly, and gives the bytes that each sends and what the server
opens. Section numbers are SPEC.md's.
"""

import hashlib
import math

from reference_primitives import (
    aes256_ctr,
    aes256_gcm_encrypt,
    ed25519_sign,
    hmac_sha256,
    msgpack,
    x25519,
    x25519_public,
)

TAG = b"fedtree-secagg/v1/"
PRIME = 2**521 - 1


# Section 2


def as_bytes(x):
    return x.encode() if isinstance(x, str) else x


def f(x):
    return len(as_bytes(x)).to_bytes(2, "big") + as_bytes(x)


def h(tag, *fields):
    return hashlib.sha256(TAG + as_bytes(tag) + b"\0" + b"".join(map(f, fields))).digest()


def extract(salt, key):
    return hmac_sha256(salt, key)


def expand(prk, tag, *fields):
    return hmac_sha256(prk, TAG + as_bytes(tag) + b"\0" + b"".join(map(f, fields)) + b"\x01")


def words(key, count, size, start=0):
    raw = aes256_ctr(key, count * size, start.to_bytes(16, "big"))
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def mask(key, count, size):
    return words(key, count, size, start=2)


class Draw:
    """What a step draws, in order (section 5)."""

    def __init__(self, randomness, step):
        self.key, self.at = expand(extract(b"", randomness), "step-randomness", step), 0

    def __call__(self, count):
        self.at += count
        return aes256_ctr(self.key, self.at)[-count:]


class Reference:
    """All clients of one attempt. `setting` is the parsed setting.json, `randomness` maps (step,
    name) to bytes; `late` is the late context (section 14) of a plan that has one.
    """

    def __init__(self, setting, randomness, late=None):
        self.setting, self.plan, self.randomness = setting, setting["plan"], randomness
        self.late = () if late is None else (late,)
        self.identity = {n: bytes.fromhex(k) for n, k in setting["identities"].items()}
        self.nodes = self.plan["nodes"]
        self.names = sorted({m for node in self.nodes for m in node["members"]})
        plan, context = self.plan, bytes.fromhex(self.plan["context"])
        self.plan_hash = hashlib.sha256(
            msgpack(
                [
                    *(
                        "fedtree-secagg/v1/plan",
                        plan["length"],
                        plan["threshold"],
                        plan["min_group"],
                        plan["colluders"],
                    ),
                    *(
                        plan["ring_bits"],
                        [float(plan["clip"]), plan["bits"], plan["saturate"]],
                        context,
                    ),
                    [[n["name"], n["members"], n["ranges"]] for n in self.nodes],
                    None,
                    *(True for _ in self.late),
                ]
            )
        ).digest()
        rows = [
            bytes([len(n.encode())]) + n.encode() + bytes.fromhex(k)
            for n, k in sorted(setting["roster"].items())
        ]
        self.roster_hash = hashlib.sha256(TAG + b"roster\0" + b"".join(rows)).digest()
        counters = setting["round"].to_bytes(8, "big") + setting["attempt"].to_bytes(8, "big")
        self.instance = h("instance", self.roster_hash, self.plan_hash, counters)

    def signed(self, bound, name, payload):
        stage, data = payload[0].encode(), msgpack(payload)
        text = b"fedtree-secagg/v1/signature\0" + bytes([len(stage)]) + stage + bound
        text += bytes([len(name)]) + name.encode() + hashlib.sha256(data).digest()
        return ed25519_sign(self.identity[name], text) + data

    def link(self, name):
        return extract(self.session, x25519(self.channel_secret[name], self.server_key))

    def tagged(self, name, payload):
        data = msgpack(payload)
        return hmac_sha256(expand(self.link(name), "message", payload[0], name), data) + data

    def nodes_of(self, name):
        return [node for node in self.nodes if name in node["members"]]

    def bits(self, chosen):
        """Section 2: the set of names, one bit each."""
        number = sum(1 << i for i, name in enumerate(self.names) if name in chosen)
        return number.to_bytes((len(self.names) + 7) // 8, "little")

    # Section 6

    def advertise(self):
        self.mask_secret, self.channel_secret, self.seeds, self.adverts = {}, {}, {}, {}
        self.mask_key, self.channel_key = {}, {}
        for name in self.names:
            draw = Draw(self.randomness["advertise", name], "advertise")
            self.mask_secret[name], self.channel_secret[name] = draw(32), draw(32)
            self.mask_key[name] = x25519_public(self.mask_secret[name])
            self.channel_key[name] = x25519_public(self.channel_secret[name])
            self.seeds[name] = {node["name"]: draw(32) for node in self.nodes_of(name)}
            commitments = [
                h("seed-commitment", self.instance, name, n, seed)
                for n, seed in self.seeds[name].items()
            ]
            payload = [
                "advert",
                self.instance,
                name,
                self.mask_key[name],
                self.channel_key[name],
                commitments,
            ]
            self.adverts[name] = self.signed(self.instance, name, payload)
        hashes = b"".join(hashlib.sha256(self.adverts[name]).digest() for name in self.names)
        self.server_key = x25519_public(Draw(self.randomness["server", ""], "server")(32))
        self.session = h("session", self.instance, self.server_key, hashlib.sha256(hashes).digest())
        return self.adverts

    def share(self):
        """Deal everyone's shares; threshold - 1 coefficients are drawn per secret, the highest
        power first.
        """
        self.bundles, out = {}, {}
        for dealer in self.names:
            draw = Draw(self.randomness["share", dealer], "share")
            columns = []
            for secret in (self.mask_secret[dealer], *self.seeds[dealer].values()):
                polynomial = [
                    int.from_bytes(draw(82), "big") % PRIME
                    for _ in range(self.plan["threshold"] - 1)
                ]
                polynomial.append(int.from_bytes(secret, "big"))
                degree = len(polynomial) - 1
                columns.append(
                    [
                        (
                            sum(a * x ** (degree - i) for i, a in enumerate(polynomial)) % PRIME
                        ).to_bytes(66, "big")
                        for x in range(1, len(self.names) + 1)
                    ]
                )
            self.bundles[dealer] = dict(zip(self.names, zip(*columns, strict=True), strict=True))
            digests = [self.digest(dealer, holder) for holder in self.names]
            boxes = []
            for holder in self.names:
                if holder == dealer:
                    continue
                prk = extract(
                    self.session, x25519(self.channel_secret[dealer], self.channel_key[holder])
                )
                info = f(self.session) + f(dealer) + f(holder) + f(self.digest(dealer, holder))
                nonce = draw(12)
                plain = b"".join(self.bundles[dealer][holder])
                boxes.append(
                    nonce + aes256_gcm_encrypt(expand(prk, "channel", info), nonce, plain, info)
                )
            out[dealer] = self.tagged(dealer, ["shares", self.session, dealer, digests, boxes])
        return out

    def share_hash(self, dealer, holder, slot):
        share = self.bundles[dealer][holder][slot]
        return h("share", self.session, dealer, holder, slot.to_bytes(2, "big"), share)

    def digest(self, dealer, holder):
        slots = range(len(self.bundles[dealer][holder]))
        return h("bundle", *(self.share_hash(dealer, holder, slot) for slot in slots))

    def mask(self, survivors):
        self.quantised, out = {}, {}
        size = self.plan["ring_bits"] // 8
        for name in survivors:
            draw, body = Draw(self.randomness["mask", name], "mask"), []
            for node in self.nodes_of(name):
                values = [x for a, b in node["ranges"] for x in self.setting["updates"][name][a:b]]
                integers = self.quantise(values, draw(32))
                self.quantised[name, node["name"]] = integers
                seed = extract(self.session, self.seeds[name][node["name"]])
                total = add(
                    integers,
                    mask(
                        expand(seed, "self-mask", name, node["name"], *self.late),
                        len(integers),
                        size,
                    ),
                    1,
                )
                for peer in node["members"]:
                    if peer != name:
                        prk = extract(
                            self.session, x25519(self.mask_secret[name], self.mask_key[peer])
                        )
                        pair_mask = mask(
                            expand(prk, "pair-mask", node["name"], *self.late), len(integers), size
                        )
                        total = add(total, pair_mask, 1 if name < peer else -1)
                body += total
            data = b"".join((word % 2 ** (8 * size)).to_bytes(size, "little") for word in body)
            nonce, shown = draw(12), self.sharers()
            tag = aes256_gcm_encrypt(expand(self.link(name), "upload"), nonce, b"", data)
            signed = self.signed(
                self.session, name, ["masked", self.session, name, shown, nonce, tag]
            )
            out[name] = (
                len(signed).to_bytes(2, "big") + signed + bytes(-(2 + len(signed)) % 16) + data
            )
        return out

    def sharers(self):
        return h("sharers", self.session, self.bits(self.names), *self.late)

    def quantise(self, values, key):
        g = (2 ** (self.plan["bits"] - 1) - 1) / self.plan["clip"]
        draws = words(key, len(values), 4)
        # x g is one float64 product; then exact: multiplying by 2^32 only moves the exponent
        return [
            (math.trunc(x * (g * 2.0**32)) + r) >> 32 for x, r in zip(values, draws, strict=True)
        ]

    def confirm(self, survivors):
        digest = h(
            "view",
            self.session,
            self.sharers(),
            self.bits(survivors),
        )
        return {
            n: self.signed(self.session, n, ["vote", self.session, n, digest]) for n in survivors
        }

    def reveal(self, survivors):
        return {
            n: self.tagged(n, ["reveal", self.session, n, self.reveal_body(n, survivors)])
            for n in survivors
        }

    def reveal_body(self, holder, survivors):
        body = b""
        for dealer in self.names:
            opens = [
                len(set(node["members"]) & set(survivors)) >= self.plan["min_group"]
                for node in self.nodes_of(dealer)
            ]
            shown = [False, *opens] if dealer in survivors else [any(opens)] + [False] * len(opens)
            for slot, show in enumerate(shown):
                body += (
                    self.bundles[dealer][holder][slot]
                    if show
                    else self.share_hash(dealer, holder, slot)
                )
        return body

    def opened(self, survivors):
        """What an honest server opens: plain sums."""
        out = {}
        for node in self.nodes:
            alive = [m for m in node["members"] if m in survivors]
            if len(alive) >= self.plan["min_group"]:
                columns = zip(*(self.quantised[m, node["name"]] for m in alive), strict=True)
                out[node["name"]] = {"members_summed": alive, "ring": [sum(c) for c in columns]}
        return out


def add(first, second, sign):
    return [a + sign * b for a, b in zip(first, second, strict=True)]
