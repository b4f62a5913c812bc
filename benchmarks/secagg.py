"""Cost of secure aggregation: against the keystream, against flat plans, against Flower's SecAgg+,
and over N.

    python benchmarks/secagg.py [--full] [--flower PYTHON] [--docs FOLDER]

All ratios come from one run: what is compared alternates, and medians are taken. Flower (flwr) is
driven in-process through its own mod and workflow in a child of the interpreter given with --flower
(default: this one), so that it needs no place in our environment; without flwr its ratios are null.
The last line of output is one JSON object. Times are CPU milliseconds, which a busy machine
disturbs less than the clock's; "client" is the sum over the steps of the median client, "server" of
the server's.
"""

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from parts.curve import curve, document, growth
from parts.rounds import attempt, flat, fresh, nested, random_updates


def keystream_ratio(repeats):
    """Masking rate over the rate of bare AES-256-CTR into a buffer of the same size; above 1 where
    GCM is faster.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    from fedtree_secagg import Ring
    from fedtree_secagg.primitives.ring import CHUNK_BYTES, fastest_mode

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
    ratio = statistics.median(m / b for m, b in zip(masking, bare, strict=True))
    return ratio, statistics.median(bare) / 1e9, fastest_mode().__name__


def nested_ratio(repeats):
    """Client plus server time per client, nested over flat, 20 clients of 1,000,000 values."""
    plans = {"nested": nested(20, 1_000_000), "flat": flat(20, 1_000_000)}
    totals = {kind: [] for kind in plans}
    for _ in range(repeats):
        for kind, plan in plans.items():
            clock, *_ = attempt(plan, random_updates(plan, one=True))
            totals[kind].append(clock.client() + clock.server() / 20)
    return statistics.median(totals["nested"]) / statistics.median(totals["flat"])


def memory():
    """Peak memory of a client's mask step and of the server's two large steps, over the update's
    bytes on the wire.

    The server reads uploads one at a time from a generator; the one it reads counts, those to come
    do not.
    """
    from fedtree_secagg import Identity, Roster, client, server

    plan, width = flat(5, 1_000_000), 4_000_000
    updates = random_updates(plan)
    identities = {
        name: Identity.generate(hashlib.sha256(name.encode()).digest()) for name in plan.cohort
    }
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    held = {
        n: client.advertise(identities[n], n, roster, plan, round=0, attempt=0, randomness=fresh())
        for n in plan.cohort
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
        _, sizes, _ = attempt(plan, random_updates(plan, one=True))
        upload = sizes.pop("mask")
        out[str(bits)] = {
            "upload": upload / 1e6,
            "shares_and_signatures": sum(sizes.values()) / 1e6,
        }
    return out


def flower_run(python, n, length, runs):
    command = [
        python,
        str(Path(__file__).resolve().parent / "parts" / "flower.py"),
        *map(str, (n, length, runs)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        print(
            f"flower did not run with {python}: "
            f"{done.stderr.strip().splitlines()[-1:] or done.returncode}"
        )
        return None
    return json.loads(done.stdout.splitlines()[-1])


def against_flower(python, n, length, repeats, runs=4):
    """Ratios of theirs to ours: of each side the median over some aggregations, without the first
    if there are more.
    """
    plan, pairs = flat(n, length), []
    updates = random_updates(plan, one=True)
    for _ in range(repeats):
        theirs = flower_run(python, n, length, runs)
        if theirs is None:
            return None
        clocks = [attempt(plan, updates)[0] for _ in range(runs)]
        ours = {
            "client": statistics.median(clock.client() for clock in clocks[1:] or clocks),
            "server": statistics.median(clock.server() for clock in clocks[1:] or clocks),
        }
        pairs.append((ours, theirs))
        print(
            f"{n} x {length}: ours client {ours['client']:.1f} server {ours['server']:.1f} ms; "
            f"flower client {theirs['client']:.1f} server {theirs['server']:.1f} ms"
        )
    medians = {
        side: statistics.median(theirs[side] / ours[side] for ours, theirs in pairs)
        for side in pairs[0][0]
    }
    return {"version": pairs[0][1]["version"], **medians}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="100 clients against Flower, and N up to 10,000 (an hour)",
    )
    parser.add_argument("--flower", default=sys.executable, help="interpreter with flwr")
    parser.add_argument(
        "--docs", type=Path, help="write secagg-cost.md and secagg-cost.png into this folder"
    )
    parser.add_argument("--only-curve", action="store_true", help="the cost curve alone")
    arguments = parser.parse_args()
    rows = curve(arguments.full)
    if arguments.docs:
        document(rows, arguments.docs)
    if arguments.only_curve:
        print(json.dumps({"curve": rows, "growth_1000_to_10000": growth(rows)}))
        return
    keystream, rate, mode = keystream_ratio(21)
    small = against_flower(arguments.flower, 20, 1_000_000, 5)
    large = against_flower(arguments.flower, 100, 73_728, 1, runs=1) if arguments.full else None
    peaks = memory()
    result = {
        "keystream_ratio": keystream,
        "keystream_gb_per_s": rate,
        "keystream_mode": mode,
        "client_ratio": small and small["client"],
        "server_ratio": small and small["server"],
        "server_ratio_100": large and large["server"],
        "flower_version": small and small["version"],
        "nested_ratio": nested_ratio(7),
        "memory_client": peaks["client"],
        "memory_server": peaks["server"],
        "bytes_per_value": bytes_per_value(),
        "curve": rows,
        "growth_1000_to_10000": growth(rows),
        "python": platform.python_version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
