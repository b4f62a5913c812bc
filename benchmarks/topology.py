"""What finding the tree costs over the number of clients: distances, merge tree, cuts, chance.

    python benchmarks/topology.py                       # 100, 300 and 1,000 clients
    python benchmarks/topology.py --clients 50          # to see that it runs
    python benchmarks/topology.py --docs docs           # writes docs/topology-cost.md as well

Every number of clients is measured in a process of its own, one thread. Clients' vectors are made
up (groups and noise), their sketches are drawn with the projection's own law and signed for real,
so that the server and a client do what they do in a run. The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
LAYERS, HIDDEN, B_VALUES, GROUPS = 6, 384, 384 * 4, 8  # MiniLM, rank 4 on one target
STEPS = (
    ("server: hellos", "the server checks all hellos"),
    ("client: hellos", "a client checks all hellos"),
    ("distances", "the server reads all sketches of fingerprints and takes distances"),
    ("gradients", "the same of gradients"),
    ("proposal", "the proposal is encoded and its digest taken"),
    ("tree, weighed", "a party computes the tree by bias and variance"),
    ("tree, silhouette", "a party computes the tree by silhouettes, chance drawn"),
)
START = """# What finding the tree costs over the number of clients

Processor seconds, one thread, on a machine that other work shared. Each number of clients is
measured in a process of its own: {layers} layers, fingerprints of {hidden} values and gradients of
{values:,}, in sketches of 256 and 2,048 rows. A party computes the tree once in a run, by one of
the two ways; "peak" is the whole process, which plays server and client.

{marker}
{end}

