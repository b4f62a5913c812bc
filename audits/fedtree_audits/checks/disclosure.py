"""Audit `disclosure`: whether released sums can be combined to isolate a client.

Every opened node of every round is one row over the clients, one for each part of the adapter
(layer) that the node covers: the mean that the server opened has weight 1/n on each survivor.
Clients also receive the mean of the other groups of a layer (the external expert), which is a row
as well. Whoever knows some rows of one part of one round knows every combination of them. The audit
looks, in exact rational arithmetic, for the combination that depends on fewest clients, and does so
again with every set of up to `colluders` clients taken out, because these know their own share.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs import specimen
from fedtree_audits.run_folder import RunFolder, open_run
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_secure.testing import node_name

QUESTION = "Can released sums be combined to isolate a client?"
Weights = dict[str, Fraction]
Place = tuple[int, str]
"""Round and part: rows of one place are about the same uploads."""


@dataclass(frozen=True)
class Released:
    """One released linear combination of uploads.

    Attributes:
        place: round and part.
        weights: of each client in it.
        source: which opened node or expert it is.
    """

    place: Place
    weights: Weights
    source: str


def rows_of(summary: dict[str, Any]) -> list[Released]:
    """Return everything linear that a run released, from its summary.

    Raises:
        MissingEvidence: the summary lacks rounds or layers, or a round opened a node that no layer
            explains.
    """
    if "rounds" not in summary or "layers" not in summary:
        raise MissingEvidence("summary.json has no rounds or no layers")
    eras = memberships_of(summary)
    whole = node_name(sorted(summary.get("clients", {})))
    found = []
    for record in summary["rounds"]:
        parts = _in_force(eras, int(record["round"]))
        for node, survivors in record["opened"].items():
            covered = [part for part, members in parts.get(node, ())] or (
                ["shared head"] if node == whole else None
            )
            if covered is None:
                raise MissingEvidence(
                    f"round {record['round']} opened {node}, which no layer of the summary explains"
                )
            weights = {name: Fraction(1, len(survivors)) for name in survivors}
            found += [Released((int(record["round"]), part), weights, node) for part in covered]
    return found + list(_externals(found))


Members = tuple[str, ...]
Eras = list[tuple[int, dict[str, list[tuple[str, Members]]]]]
"""First round of each tree, and for each of its nodes the parts it covers, with its members."""


def memberships_of(summary: dict[str, Any]) -> Eras:
    """Return who was a member of which node, by the tree in force (docs/cohort.md)."""
    layers = {f"layer {layer['layer']}": layer["released"] for layer in summary["layers"]}
    heads = {f"head of {group[0]}": [group] for group in summary.get("heads", [])}
    told = summary.get("cohort", {}).get("trees")
    found: Eras = []
    for tree in told or [{"first_round": 0, "released": {**layers, **heads}}]:
        nodes: dict[str, list[tuple[str, Members]]] = defaultdict(list)
        for part, groups in tree["released"].items():
            kind = "head" if part.startswith("head of ") else "node"
            for group in groups:
                members = tuple(sorted(group))
                nodes[node_name(members, kind)].append((part, members))
        found.append((int(tree["first_round"]), dict(nodes)))
    return found


def _in_force(eras: Eras, number: int) -> dict[str, list[tuple[str, Members]]]:
    return [nodes for first, nodes in eras if first <= number or first == eras[0][0]][-1]


def moves_of(summary: dict[str, Any]) -> dict[str, list[tuple[int, Members]]]:
    """Return, for each part, the members of every sum that was opened, with its first round.

    Members, not survivors: who misses a round is away from that round's sum alone, and its upload
    of another round is another one. What a server must not do is to move who belongs to a sum.
    """
    eras, found = memberships_of(summary), defaultdict[str, list[tuple[int, Members]]](list)
    for record in summary["rounds"]:
        parts = _in_force(eras, int(record["round"]))
        for node in record["opened"]:
            for part, members in parts.get(node, ()):
                if all(members != known for _, known in found[part]):
                    found[part].append((int(record["round"]), members))
    return dict(found)


def _move_checks(summary: dict[str, Any], min_group: int) -> list[Check]:
    """No combination of sums of different rounds may be about few members of a part."""
    checks = []
    for part, sums in sorted(moves_of(summary).items()):
        if len(sums) < 2:
            continue
        rows = [dict.fromkeys(members, Fraction(1)) for _, members in sums]
        few = smallest_support(rows, min_group - 1)
        where = f"{part}, members over all rounds"
        detail = (
            f"{len(sums)} memberships, none differs from the others by fewer than {min_group}"
            if few is None
            else f"{len(sums)} memberships give one about {', '.join(sorted(few))} alone"
        )
        checks.append(Check(where, holds=few is None, detail=detail))
    return checks


def _externals(means: Sequence[Released]) -> Iterable[Released]:
    """The mean over all other groups of a layer, which a group's members are sent."""
    for place, rows in _by_place(means).items():
        for row in rows:
            others = [other for other in rows if not set(other.weights) & set(row.weights)]
            if others:
                total: Weights = defaultdict(Fraction)
                for other in others:
                    for name, weight in other.weights.items():
                        total[name] += weight / len(others)
                yield Released(place, dict(total), f"external of {row.source}")


