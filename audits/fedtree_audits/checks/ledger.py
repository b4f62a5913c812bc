"""Audit `ledger`: whether the claimed epsilon matches what ran.

Epsilon of every client's ledger is computed again by two accountants (PLD and PRV) and compared
with the summary; the hash chain is checked; and what must have been charged is derived from the
job, the noise plan, the rounds' survivors and the client's own journal, never from the ledger. A
whole ledger that lacks its last lines has a sound chain: only this last comparison, or a checkpoint
kept elsewhere, shows it.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedtree_audits.command import Audit, Variant, main
from fedtree_audits.errors import MissingEvidence
from fedtree_audits.rigs import specimen
from fedtree_audits.run_folder import RunFolder, open_run
from fedtree_audits.statistics.verdict import Check, Result
from fedtree_dp import (
    Event,
    Gaussian,
    Ledger,
    LedgerError,
    LedgerTampered,
    PoissonGaussian,
    SharedPoissonGaussian,
    epsilon_of,
    given_honest,
)
from fedtree_dp.account.accounting import merge
from fedtree_dp.account.shared import counted_on, merged, rows_of
from fedtree_dp.account.unit import text_of
from fedtree_dp.ledger.entries import Entry
from fedtree_secure.testing import MERGE, events_of, node_name, sums_classes

QUESTION = "Does the claimed epsilon match what ran?"
TOLERANCE = 1e-3
ACCOUNTANTS_AGREE = 0.03  # PRV lies about .01 above PLD; further apart, one of them is wrong


def audit_run(run: RunFolder) -> Result:
    """Audit every client's ledger of a run."""
    checks, missing, figures = list[Check](), list[str](), dict[str, Any]()
    _ = run.job
    for client in sorted(run.clients):
        try:
            found, spent = _audit_client(run, client)
            checks += found + _checkpoint(run, client)
            figures[client] = spent
        except LedgerTampered as error:
            checks.append(Check(f"{client}: chain", holds=False, detail=str(error)))
        except LedgerError as error:
            missing.append(str(error))
        except MissingEvidence as error:
            missing.append(str(error))
    claimed = [report["epsilon_spent"] for report in run.summary["clients"].values()]
    names = [f"ledgers/{run.clients[client]['dataset']}.sqlite" for client in sorted(run.clients)]
    return Result(
        audit="ledger",
        question=QUESTION,
        claim=(
            f"epsilon spent is at most {max(claimed, default=0.0):.4g} for every client, by the "
            "summary"
        ),
        adversary="a client's program, or whoever can write its files, that hides a charge",
        assumptions=(
            "the job file, the noise plans and the rounds' survivors are what ran",
            (
                "whoever edits ledger, journal and summary together is detected by the client's "
                "signed checkpoint alone, and not at all with the client's signing key"
            ),
        ),
        checks=checks,
        missing=missing,
        hashes=run.hashes("job.json", "summary.json", "transcript.txt", *names),
        figures={"epsilon": figures},
    )


def required(run: RunFolder, client: str) -> dict[str, Event]:
    """Return what the client must have charged at least, by purpose: stages whose result is known
    to have left.
    """
    job, plan, rounds = run.job, run.noise_written(client), _rounds_of(run, client)
    training, journal = job.training, run.journal(client) or {}
    steps: PoissonGaussian | SharedPoissonGaussian
    steps = PoissonGaussian(1.0, training.sample_rate, training.local_steps)
    due = plan.rounds
    if job.noise == "shared" and _in_a_sum(run, client):
        honest = job.masking.min_group - max(job.masking.colluders, 1)
        steps = SharedPoissonGaussian(1.0, training.sample_rate, 1, honest)
        due = plan.rounds / math.sqrt(honest)
    known: dict[str, Event] = {}
    if plan.warm_up:
        known["warm-up"] = PoissonGaussian(
            plan.warm_up, training.sample_rate, job.topology.warmup_steps
        )
    if plan.fingerprint:
        known["fingerprint"] = Gaussian(plan.fingerprint)
    if plan.head:
        known["head"] = (
            Gaussian(plan.head)
            if sums_classes(job)
            else PoissonGaussian(plan.head, training.head_sample_rate, job.head_steps)
        )
    if plan.rounds:
        known |= {
            f"round {n}": replace(steps, noise_multiplier=due) for n in range(1, job.rounds + 1)
        }
    left = set(journal.get("releases", {})) | {f"round {n}" for n in rounds if n != MERGE}
    left |= {"warm-up", "fingerprint"} if rounds else set()
    return {purpose: event for purpose, event in known.items() if purpose in left}