A client repeats the computation of the tree from the distances that the server names, so its work
and the proposal's bytes grow with the square of the number of clients, once in a run; what it
cannot check, and why that is so, is in secagg/SPEC.md, section 11.
"""
MARKER = "<!-- topology: python benchmarks/topology.py --docs docs -->"
END = "<!-- end -->"


class Timer:
    """Processor seconds by step."""

    def __init__(self):
        self.spent = {}

    def __call__(self, step, call, *given, **options):
        """Call and note."""
        began = time.process_time()
        found = call(*given, **options)
        self.spent[step] = time.process_time() - began
        return found


def resident():
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def sketching(count):
    """Identities, roster, and the signed hellos of a sketch among all."""
    import hashlib

    from fedtree_secagg import Identity, Roster, sketch

    names = tuple(f"c{i:05d}" for i in range(count))
    fresh = {name: hashlib.sha256(name.encode()).digest() for name in names}
    identities = {name: Identity.generate(fresh[name]) for name in names}
    roster = Roster({name: one.public_bytes for name, one in identities.items()})
    context = hashlib.sha256(b"topology").digest()
    given = (roster, names, context)
    hellos = {
        name: sketch.hello(identities[name], name, *given, randomness=fresh[name]) for name in names
    }
    return identities, given, hellos


def signed_sketches(identities, given, hellos, dimension, size, seed):
    """A sketch of each client: groups, noise, a Gaussian projection, one blind for all."""
    import hashlib

    import numpy as np

    from fedtree_secagg.rounds import messages
    from fedtree_secagg.sketch import DEFAULT_SCALE, Group

    rng = np.random.default_rng(seed)
    roster, names, context = given
    group = Group(roster, names, context, messages.decode(messages.Hellos, hellos).hellos)
    words = np.empty((len(names), LAYERS, size), "<u4")
    for layer in range(LAYERS):
        means = 0.05 * rng.normal(size=(GROUPS, dimension))
        vectors = means[np.arange(len(names)) % GROUPS] + rng.normal(size=(len(names), dimension))
        views = vectors @ rng.normal(size=(dimension, size)) / np.sqrt(dimension)
        whole = np.floor(views * DEFAULT_SCALE).astype(np.int64) + rng.integers(2**32, size=size)
        words[:, layer] = whole.astype(np.uint32)
    found = {}
    for name, own in zip(names, words, strict=True):
        body = own.tobytes()
        message = messages.Sketch(
            *(group.id, name, hashlib.sha256(b"seed").digest()),
            *(LAYERS, size, DEFAULT_SCALE, body),
        )
        found[name] = messages.sign(identities[name], group.id, message, name)
    return found


def measure(count):
    """Measure one number of clients in this process."""
    import msgspec
    import numpy as np

    from fedtree_secagg import Identity, sketch
    from fedtree_secure import PrivacyBudget, Topology
    from fedtree_secure.agreed import messages as wire
    from fedtree_secure.agreed.round_plan import compute_tree, gradient_noise
    from fedtree_secure.agreed.terms import Terms
    from fedtree_secure.config import Job
    from fedtree_secure.model.facts import ModelFacts
    from fedtree_secure.model.layout import Layout

    timer, began = Timer(), resident()
    identities, given, hellos = sketching(count)
    roster, names, context = given
    shown = timer(
        "server: hellos", sketch.collect, *given, {n: data for n, (_, data) in hellos.items()}
    )
    last = names[-1]
    timer("client: hellos", sketch.seal, hellos[last][0], shown[last], randomness=bytes(range(32)))
    every = {"roster": roster, "members": names, "context": context, "hellos": shown[last]}
    squared = {}
    for step, dimension, size in (("distances", HIDDEN, 256), ("gradients", B_VALUES, 2048)):
        sent = signed_sketches(identities, given, shown[last], dimension, size, size)
        _, squared[step] = timer(step, sketch.distances, sent, **every)
    ranges = tuple((B_VALUES * i, B_VALUES * (i + 1)) for i in range(LAYERS))
    facts = ModelFacts(
        bytes(32), Layout(ranges), HIDDEN, B_VALUES, tuple(range(LAYERS)), np.zeros(1, np.float32)
    )
    energy = tuple(1.0 for _ in names)  # of the noise in a fingerprint, as it was made up
    for cut in ("noise_aware", "silhouette"):
        budget = PrivacyBudget(epsilon=8, delta=1e-5)
        job = Job(backbone="unused", privacy=budget, topology=Topology(cut=cut))
        terms = Terms(job, roster, Identity.generate(bytes(range(32))).public_bytes, "run")
        gradients = None
        if cut == "noise_aware":
            noise = tuple(gradient_noise(job, 1.0, 60) for _ in names)
            gradients = wire.Gradients(1, noise, squared["gradients"].astype("<f8").tobytes())
        data = squared["distances"].astype("<f8").tobytes()
        proposal = wire.ProposeTree(1, names, energy, data, (), gradients)
        if cut == "noise_aware":
            timer("proposal", wire.digest, proposal)
            size = len(wire.encode(proposal))
        kind = "tree, weighed" if cut == "noise_aware" else "tree, silhouette"
        tree = timer(kind, compute_tree, terms, facts, proposal)
        proposal = msgspec.structs.replace(proposal, labels=tree.labels)
    return {
        "clients": count,
        "seconds": timer.spent,
        "proposal_mib": size / 2**20,
        "loaded_mib": began,
        "peak_mib": resident(),
    }


def in_child(count):
    command = [sys.executable, __file__, "--child", str(count)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def table(rows):
    """One line a step, one column a number of clients."""
    head = "| seconds | " + " | ".join(f"{row['clients']:,} clients" for row in rows) + " |"
    lines = [head, "|---" * (len(rows) + 1) + "|"]
    for step, said in STEPS:
        cells = [f"{row['seconds'][step]:.2f}" for row in rows]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    totals = [f"{sum(row['seconds'].values()):.1f}" for row in rows]
    lines.append("| all of it | " + " | ".join(totals) + " |")
    sizes = [f"{row['proposal_mib']:.1f}" for row in rows]
    lines.append("| MiB of the proposal | " + " | ".join(sizes) + " |")
    peaks = [f"{row['peak_mib']:.0f}" for row in rows]
    lines.append("| peak MiB | " + " | ".join(peaks) + " |")
    return "\n".join(lines)


def write(folder, text):
    """Put the table between its markers."""
    path = folder / "topology-cost.md"
    blank = START.format(layers=LAYERS, hidden=HIDDEN, values=B_VALUES, marker=MARKER, end=END)
    content = path.read_text("utf-8") if path.exists() else blank
    before, _, after = content.partition(MARKER)
    path.write_text(before + MARKER + "\n" + text + "\n" + END + after.partition(END)[2], "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--docs", type=Path, help="folder of topology-cost.md")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    rows = [in_child(count) for count in options.clients]
    print(table(rows))
    if options.docs:
        write(options.docs, table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
