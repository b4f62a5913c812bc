"""One attempt with all clients in one process, timed step by step."""

import hashlib
import itertools
import statistics
import time
from fractions import Fraction

import numpy as np

from fedtree_secagg import Beacon, Identity, Node, Plan, Quantiser, Roster, Sparse, client, server
from fedtree_secagg.agreed.parameters import find_neighbourhood

CONTEXT = hashlib.sha256(b"benchmark").digest()
COUNTER = itertools.count()


def fresh():
    """Bytes that no step got before."""
    return hashlib.sha256(f"benchmark {next(COUNTER)}".encode()).digest()


class Clock:
    """CPU milliseconds by step."""

    def __init__(self):
        self.spent = {}

    def __call__(self, step, call, *args, **kwargs):
        """Call and count."""
        start = time.process_time()
        result = call(*args, **kwargs)
        self.spent.setdefault(step, []).append(1000 * (time.process_time() - start))
        return result

    def client(self):
        """Sum of the steps of a median client."""
        return sum(
            statistics.median(v) for k, v in self.spent.items() if not k.startswith("server ")
        )

    def server(self):
        """Sum of the server's steps."""
        return sum(sum(v) for k, v in self.spent.items() if k.startswith("server "))


def flat(n, length, **changes):
    names = tuple(f"c{i:05d}" for i in range(n))
    fields = {
        "nodes": (Node("all", names, ((0, length),)),),
        "threshold": Plan.full_threshold(n),
        "quantiser": Quantiser(1.0, 16),
        "context": CONTEXT,
    }
    return Plan(length=length, **{**fields, **changes})


def nested(n, length):
    """Seven nodes: everyone, two halves, four quarters, each level a third of the coordinates."""
    names = tuple(f"c{i:05d}" for i in range(n))
    a, b = length // 3, 2 * length // 3
    nodes = [Node("all", names, ((0, a),))]
    for level, (parts, span) in enumerate(((2, (a, b)), (4, (b, length)))):
        nodes += [
            Node(f"{level}-{p}", names[p * n // parts : (p + 1) * n // parts], (span,))
            for p in range(parts)
        ]
    return flat(n, length, nodes=tuple(nodes))


def sparse(n, length, share=Fraction(1, 20)):
    """A flat plan over a sparse graph: the given share of clients may collude, and as many drop
    out.
    """
    some = int(share * n)
    chosen = find_neighbourhood(n, share, share)
    graph = Sparse(chosen.neighbours, dropouts=some)
    plan = flat(
        n,
        length,
        threshold=chosen.threshold,
        colluders=some,
        min_group=max(3, some + 2),
        sparse=graph,
    )
    return plan.with_beacon(Beacon(hashlib.sha256(b"beacon").digest(), plan.tree))


def random_updates(plan, one=False):
    """Uniform vectors; with `one` the same for all, which keeps the memory of large cohorts
    small.
    """
    rng = np.random.default_rng(0)
    if one:
        return dict.fromkeys(plan.cohort, rng.uniform(-1, 1, plan.length).astype(np.float32))
    return {name: rng.uniform(-1, 1, plan.length).astype(np.float32) for name in plan.cohort}


def attempt(plan, updates):
    """Run one attempt with all clients.

    Returns the clock, and the median over clients of the bytes sent and received, by step.
    """
    clock, sent_bytes, received_bytes = Clock(), {}, {}
    identities = {
        name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in plan.cohort
    }
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    states, out = {}, {}
    assert plan.hash, plan.graph.committee  # made once for a tree, not in each round

    def everyone(step, call, received):
        out.clear()
        for name in list(received):
            data = received.pop(name)  # large cohorts: nothing is kept that is not needed any more
            states[name], message = clock(step, call, name, states.get(name), data)
            out[name] = bytes(memoryview(message))  # a copy, as sending makes one
            del (
                message
            )  # each client is a process of its own, whose memory no other one's message occupies
            received_bytes.setdefault(step, []).append(len(data or b""))
        sent_bytes[step] = statistics.median(map(len, out.values()))
        received_bytes[step] = statistics.median(received_bytes[step])

    def advertise(name, _state, _data):
        where = (identities[name], name, roster, plan)
        return client.advertise(*where, round=0, attempt=0, randomness=fresh())

    everyone("advertise", advertise, dict.fromkeys(plan.cohort))
    state = server.begin(roster, plan, round=0, attempt=0)
    state, shown = clock("server adverts", server.collect_adverts, state, out)
    everyone("share", lambda _, s, m: client.share(s, m, randomness=fresh()), shown)
    state, shown = clock("server shares", server.route_shares, state, out)
    everyone("mask", lambda n, s, m: client.mask(s, m, updates[n], randomness=fresh()), shown)
    state, shown = clock("server masked", server.collect_masked, state, out)
    everyone("confirm", lambda _, s, m: client.confirm(s, m), shown)
    state, shown = clock("server votes", server.collect_votes, state, out)
    everyone("reveal", lambda _, s, m: (None, client.reveal(s, m)), shown)
    opened = clock("server open", server.open_sums, state, out)
    for node in plan.nodes:
        exact = sum(node.gather(updates[m]).astype(np.float64) for m in node.members)
        assert (
            np.abs(opened[node.name].values() - exact).max()
            <= len(node.members) * plan.quantiser.step * 1.001
        )
    return clock, sent_bytes, received_bytes