def _audit_client(run: RunFolder, client: str) -> tuple[list[Check], float]:
    with Ledger.inspect(run.ledger(client)) as ledger:
        entries, events, delta = ledger.entries(), ledger.events(), ledger.budget.delta
        budget, dataset, unit = ledger.budget, ledger.dataset, ledger.unit
    report = run.summary["clients"].get(client)
    if report is None:
        raise MissingEvidence(f"summary.json says nothing of client {client}")
    assumed, allowed = given_honest(events), budget.epsilon
    exact, own = epsilon_of(assumed, delta), epsilon_of(events, delta)
    second = _second(merge(assumed), delta)
    claimed, head = float(report["epsilon_spent"]), entries[-1].hash[:12]
    charged: dict[str, list[Event]] = {}
    for entry in entries:
        if (
            entry.event is not None
            and entry.job == run.described.get("run")
            and entry.purpose is not None
        ):
            charged.setdefault(entry.purpose, []).append(entry.event)
    told = [event.to_dict() for event in merged(events)]
    close = abs(second - exact) <= ACCOUNTANTS_AGREE * max(1.0, exact)
    return [
        Check(f"{client}: chain", holds=True, detail=f"{len(entries)} lines, head {head}"),
        Check(
            f"{client}: data set",
            dataset == run.clients[client]["dataset"],
            f"the ledger is that of {dataset!r}",
        ),
        Check(
            f"{client}: unit",
            unit == run.job.privacy_unit,
            f"the ledger protects {text_of(unit)}; the job says {text_of(run.job.privacy_unit)}",
        ),
        Check(
            f"{client}: epsilon",
            abs(claimed - exact) <= TOLERANCE,
            f"claimed {claimed:.4f}, ledger {exact:.4f}",
        ),
        Check(f"{client}: second accountant", close, f"PLD {exact:.4f}, PRV {second:.4f}"),
        Check(f"{client}: budget", exact <= allowed + TOLERANCE, f"{exact:.4f} of {allowed:g}"),
        *_own(client, report, own, budget.alone.epsilon, counted_on(events)),
        Check(
            f"{client}: events",
            told == report["events"],
            f"{len(told)} kinds of event in summary and ledger",
        ),
        _compare(client, required(run, client), charged),
        *_promise(run, client, entries),
    ], exact


def _promise(run: RunFolder, client: str, entries: tuple[Entry, ...]) -> list[Check]:
    """What the job promises this client, against what was charged up to the run's last charge, and
    against the noise that was planned: a short run may not reach what its noise would cost.
    """
    job, agreed = run.job, run.job.budget_of(client)
    lines = [entry for entry in entries if entry.event is not None]
    own = [at for at, entry in enumerate(lines) if entry.job == run.described.get("run")]
    until = [e.event for e in lines[: own[-1] + 1] if e.event is not None] if own else []
    planned = events_of(job, run.noise_written(client))
    found = []
    for what, events in (("promise", until), ("noise plan", planned)):
        reached = epsilon_of(merge(given_honest(events)), agreed.delta)
        alone, most = reached, agreed.epsilon
        if counted_on(events) > 1:
            alone, most = epsilon_of(merge(events), agreed.delta), agreed.alone.epsilon
        said = f"{reached:.4f} of {agreed.epsilon:g} at delta {agreed.delta:g}"
        holds = reached <= agreed.epsilon + TOLERANCE and alone <= most + TOLERANCE
        found.append(Check(f"{client}: {what}", holds, f"{said}, which the job promises"))
    return found


def _in_a_sum(run: RunFolder, client: str) -> bool:
    groups = [group for layer in run.summary["layers"] for group in layer["released"]]
    return any(client in group for group in [*groups, *run.summary.get("heads", [])])


def _own(
    client: str, report: dict[str, Any], own: float, allowed: float, honest: int
) -> list[Check]:
    """Where charges count on others: what holds without them, and that the summary says so."""
    if honest == 1:
        return []
    claimed = float(report.get("own_epsilon_spent", 0.0))
    rows = report["statement"].get("honest_others", [])
    return [
        Check(
            f"{client}: own noise",
            abs(claimed - own) <= TOLERANCE and own <= allowed + TOLERANCE,
            f"claimed {claimed:.4f}, ledger {own:.4f} of {allowed:g}",
        ),
        Check(
            f"{client}: condition",
            [row["others"] for row in rows] == [n - 1 for n in rows_of(honest)],
            f"the charges count on {honest - 1} honest others; the summary has {len(rows)} rows",
        ),
    ]


def _checkpoint(run: RunFolder, client: str) -> list[Check]:
    """Compare with what the client signed at the end of the run, if the run wrote it."""
    path = run.ledger(client).with_suffix(".checkpoints")
    if not path.is_file():
        return []
    name, key = f"{client}: signed checkpoint", run.roster.get(client)
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key or ""))
        with Ledger.inspect(run.ledger(client)) as ledger:
            ledger.verify_kept(path, public_key=public)
    except ValueError:
        return [Check(name, holds=False, detail="the roster holds no key of this client")]
    except LedgerTampered as error:
        return [Check(name, holds=False, detail=str(error))]
    return [Check(name, holds=True, detail="size, head and signature fit")]


