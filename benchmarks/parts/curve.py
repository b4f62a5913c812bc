"""How cost grows with the cohort: the full graph against the sparse one, every client run
for real.
"""

import math

from parts.rounds import attempt, flat, random_updates, sparse

VALUES = 10_000


def curve(full):
    """Return one row per graph and cohort size; `full` goes to 1,000 and 10,000 clients (half an
    hour).
    """
    sizes = {"full": (10, 30, 100), "sparse": (100, 300)}
    if full:
        sizes = {"full": (10, 30, 100, 300, 1000), "sparse": (30, 100, 300, 1000, 3000, 10_000)}
    rows = []
    for graph, cohorts in sizes.items():
        for n in cohorts:
            plan = flat(n, VALUES) if graph == "full" else sparse(n, VALUES)
            clock, sent, received = attempt(plan, random_updates(plan, one=True))
            row = {
                "graph": graph,
                "n": n,
                "neighbours": len(plan.graph.contacts(plan.cohort[0])) - 1,
                "client_ms": clock.client(),
                "server_ms": clock.server(),
                "sent_bytes": sum(sent.values()),
                "received_bytes": sum(received.values()),
            }
            rows.append(row)
            print(
                f"{graph:6s} N {n:6d}  contacts {row['neighbours']:5d}  client "
                f"{row['client_ms']:9.1f} ms  "
                f"server {row['server_ms']:10.1f} ms  sent {row['sent_bytes']:9.0f} B  "
                f"received {row['received_bytes']:9.0f} B",
                flush=True,
            )
    return rows


def growth(rows):
    """Return what a client's time and bytes grow by from 1,000 to 10,000 sparse clients, over the
    growth of log N.
    """
    at = {row["n"]: row for row in rows if row["graph"] == "sparse"}
    if not {1000, 10_000} <= at.keys():
        return None
    small, large, allowed = at[1000], at[10_000], math.log(10_000) / math.log(1000)
    moved = {row["n"]: row["sent_bytes"] + row["received_bytes"] for row in (small, large)}
    return {
        "allowed": allowed,
        "time": large["client_ms"] / small["client_ms"],
        "bytes": moved[10_000] / moved[1000],
    }


def document(rows, folder):
    """Write the table and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "secagg-cost.md").write_text(_table(rows), "utf-8")
    draw(rows, folder / "secagg-cost.png")


def _table(rows):
    body = "".join(
        f"| {row['graph']} | {row['n']:,} | {row['neighbours']:,} | {row['client_ms']:.1f} | "
        f"{row['server_ms']:,.0f} "
        f"| {row['sent_bytes']:,.0f} | {row['received_bytes']:,.0f} |\n"
        for row in rows
    )
    grown, last = growth(rows), ""
    if grown:
        last = (
            f"From 1,000 to 10,000 sparse clients a client's time grows by {grown['time']:.2f} and "
            "its bytes by "
            f"{grown['bytes']:.2f}; log N grows by {grown['allowed']:.2f}.\n\n"
        )
    return f"""# Cost of an attempt over the number of clients

Every client is run for real in one process, {VALUES:,} values of 32 bits each. CPU
milliseconds: of the median client (sum over its steps) and of the server. Sparse: 1 client in
20 may collude with the server, and 1 in 20 drop out.
Made by `python benchmarks/secagg.py --full --only-curve --docs docs`.

| graph | clients | contacts of a client | client ms | server ms | sent B | received B |
|---|---|---|---|---|---|---|
{body}
{last}![Cost](secagg-cost.png)
"""


def draw(rows, path):
    """Write the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    panels = (
        ("client_ms", "CPU milliseconds of one client"),
        ("server_ms", "CPU milliseconds of the server"),
        ("moved", "bytes sent and received by one client"),
    )
    for graph, marker, colour in (("full", "o", "#b1552b"), ("sparse", "s", "#2b6cb1")):
        chosen = [
            row | {"moved": row["sent_bytes"] + row["received_bytes"]}
            for row in rows
            if row["graph"] == graph
        ]
        for axis, (key, title) in zip(axes, panels, strict=True):
            axis.loglog(
                [row["n"] for row in chosen],
                [row[key] for row in chosen],
                marker + "-",
                color=colour,
                label=graph,
            )
            axis.set(xlabel="clients", title=title)
            axis.grid(alpha=0.3)
    axes[0].legend(title="graph")
    figure.suptitle(
        f"One attempt, {VALUES:,} values a client; sparse: 1 in 20 may collude and 1 in 20 drop out"
    )
    figure.savefig(path, dpi=120)
