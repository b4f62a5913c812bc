"""What a client costs in an embedded run, over the number of clients: processor time by phase, and
memory.

    python benchmarks/clients.py                     # 10, 30 and 100 clients, some minutes
    python benchmarks/clients.py --clients 5 --rounds 1 --sources one_group  # to see that it runs
    python benchmarks/clients.py --docs docs         # writes docs/clients-cost.md as well
    python benchmarks/clients.py --sparse --docs docs  # 100 to 1,000 clients of the masking alone
    python benchmarks/clients.py --graph sparse --docs docs  # the same in the product, minutes

Every number of clients is a real `Federation.run` in a process of its own: a BERT of two layers and
hidden size 32, a few short records a client, so that what is measured is not the model but
everything around it. Times are the processor's, one thread. Requests are delivered one by one and
timed one by one. The last line is one JSON object.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
RECORDS, LAYERS = 16, 2
# Exchanges by phase; what the server does between exchanges is its own phase.
PHASES = {
    "join": "join",
    "sketch-hello": "sketch",
    "sketch-seal": "sketch",
    "sketch": "sketch",
    "tree": "tree",
    "adopt": "tree",
    "prepare": "head",
    "draw-commit": "draw",
    "draw-open": "draw",
    "draw-keep": "draw",
    "alone": "alone",
    "advertise": "begin",
    "share": "share",
    "mask": "mask",
    "confirm": "confirm",
    "reveal": "reveal",
    "finish": "finish",
    "deliver": "finish",
}
ORDER = tuple(dict.fromkeys(PHASES.values()))


class Stopwatch:
    """A transport that delivers requests one by one and adds up processor seconds."""

    def __init__(self, inner):
        self.inner = inner
        self.clients = {}  # seconds of each request, by exchange
        self.server, self.refused = 0.0, 0
        self.began = self.since = time.process_time()

    def exchange(self, stage, requests):
        """See `Transport.exchange`."""
        from fedtree_secure.testing import messages

        start = time.process_time()
        self.server += start - self.since
        spent, replies = self.clients.setdefault(stage, []), {}
        for name, request in requests.items():
            replies |= self.inner.exchange(stage, {name: request})
            self.since = time.process_time()
            spent.append(self.since - start)
            start = self.since
        decoded = [messages.decode_reply(reply) for reply in replies.values()]
        self.refused += sum(isinstance(reply, messages.Refused) for reply in decoded)
        self.since = time.process_time()
        return replies

    def by_phase(self, pick):
        """Add up one figure of each exchange, by phase, in milliseconds."""
        found = dict.fromkeys(ORDER, 0.0)
        for stage, spent in self.clients.items():
            found[PHASES[stage.rpartition("/")[2]]] += 1000 * pick(spent)
        return found


def resident():
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) / 1024


def people(count):
    """Clients with a few short texts each; half of them use other words."""
    import numpy as np
    from datasets import Dataset
    from tiny_models import WORDS

    from fedtree_secure import Client

    def rows(number):
        rng = np.random.default_rng(number)
        labels = rng.integers(2, size=RECORDS)
        start = 100 * (number % 2) + 40 * labels
        texts = [" ".join(rng.choice(WORDS[at : at + 40], size=6)) for at in start]
        return Dataset.from_dict({"text": texts, "label": [f"class-{n}" for n in labels]})

    known = ("class-0", "class-1")
    return [
        Client(f"c{number:04d}", train=rows(number), labels=known, records=RECORDS)
        for number in range(count)
    ]


class MaskingTime:
    """Adds up the processor seconds of each client in the steps of masking, without training.

    The product's handlers call these steps by their names in `fedtree_secagg.client`.
    """

    STEPS = ("advertise", "share", "receive", "upload", "confirm", "reveal")

    def __init__(self):
        from fedtree_secagg import client

        self.spent = {}
        for step in self.STEPS:
            setattr(client, step, self._timed(getattr(client, step), named=step == "advertise"))

    def _timed(self, call, *, named):
        def step(*given, **options):
            start = time.process_time()
            try:
                return call(*given, **options)
            finally:
                name = given[1] if named else given[0].name
                self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - start

        return step

    def of_a_client(self, rounds):
        """Milliseconds a round of the median client."""
        return 1000 * statistics.median(self.spent.values()) / rounds if self.spent else 0.0


def masking_of(count, graph, colluders):
    """Settings of a graph; one client in 20 may drop out."""
    from fedtree_secure import Masking

    if graph is None:
        return Masking(min_group=3, colluders=1)
    some = count // 20 if colluders is None else colluders
    return Masking(min_group=max(3, some + 2), colluders=some, graph=graph, dropouts=count // 20)


def federation(backbone, source, rounds, masking, *, heads):
    from fedtree_secure import Federation, Lora, PrivacyBudget, Topology, Training

    return Federation(
        backbone,
        PrivacyBudget(epsilon=8, delta=1e-3),
        rounds=rounds,
        lora=Lora(r=2, alpha=4.0),
        training=Training(
            records=RECORDS,
            sample_rate=0.5,
            head_steps=4 if heads else 0,
            head="auto" if heads else "local",
            head_sample_rate=0.5,
            max_length=16,
        ),
        topology=Topology(source=source),
        masking=masking,
    )


def measure(count, source, rounds, graph=None, colluders=None):
    """Run once in this process; return processor milliseconds and MiB."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from tiny_models import write_bert

    from fedtree_secure.testing import Shared, data_sets_in

    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    with tempfile.TemporaryDirectory() as name, data_sets_in(Path(name)):
        folder, watches = Path(name), []
        (folder / "model").mkdir()
        masking, timed = masking_of(count, graph, colluders), MaskingTime()
        job = federation(
            write_bert(folder / "model", LAYERS), source, rounds, masking, heads=graph is None
        )
        clients, shared = people(count), Shared()
        shared.backbone(job.job)

        def watch(inner):
            watches.append(Stopwatch(inner))
            return watches[-1]

        before, start = resident(), time.process_time()
        result = job.run(clients, folder / "run", shared=shared, wrap_transport=watch)
        total = time.process_time() - start
    (watch,) = watches
    answered = sum(map(sum, watch.clients.values()))
    rest = total - (watch.began - start) - answered - watch.server
    return {
        "clients": count,
        "source": source,
        "rounds": rounds,
        "total_ms": 1000 * total,
        "open_ms": 1000 * (watch.began - start) / count,
        "phases_ms": watch.by_phase(lambda spent: sum(spent) / count),
        "first_ms": watch.by_phase(lambda spent: spent[0]),
        "server_ms": 1000 * watch.server / count,
        "close_ms": 1000 * rest / count,
        "peak_mib": resident(),
        "loaded_mib": before,
        "refused": watch.refused,
        "colluders": masking.colluders,
        "masking_ms": timed.of_a_client(rounds if graph else rounds + 1),
        "bytes": statistics.median(
            report["bytes_sent"] + report["bytes_received"]
            for report in result.data["clients"].values()
        ),
        "masks": result.data["guarantee"]["masks"],
        "opened": [len(entry["opened"]) for entry in result.data["rounds"]],
    }


