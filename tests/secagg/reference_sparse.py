"""The beacon ceremony and the graph it draws, in plain Python, written from SPEC.md section 12."""

import hashlib
from fractions import Fraction
from math import comb

from reference import TAG, Draw, expand, extract, h, words
from reference_primitives import ed25519_sign, msgpack


class SparseReference:
    """`setting` is the parsed sparse.json, of which only identities, plan, number and randomness
    are read.
    """

    def __init__(self, setting, roster_hash):
        self.setting, self.plan = setting, setting["plan"]
        self.nodes = self.plan["nodes"]
        self.names = sorted({m for node in self.nodes for m in node["members"]})
        plan, sparse = self.plan, [self.plan["neighbours"], self.plan["dropouts"]]
        canonical = [
            "fedtree-secagg/v1/tree",
            plan["threshold"],
            plan["min_group"],
            plan["colluders"],
            sparse,
        ]
        canonical.append([[n["name"], n["members"], n["ranges"]] for n in self.nodes])
        self.tree_hash = hashlib.sha256(msgpack(canonical)).digest()
        self.instance = h(
            "beacon-instance", roster_hash, self.tree_hash, setting["number"].to_bytes(8, "big")
        )

    def signed(self, name, payload):
        stage, data = payload[0].encode(), msgpack(payload)
        text = TAG[:-1] + b"/signature\0" + bytes([len(stage)]) + stage + self.instance
        text += bytes([len(name)]) + name.encode() + hashlib.sha256(data).digest()
        return ed25519_sign(bytes.fromhex(self.setting["identities"][name]), text) + data

    def ceremony(self):
        fresh = {n: bytes.fromhex(r) for n, r in self.setting["randomness"].items()}
        value = {n: Draw(fresh[n], "beacon")(32) for n in self.names}
        bound = {n: h("beacon-commitment", self.instance, n, value[n]) for n in self.names}
        self.beacon = h("beacon", self.instance, *(value[n] for n in self.names))
        return {
            "commitment": {
                n: self.signed(n, ["beacon-commitment", self.instance, n, bound[n]])
                for n in self.names
            },
            "commitments": msgpack(
                ["beacon-list", self.instance, b"".join(bound[n] for n in self.names)]
            ),
            "opening": {
                n: self.signed(n, ["beacon-opening", self.instance, n, value[n]])
                for n in self.names
            },
            "openings": msgpack(
                ["beacon-list", self.instance, b"".join(value[n] for n in self.names)]
            ),
        }

    def ring(self, names, *tag):
        numbers = words(expand(extract(self.tree_hash, self.beacon), "ring", *tag), len(names), 8)
        return [name for _, name in sorted(zip(numbers, names, strict=True))]

    def near(self, ring, name, half):
        at = ring.index(name)
        return [ring[(at + step) % len(ring)] for step in range(-half, half + 1) if step]

    def graph(self):
        k, everyone = self.plan["neighbours"], self.ring(self.names, "holders")
        rings, peers = {}, {}
        for node in self.nodes:
            members = sorted(node["members"])
            rings[node["name"]] = found = self.numbers(len(members))
            alone = members != self.names  # a node of all stands on the ring of holders
            order = found and (self.ring(members, "node", node["name"]) if alone else everyone)
            peers[node["name"]] = {
                name: self.near(order, name, found[0])
                if found
                else [m for m in members if m != name]
                for name in members
            }
        holders = {name: self.near(everyone, name, k // 2) for name in self.names}
        return {"committee": everyone[:k], "holders": holders, "rings": rings, "peers": peers}

    def numbers(self, members):
        corrupt = min(self.plan["colluders"], members)
        dropouts = self.plan["dropouts"] * members // len(self.names)
        for half in range(1, (members - 1) // 4 + 1):
            for least in range(1, half + 1):
                pairs = Fraction(members * (members - 1), 2) * len(self.nodes)
                safe = pairs * at_least(members, corrupt, half, least) ** 2 <= Fraction(1, 2**42)
                works = members * at_least(members, dropouts, half, half - least + 1) <= Fraction(
                    1, 2**20
                )
                if safe and works:
                    return [half, least]
        return None


def at_least(n, marked, drawn, least):
    """P[at least so many of the marked among the drawn], hypergeometric."""
    ways = sum(
        comb(marked, x) * comb(n - marked, drawn - x) for x in range(least, min(marked, drawn) + 1)
    )
    return Fraction(ways, comb(n, drawn))
