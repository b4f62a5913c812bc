"""Cost of secure aggregation: against the keystream, against flat plans, against Flower's SecAgg+, and over N.

    python benchmarks/secagg.py [--full] [--flower PYTHON] [--png FILE]

All ratios come from one run: what is compared alternates, and medians are taken. Flower (flwr) is driven in-process
through its own mod and workflow in a child of the interpreter given with --flower (default: this one), so that it
needs no place in our environment; without flwr its ratios are null. The last line of output is one JSON object.
Times are CPU milliseconds, which a busy machine disturbs less than the clock's;
"client" is the sum over the steps of the median client, "server" of the server's.
"""

import argparse
import copy
import hashlib
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

CONTEXT = hashlib.sha256(b"benchmark").digest()


COUNTER = itertools.count()


def fresh():
    return hashlib.sha256(f"benchmark {next(COUNTER)}".encode()).digest()


# Ours


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
        return sum(statistics.median(v) for k, v in self.spent.items() if not k.startswith("server "))

    def server(self):
        """Sum of the server's steps."""
        return sum(sum(v) for k, v in self.spent.items() if k.startswith("server "))


def flat(n, length, **changes):
    from fedtree_secagg import Node, Plan, Quantiser

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
    from fedtree_secagg import Node

    names = tuple(f"c{i:05d}" for i in range(n))
    a, b = length // 3, 2 * length // 3
    nodes = [Node("all", names, ((0, a),))]
    for level, (parts, span) in enumerate(((2, (a, b)), (4, (b, length)))):
        nodes += [Node(f"{level}-{p}", names[p * n // parts : (p + 1) * n // parts], (span,)) for p in range(parts)]
    return flat(n, length, nodes=tuple(nodes))


def attempt(plan, updates):
    """Run one attempt with all clients; return the clock and the bytes the first client sent by step."""
    from fedtree_secagg import Identity, Roster, client, server

    clock, sizes = Clock(), {}
    identities = {name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in plan.cohort}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    states, out = {}, {}

    def everyone(step, call, received):
        for name, data in received.items():
            states[name], out[name] = clock(step, call, name, states.get(name), data)
        sizes[step] = len(out[plan.cohort[0]])

    def advertise(name, _state, _data):
        where = (identities[name], name, roster, plan)
        return client.advertise(*where, round=0, attempt=0, randomness=fresh())

    everyone("advertise", advertise, dict.fromkeys(plan.cohort))
    state = server.begin(roster, plan, round=0, attempt=0)
    state, sent = clock("server adverts", server.collect_adverts, state, out)
    everyone("share", lambda _, s, m: client.share(s, m, randomness=fresh()), sent)
    state, sent = clock("server shares", server.route_shares, state, out)
    everyone("mask", lambda n, s, m: client.mask(s, m, updates[n], randomness=fresh()), sent)
    state, sent = clock("server masked", server.collect_masked, state, out)
    everyone("confirm", lambda _, s, m: client.confirm(s, m), sent)
    state, sent = clock("server votes", server.collect_votes, state, out)
    everyone("reveal", lambda _, s, m: (None, client.reveal(s, m)), sent)
    opened = clock("server open", server.open_sums, state, out)
    for node in plan.nodes:
        exact = sum(node.gather(updates[m]).astype(np.float64) for m in node.members)
        assert np.abs(opened[node.name].values() - exact).max() <= len(node.members) * plan.quantiser.step * 1.001
    return clock, sizes


def random_updates(plan, one=False):
    rng = np.random.default_rng(0)
    if one:  # the same vector for all: memory of large cohorts
        return dict.fromkeys(plan.cohort, rng.uniform(-1, 1, plan.length).astype(np.float32))
    return {name: rng.uniform(-1, 1, plan.length).astype(np.float32) for name in plan.cohort}


def keystream_ratio(repeats):
    """Masking rate over the rate of the bare keystream into a buffer of the same size."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from fedtree_secagg import Ring
    from fedtree_secagg.ring import CHUNK_BYTES

    words, peers = np.zeros(1_000_000, np.uint32), 19
    zeros, buffer = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    chunks = peers * words.nbytes // CHUNK_BYTES
    masking, bare = [], []
    for _ in range(repeats):
        start = time.process_time()
        Ring(32).add_masks(words, [(fresh(), 1) for _ in range(peers)])
        masking.append(peers * words.nbytes / (time.process_time() - start))
        stream = Cipher(algorithms.AES(fresh()), modes.CTR(bytes(16))).encryptor()
        start = time.process_time()
        for _ in range(chunks):
            stream.update_into(zeros, buffer)
        bare.append(chunks * CHUNK_BYTES / (time.process_time() - start))
    return statistics.median(m / b for m, b in zip(masking, bare, strict=True)), statistics.median(bare) / 1e9


def nested_ratio(repeats):
    """Client plus server time per client, nested over flat, 20 clients of 1,000,000 values."""
    plans = {"nested": nested(20, 1_000_000), "flat": flat(20, 1_000_000)}
    totals = {kind: [] for kind in plans}
    for _ in range(repeats):
        for kind, plan in plans.items():
            clock, _ = attempt(plan, random_updates(plan, one=True))
            totals[kind].append(clock.client() + clock.server() / 20)
    return statistics.median(totals["nested"]) / statistics.median(totals["flat"])


def memory():
    """Peak memory of a client's mask step and of the server's two large steps, over the update's bytes on the wire.

    The server reads uploads one at a time from a generator; the one it reads counts, those to come do not.
    """
    from fedtree_secagg import Identity, Roster, client, server

    plan, width = flat(5, 1_000_000), 4_000_000
    updates = random_updates(plan)
    identities = {name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in plan.cohort}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    held = {
        n: client.advertise(identities[n], n, roster, plan, round=0, attempt=0, randomness=fresh()) for n in plan.cohort
    }
    state = server.begin(roster, plan, round=0, attempt=0)
    state, adverts = server.collect_adverts(state, {n: m for n, (_, m) in held.items()})
    held = {n: client.share(held[n][0], adverts[n], randomness=fresh()) for n in plan.cohort}
    state, inboxes = server.route_shares(state, {n: m for n, (_, m) in held.items()})
    peaks, uploads = {}, []
    for name in plan.cohort:
        tracemalloc.start()
        held[name] = client.mask(held[name][0], inboxes[name], updates[name], randomness=fresh())
        peaks["client"] = tracemalloc.get_traced_memory()[1] / width
        tracemalloc.stop()
        uploads.append((name, held[name][1]))
    states = {name: step[0] for name, step in held.items()}
    tracemalloc.start()
    state, survivors = server.collect_masked(state, iter(uploads))
    collecting = tracemalloc.get_traced_memory()[1] + width  # the upload being read was made before
    votes = {n: client.confirm(states[n], survivors[n]) for n in plan.cohort}
    state, ballots = server.collect_votes(state, {n: m for n, (_, m) in votes.items()})
    reveals = {n: client.reveal(votes[n][0], ballots[n]) for n in plan.cohort}
    tracemalloc.reset_peak()
    server.open_sums(state, reveals)
    peaks["server"] = max(collecting, tracemalloc.get_traced_memory()[1]) / width
    tracemalloc.stop()
    return peaks


def bytes_per_value():
    """Upload and everything else, per value and client, 20 clients of 1,000,000 values."""
    from fedtree_secagg import Quantiser, Ring

    out = {}
    for bits in (32, 16):
        plan = flat(20, 1_000_000, ring=Ring(bits), quantiser=Quantiser(1.0, 11))
        _, sizes = attempt(plan, random_updates(plan, one=True))
        upload = sizes.pop("mask")
        out[str(bits)] = {"upload": upload / 1e6, "shares_and_signatures": sum(sizes.values()) / 1e6}
    return out


def curve(full):
    rows = []
    for n in (10, 30, 100, 300, 1000) if full else (10, 30, 100):
        plan = flat(n, 10_000)
        clock, sizes = attempt(plan, random_updates(plan, one=True))
        rows.append(
            {"n": n, "client_ms": clock.client(), "server_ms": clock.server(), "sent_bytes": sum(sizes.values())}
        )
        row = rows[-1]
        print(
            f"N {n:6d}  client {row['client_ms']:9.1f} ms  server {row['server_ms']:10.1f} ms  "
            f"sent {row['sent_bytes']:9d} B"
        )
    return rows


def draw(rows, path):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    n = [row["n"] for row in rows]
    axes[0].loglog(n, [row["client_ms"] for row in rows], "o-", label="one client")
    axes[0].loglog(n, [row["server_ms"] for row in rows], "s-", label="server")
    axes[0].set(xlabel="clients", ylabel="milliseconds", title="Time of an attempt, 10,000 values")
    axes[0].legend()
    axes[1].loglog(n, [row["sent_bytes"] for row in rows], "o-")
    axes[1].set(xlabel="clients", ylabel="bytes", title="Sent by one client")
    figure.savefig(path, dpi=120)


# Flower, in a child process: this part imports flwr and numpy only


def flower(n, length):
    import logging

    import flwr
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
    from flwr.server.workflow.constant import Key as WorkflowKey
    from flwr.supercore.task_identity import TaskIdentity

    logging.disable(logging.CRITICAL)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    update = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)

    class Proxy:
        def __init__(self, node_id):
            self.node_id = node_id

    class Strategy:
        result = None

        def configure_fit(self, _round, parameters, _manager):
            return [(Proxy(i), FitIns(parameters, {})) for i in range(1, n + 1)]

        def aggregate_fit(self, _round, results, _failures):
            self.result = results[0][1].parameters
            return self.result, {}

    class Manager:
        def num_available(self):
            return n

    class Grid:
        spent = inside = 0.0

        def __init__(self):
            self.contexts = {i: Context(1, i, {}, RecordDict(), {}) for i in range(1, n + 1)}

        def send_and_receive(self, messages, *, timeout=None):  # noqa: ARG002
            begun, replies = time.process_time(), []
            for message in messages:
                message.content = copy.deepcopy(message.content)  # as sending it would: clients must not share one
                start = time.process_time()
                replies.append(secaggplus_mod(message, self.contexts[message.metadata.dst_node_id], self.train))
                self.spent += time.process_time() - start
            self.inside += time.process_time() - begun
            return replies

        def train(self, message, _context):
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), 1, {})
            return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    grid, strategy = Grid(), Strategy()
    context = LegacyContext(Context(1, 0, {}, RecordDict(), {}), None, strategy, Manager())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    zero = ndarrays_to_parameters([np.zeros(length, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(zero, True)
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=(n + 1) // 2 + 1, max_weight=1.0)
    start = time.process_time()
    workflow(grid, context)
    total = time.process_time() - start
    error = np.abs(parameters_to_ndarrays(strategy.result)[0] - update).max()
    assert error < 1e-3, f"flower's own result is off by {error}"
    print(
        json.dumps(
            {"version": flwr.__version__, "client": 1000 * grid.spent / n, "server": 1000 * (total - grid.inside)}
        )
    )


def flower_run(python, n, length):
    command = [python, str(Path(__file__).resolve()), "--child", str(n), str(length)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        print(f"flower did not run with {python}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def against_flower(python, n, length, repeats):
    plan, pairs = flat(n, length), []
    updates = random_updates(plan, one=True)
    for _ in range(repeats):
        theirs = flower_run(python, n, length)
        if theirs is None:
            return None
        clock, _ = attempt(plan, updates)
        pairs.append((clock, theirs))
        print(
            f"{n} x {length}: ours client {clock.client():.1f} server {clock.server():.1f} ms; "
            f"flower client {theirs['client']:.1f} server {theirs['server']:.1f} ms"
        )
    return {
        "version": pairs[0][1]["version"],
        "client": statistics.median(theirs["client"] / clock.client() for clock, theirs in pairs),
        "server": statistics.median(theirs["server"] / clock.server() for clock, theirs in pairs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="100 clients against Flower, and N up to 1,000")
    parser.add_argument("--flower", default=sys.executable, help="interpreter with flwr")
    parser.add_argument("--png", type=Path, help="draw the cost curve here")
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        flower(*arguments.child)
        return
    keystream, rate = keystream_ratio(21)
    small = against_flower(arguments.flower, 20, 1_000_000, 3)
    large = against_flower(arguments.flower, 100, 73_728, 1) if arguments.full else None
    peaks = memory()
    rows = curve(arguments.full)
    if arguments.png:
        draw(rows, arguments.png)
    result = {
        "keystream_ratio": keystream,
        "keystream_gb_per_s": rate,
        "client_ratio": small and small["client"],
        "server_ratio": small and small["server"],
        "server_ratio_100": large and large["server"],
        "flower_version": small and small["version"],
        "nested_ratio": nested_ratio(3),
        "memory_client": peaks["client"],
        "memory_server": peaks["server"],
        "bytes_per_value": bytes_per_value(),
        "curve": rows,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