@functools.lru_cache(maxsize=256)
def _second(merged: tuple[Event, ...], delta: float) -> float:
    """Epsilon by PRV; clients of one job mostly hold the same events."""
    return epsilon_of(merged, delta, accountant="prv") if merged else 0.0


def _compare(client: str, wanted: dict[str, Event], charged: dict[str, list[Event]]) -> Check:
    absent = [purpose for purpose in wanted if purpose not in charged]
    other = [
        p for p, event in wanted.items() if p in charged and any(e != event for e in charged[p])
    ]
    lacking = f"not charged: {', '.join(absent)}. " if absent else ""
    differing = f"charged as something else: {', '.join(other)}. " if other else ""
    detail = lacking + differing or f"all {len(wanted)} stages that left are charged"
    return Check(f"{client}: stages", not absent and not other, detail)


def _rounds_of(run: RunFolder, client: str) -> set[int]:
    """Rounds in which an opened sum holds the client."""
    return {
        int(record["round"])
        for record in run.summary.get("rounds", [])
        if any(client in survivors for survivors in record["opened"].values())
    }


# --- self-test: what a broken or dishonest program leaves behind ----------------------------------


def _specimen(edit: Callable[[Path], None] = lambda _: None, **how: Any) -> Variant:
    def variant(_seed: int) -> Result:
        with tempfile.TemporaryDirectory() as place:
            folder = specimen.build_run(Path(place) / "run", **how)
            edit(folder)
            return audit_run(open_run(folder))

    return variant


def _without(purpose: str) -> Variant:
    return _specimen(change=lambda found: [item for item in found if item[1] != purpose])


def _halved(found: list[specimen.Charge]) -> list[specimen.Charge]:
    return [
        (replace(e, steps=e.steps // 2) if isinstance(e, PoissonGaussian) and e.steps > 1 else e, p)
        for e, p in found
    ]


def _sql(*statements: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with sqlite3.connect(folder / "ledgers" / "c0.sqlite") as connection:
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                connection.execute(statement)
            for _, sql in triggers:
                connection.execute(sql)
        connection.close()

    return edit


def _replaced(_seed: int) -> Result:
    """Another ledger, with journal, rounds and summary to fit: round 3 never was. Only a signature
    shows it.
    """
    survivors = [list(specimen.CLIENTS)] * 3 + [list(specimen.CLIENTS[1:])]
    node = node_name(sorted(specimen.CLIENTS))
    records = [{"round": number, "opened": {node: given}} for number, given in enumerate(survivors)]

    def shorter(found: list[specimen.Charge]) -> list[specimen.Charge]:
        return [item for item in found if item[1] != "round 3"]

    with tempfile.TemporaryDirectory() as place:
        honest = specimen.build_run(Path(place) / "honest")
        folder = specimen.build_run(
            Path(place) / "run", change=shorter, records=records, journal_fits=True
        )
        shutil.copy(honest / "ledgers" / "c0.checkpoints", folder / "ledgers" / "c0.checkpoints")
        return audit_run(open_run(folder))


def _promises_less(folder: Path) -> None:
    """Promise the first client epsilon 3, where its noise was planned and charged for 8."""
    for name in ("job.json", "summary.json"):
        told = json.loads((folder / name).read_text("utf-8"))
        told["job"]["budgets"] = {"c0": {"epsilon": 3.0, "delta": 1e-5}}
        (folder / name).write_text(json.dumps(told), "utf-8")


def _claims_units(folder: Path) -> None:
    """Claim patients over charges for records."""
    path = folder / "job.json"
    told = json.loads(path.read_text("utf-8"))
    told["job"] |= {"unit": "patient", "max_per_unit": 5}
    path.write_text(json.dumps(told), "utf-8")


_TRUNCATE = _sql(
    "DELETE FROM entries WHERE sequence = (SELECT MAX(sequence) FROM entries)",
    "UPDATE head SET size = (SELECT MAX(sequence) FROM entries) + 1, "
    "hash = (SELECT hash FROM entries ORDER BY sequence DESC LIMIT 1)",
)
AUDIT = Audit(
    name="ledger",
    question=QUESTION,
    on_run=audit_run,
    correct=_specimen(),
    mutants={
        "missing round": _without("round 2"),
        "omitted warm-up": _without("warm-up"),
        "omitted head": _without("head"),
        "half the steps charged": _specimen(change=_halved),
        "more noise charged than used": _specimen(
            change=lambda found: [
                (replace(e, noise_multiplier=2 * e.noise_multiplier), p) for e, p in found
            ]
        ),
        "understated summary": _specimen(claimed=4.0),
        "truncation": _specimen(_TRUNCATE),
        "ledger replaced, all else to fit": _replaced,
        "a unit claimed over charges for records": _specimen(_claims_units),
        "noise for another epsilon than promised": _specimen(_promises_less),
        "edited row": _specimen(
            _sql(
                "UPDATE entries SET body = CAST(REPLACE(CAST(body AS TEXT), 'round 1', 'round 9') "
                "AS BLOB)"
            )
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(AUDIT))