def in_child(count, source, rounds, repeats, graph=None, colluders=None):
    """Measure in processes of their own; return the run of median total time."""
    given = json.dumps([count, source, rounds, graph, colluders])
    command = [sys.executable, __file__, "--child", given]
    found = []
    for _ in range(repeats):
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    found.sort(key=lambda row: row["total_ms"])
    return found[(len(found) - 1) // 2]


# --- what is written ------------------------------------------------------------------------------


def table(rows):
    """Mean over the clients, in milliseconds, by phase."""
    head = [
        "source",
        "clients",
        "open",
        *ORDER,
        "server",
        "close",
        "sum",
        "peak MiB",
        "of it model",
        "refusals",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["source"], str(row["clients"])]
        figures = [row["open_ms"], *(row["phases_ms"][p] for p in ORDER)]
        figures += [row["server_ms"], row["close_ms"], row["total_ms"] / row["clients"]]
        cells += [f"{value:.1f}" if value else "" for value in figures]
        cells += [f"{row['peak_mib']:.0f}", f"{row['loaded_mib']:.0f}", str(row["refused"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def firsts(rows):
    """The first client asked, by phase: it fills the caches of its process."""
    head = ["source", "clients", *ORDER]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        figures = (row["first_ms"][phase] for phase in ORDER)
        cells = [row["source"], str(row["clients"]), *(f"{v:.1f}" if v else "" for v in figures)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


EMBEDDED = "<!-- embedded: python benchmarks/clients.py --docs docs -->"
PRODUCT = "<!-- over a graph: python benchmarks/clients.py --graph sparse --docs docs -->"
SPARSE = "<!-- masking alone: python benchmarks/clients.py --sparse --docs docs -->"
END = "<!-- end -->"
EMPTY = f"""# What a client costs over the number of clients

Processor milliseconds, one thread, on a machine that other work shared: figures move by a tenth or
two from run to run.

## The product

`Federation.run` with all clients in one process: a BERT of two layers and hidden size 32,
{RECORDS} short records a client. "open" is reading rows, opening stores and pricing noise; "close"
is evaluating, saving adapters, the summary and the manifest; "server" is what the server does
between its exchanges. All figures are for one client: the sum over all, divided by their number.
Phases of a round are for all rounds of the run together. The masking plan is the full graph, in
which each client has a key with every other, so "share" and "mask" grow with the number of clients.

{EMBEDDED}
{END}

## The product over a sparse graph

The same runs with one round, heads at home, and as many colluders as said; one client in 20 may
drop out. "masking" is the median client's time in the six steps of `fedtree_secagg.client`;
"rounds" is all that a client does in the exchanges of the round, training and its store included;
"draw" is drawing the graph, once a run; "bytes" is what the median client sends and receives in the
whole run. One process plays all clients, which hold their state between exchanges; only one is at
work.

{PRODUCT}
{END}

## The protocol alone

`fedtree_secagg` without the product around it: no stores, no training, no product messages. Over
the sparse graph 1 client in 20 may collude and 1 in 20 drop out; its beacon is given. Every client
of the cohort is run for real.

{SPARSE}
{END}
"""


def graph_table(rows):
    """Runs of the product over one graph, and what a client's masking grows by."""
    head = [
        *("graph", "clients", "may collude", "others", "masking ms", "rounds ms", "draw ms"),
        *("server ms", "bytes", "run s", "peak MiB", "of it model"),
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        masks = row["masks"][-1]
        phases = row["phases_ms"]
        cells = [masks["graph"], f"{row['clients']:,}", str(row["colluders"])]
        cells += [str(masks["most_contacts"]), f"{row['masking_ms']:.1f}", f"{_rounds(row):.0f}"]
        cells += [f"{phases['draw']:.1f}", f"{row['server_ms']:.1f}", f"{row['bytes']:,.0f}"]
        cells += [f"{row['total_ms'] / 1000:.0f}", f"{row['peak_mib']:.0f}"]
        cells += [f"{row['loaded_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_growths(rows)])


def _growths(rows):
    """What masking grows by from the smallest to the largest run of each line of rows."""
    said, half = [], len(rows) // 2
    groups = {"one in 20 may collude": rows[:half], "5 may collude": rows[half:]}
    for what, found in groups.items():
        low, high = found[0], found[-1]
        if low["clients"] == high["clients"]:
            continue
        logs = math.log(high["clients"]) / math.log(low["clients"])
        said.append(
            f"Where {what}, a client's masking grows by "
            f"{high['masking_ms'] / low['masking_ms']:.2f} from {low['clients']:,} to "
            f"{high['clients']:,} clients, all that it does in rounds by "
            f"{_rounds(high) / _rounds(low):.2f}; log N by {logs:.2f}."
        )
    return said


def _rounds(row):
    return sum(row["phases_ms"][p] for p in ("begin", "share", "mask", "confirm", "reveal"))


def write(folder, marker, text):
    """Put a table between its marker and the next end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "clients-cost.md"
    content = path.read_text("utf-8") if path.exists() else EMPTY
    before, found, after = content.partition(marker)
    if not found:
        raise SystemExit(f"{path} has no line {marker}; remove the file to have it made anew")
    path.write_text(before + marker + "\n" + text + "\n" + END + after.partition(END)[2], "utf-8")


# --- the masking protocol alone -------------------------------------------------------------------


def sparse_rows(sizes, repeats):
    """Attempts over the full and the sparse graph; each figure is the median client's."""
    sys.path.insert(0, str(HERE))
    from parts.curve import VALUES
    from parts.rounds import attempt, flat, random_updates, sparse

    rows = []
    for graph, make in (("full", flat), ("sparse", sparse)):
        for count in sizes:
            if graph == "full" and count > 300:
                continue  # grows with the square
            plan, spent = make(count, VALUES), []
            for _ in range(repeats):
                clock, sent, received = attempt(plan, random_updates(plan, one=True))
                spent.append((clock.client(), clock.server()))
            rows.append(
                {
                    "graph": graph,
                    "clients": count,
                    "contacts": len(plan.graph.contacts(plan.cohort[0])) - 1,
                    "client_ms": statistics.median(client for client, _ in spent),
                    "server_ms": statistics.median(server for _, server in spent),
                    "bytes": sum(sent.values()) + sum(received.values()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def sparse_table(rows):
    """The rows, and what the time grows by beside what log N grows by."""
    head = "| graph | clients | contacts | client ms | server ms | bytes of a client |\n|---" + (
        "|---" * 5 + "|\n"
    )
    body = "".join(
        f"| {r['graph']} | {r['clients']:,} | {r['contacts']} | {r['client_ms']:.1f} | "
        f"{r['server_ms']:,.0f} | {r['bytes']:,.0f} |\n"
        for r in rows
    )
    chosen = [row for row in rows if row["graph"] == "sparse"]
    low, high = chosen[0], chosen[-1]
    grown = high["client_ms"] / low["client_ms"]
    logs = math.log(high["clients"]) / math.log(low["clients"])
    said = (
        f"From {low['clients']:,} to {high['clients']:,} sparse clients a client's time grows by "
        f"{grown:.2f}; log N grows by {logs:.2f}, so the growth is {grown / logs:.2f} times that "
        "of log N."
    )
    return f"{head}{body}\n{said}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", nargs="+", type=int, default=None)
    parser.add_argument("--sources", nargs="+", default=["one_group", "fingerprint"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="the median run is shown")
    parser.add_argument("--docs", type=Path, help="folder of clients-cost.md")
    parser.add_argument("--sparse", action="store_true", help="the masking protocol alone")
    parser.add_argument("--graph", choices=["complete", "sparse"], help="the product over a graph")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    if options.sparse:
        rows = sparse_rows(options.clients or [100, 300, 1000], options.repeats)
        marker, text = SPARSE, sparse_table(rows)
    elif options.graph:
        sizes = options.clients or [100, 300, 1000]
        rows = [
            in_child(count, source, options.rounds, options.repeats, options.graph, colluders)
            for source in options.sources[:1]
            for colluders in (None, 5)
            for count in sizes
        ]
        marker, text = PRODUCT, graph_table(rows)
    else:
        rows = [
            in_child(count, source, options.rounds, options.repeats)
            for source in options.sources
            for count in options.clients or [10, 30, 100]
        ]
        first = "The first client that is asked fills the caches of the process: what a client in a"
        first += " process of its own pays."
        marker, text = EMBEDDED, f"{table(rows)}\n\n{first}\n\n{firsts(rows)}"
    print(text)
    if options.docs:
        write(options.docs, marker, text)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