def _by_place(rows: Iterable[Released]) -> dict[Place, list[Released]]:
    found: dict[Place, list[Released]] = defaultdict(list)
    for row in rows:
        found[row.place].append(row)
    return found


def reduced(rows: Sequence[Sequence[Fraction]]) -> list[list[Fraction]]:
    """Return the reduced row echelon form without zero rows (Gauss-Jordan over the rationals)."""
    matrix, done = [list(row) for row in rows], 0
    for column in range(len(matrix[0]) if matrix else 0):
        pivot = next((i for i in range(done, len(matrix)) if matrix[i][column]), None)
        if pivot is None:
            continue
        matrix[done], matrix[pivot] = matrix[pivot], matrix[done]
        head = matrix[done][column]
        matrix[done] = [value / head for value in matrix[done]]
        for i, row in enumerate(matrix):
            if i != done and row[column]:
                factor = row[column]
                matrix[i] = [a - factor * b for a, b in zip(row, matrix[done], strict=True)]
        done += 1
    return matrix[:done]


def smallest_support(weights: Sequence[Weights], most: int) -> frozenset[str] | None:
    """Return the fewest clients that a non-zero combination of the rows depends on, if at most
    `most`, else None.

    A set of clients carries a combination of its own exactly if the other columns have a smaller
    rank than all columns. Clients with equal columns always occur together, so whole classes of
    them are tried, smallest first: exact, and a handful of sets for a tree's groups.
    """
    names = sorted({name for row in weights for name, weight in row.items() if weight})
    columns = {name: tuple(row.get(name, Fraction(0)) for row in weights) for name in names}
    classes: dict[tuple[Fraction, ...], list[str]] = defaultdict(list)
    for name in names:
        classes[columns[name]].append(name)
    kinds = [(column, members) for column, members in classes.items() if len(members) <= most]
    rank = len(reduced(list(classes)))
    best: frozenset[str] | None = None
    for size in range(1, most + 1):
        for chosen in itertools.combinations(kinds, size):
            members = frozenset(itertools.chain.from_iterable(group for _, group in chosen))
            if len(members) > most or (best is not None and len(members) >= len(best)):
                continue
            rest = [column for column in classes if column not in {column for column, _ in chosen}]
            if len(reduced(rest)) < rank:
                best = members
    return best


def audit_run(run: RunFolder) -> Result:
    """Audit all rows that a run released."""
    masking = run.job.masking
    found = audit_rows(
        rows_of(run.summary),
        masking.min_group,
        masking.colluders,
        run.hashes("job.json", "summary.json"),
    )
    moves = _move_checks(run.summary, masking.min_group)
    return dataclasses.replace(found, checks=[*found.checks, *moves])


def audit_rows(
    rows: Sequence[Released], min_group: int, colluders: int, hashes: dict[str, str]
) -> Result:
    """Audit released rows against the smallest group that may ever be opened."""
    checks, seen = [], dict[tuple[Any, ...], frozenset[str] | None]()
    for place, held in sorted(_by_place(rows).items()):
        for removed in range(colluders + 1):
            key = (removed, frozenset(frozenset(row.weights.items()) for row in held))
            if key not in seen:  # rounds without dropouts release the same subsets
                seen[key] = _worst(held, removed, min_group - removed - 1)
            checks.append(_check(place, len(held), removed, min_group - removed, seen[key]))
    return Result(
        audit="disclosure",
        question=QUESTION,
        claim=f"no combination of released sums depends on fewer than {min_group} clients, or on "
        f"fewer than {min_group - colluders} besides {colluders} colluding ones",
        adversary=(
            "everybody together: all rounds' opened sums, cluster and external experts, and "
            "colluding clients"
        ),
        assumptions=(
            (
                "the summary lists every sum that was opened (the secagg audit and signed survivor "
                "sets are about that)"
            ),
            (
                "uploads of different rounds are different unknowns; a client whose update hardly "
                "changes between rounds with different survivors is protected by its own DP noise "
                "alone"
            ),
        ),
        checks=checks,
        missing=() if rows else ("the run opened no sum",),
        hashes=hashes,
        figures={"rows": len(rows), "places": len(_by_place(rows))},
    )


def _worst(rows: Sequence[Released], removed: int, most: int) -> frozenset[str] | None:
    names = sorted({name for row in rows for name in row.weights})
    best: frozenset[str] | None = None
    for gone in itertools.combinations(names, removed):
        kept = [{n: w for n, w in row.weights.items() if n not in gone} for row in rows]
        found = smallest_support([row for row in kept if row], most)
        if found is not None and (best is None or len(found) < len(best)):
            best = found
    return best


def _check(
    place: Place, rows: int, removed: int, least: int, found: frozenset[str] | None
) -> Check:
    where = f"round {place[0]}, {place[1]}, {removed} colluding"
    if found is None:
        return Check(
            where, holds=True, detail=f"{rows} rows, none about fewer than {least} clients"
        )
    return Check(
        where, holds=False, detail=f"{rows} rows give one about {', '.join(sorted(found))} alone"
    )


# --- self-test ------------------------------------------------------------------------------------

_ALL = list(specimen.CLIENTS)
_HALVES = (_ALL[:3], _ALL[3:])


def _released(
    groups: Sequence[Sequence[str]], survivors: Sequence[Sequence[Sequence[str]]] | None = None
) -> Variant:
    """Audit a run with these groups; `survivors` lists, for each record of round 1, those
    of each group.
    """

    def variant(_seed: int) -> Result:
        records = [
            {
                "round": 1,
                "opened": {
                    node_name(sorted(g)): sorted(s) for g, s in zip(groups, each, strict=True) if s
                },
            }
            for each in survivors or [groups]
        ]
        with tempfile.TemporaryDirectory() as place:
            folder = specimen.build_run(
                Path(place) / "run", groups=groups, records=records, ledgers=False
            )
            return audit_run(open_run(folder))

    return variant


def _changed(*memberships: Sequence[str]) -> Variant:
    """Audit a run in which the one group's members change before each round."""

    def variant(_seed: int) -> Result:
        trees = [
            {"first_round": number, "released": {"layer 0": [sorted(group)]}}
            for number, group in enumerate(memberships, start=1)
        ]
        records = [
            {"round": number, "opened": {node_name(sorted(group)): sorted(group)}}
            for number, group in enumerate(memberships, start=1)
        ]
        with tempfile.TemporaryDirectory() as place:
            folder = specimen.build_run(
                Path(place) / "run",
                groups=memberships[-1:],
                records=records,
                ledgers=False,
                told={"cohort": {"trees": trees}},
            )
            return audit_run(open_run(folder))

    return variant


AUDIT = Audit(
    name="disclosure",
    question=QUESTION,
    on_run=audit_run,
    correct=_changed(_ALL[:3], _ALL),
    parties=frozenset({"server"}),
    mutants={
        "a group of one": _released([_ALL[:5], _ALL[5:]]),
        "a complement of one": _released([_ALL, _ALL[:5]]),
        "dropout differencing": _released([_ALL], [[_ALL], [_ALL[1:]]]),
        "cluster, external and global": _released([_ALL, _ALL[:3], _ALL[3:5]]),
        "means of overlapping groups": _released(
            [_ALL[:4], _ALL[1:5], _ALL[:1] + _ALL[4:5] + _ALL[5:]]
        ),
        "one survivor left": _released(_HALVES, [[_ALL[:3], _ALL[3:4]]]),
        "two come between rounds": _changed(_ALL[:4], _ALL),
        "one leaves between rounds": _changed(_ALL, _ALL[:5]),
        "moves over three rounds": _changed(_ALL[:3], _ALL, _ALL[1:4]),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
