"""One page on a run: the verdict of every audit, and which classes of attacks were tried at all.

The list of attack classes is that of EDPB opinion 28/2024 (17 December 2024), section on tests and
resistance to attacks: attribute and membership inference, exfiltration, regurgitation of training
data, model inversion, reconstruction. For each the page says executed, not run or out of scope, and
which audit stands for it. It says what was tried and what was found; what that makes of the model
under the law is for others to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_audits.errors import MissingEvidence
from fedtree_audits.report.page import power_in_words
from fedtree_audits.run_folder import open_run
from fedtree_audits.statistics.verdict import SCHEMA, Power, Verdict

NAME = "all"
RAN = ("PASS", "FAIL")


@dataclass(frozen=True)
class AttackClass:
    """One class of attacks.

    Attributes:
        attack: the opinion's term.
        audits: that stand for it; any of them, with a verdict of PASS or FAIL, executes it.
        note: what they try, or why nothing does.
        out_of_scope: whether it is none of this package's business; `audits` then look at something
            near it.
    """

    attack: str
    audits: tuple[str, ...]
    note: str
    out_of_scope: bool = False


ATTACK_CLASSES = (
    AttackClass(
        "membership inference",
        ("adapter_release", "canary_client", "canary_whitebox", "hostile_server"),
        "canaries with coins committed beforehand: server that sees every step, another "
        "participant, released adapter; and replies to a server that lies",
    ),
    AttackClass(
        "attribute inference",
        (),
        "no audit guesses attributes of known people; a bound on membership limits what one record "
        "adds to any guess",
    ),
    AttackClass(
        "exfiltration",
        ("disclosure", "secagg_transcript"),
        "theft of rows or weights from a machine is not tried; the audits named look at what "
        "leaves by the protocol",
        out_of_scope=True,
    ),
    AttackClass(
        "regurgitation of training data",
        ("adapter_release",),
        "how far planted texts are preferred by the adapter",
    ),
    AttackClass(
        "model inversion",
        ("reconstruct",),
        "tokens of the training texts, from one update, a sum and a noised sum",
    ),
    AttackClass(
        "reconstruction attacks",
        ("disclosure", "lattice", "reconstruct"),
        "texts from updates, one client's update from released sums, values from low bits of "
        "floats",
    ),
)


def combine(
    results: Mapping[str, Mapping[str, Any]], guarantee: Mapping[str, Any], run: str
) -> dict[str, Any]:
    """Return the combined report as plain values (``schemas/combined-1.json``).

    Args:
        results: what `Result.to_dict` gave, by audit.
        guarantee: of the run's summary.
        run: id of the run.
    """
    verdicts = [Verdict(found["verdict"]) for found in results.values()]
    worst = max(verdicts, key=_severity, default=Verdict.INCONCLUSIVE)
    hashes: dict[str, str] = {}
    for found in results.values():
        hashes |= {
            name: digest for name, digest in found["hashes"].items() if "commitment" not in name
        }
    return {
        "schema": SCHEMA,
        "verdict": worst.value,
        "exit_code": worst.exit_code,
        "run": run,
        "guarantee": dict(guarantee),
        "audits": [_line(name, found) for name, found in sorted(results.items())],
        "attack_classes": [_attack(item, results) for item in ATTACK_CLASSES],
        "hashes": dict(sorted(hashes.items())),
    }


def write_combined(path: Path, names: Sequence[str]) -> tuple[str, int, Path]:
    """Combine the reports that audits left in a run folder; return verdict, exit code and the
    Markdown page.

    Files: ``audits/all.json`` and ``audits/all.md``.

    Args:
        path: the run folder.
        names: of audits whose reports were written just now; older ones are not taken for these.
    """
    folder = path / "audits"
    results = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in names}
    guarantee, run = {}, "unknown"
    try:
        opened = open_run(path)
        run = str(opened.described.get("run", run))
        guarantee = dict(opened.summary.get("guarantee", {}))
    except MissingEvidence:
        pass  # each audit says so itself; the page is written all the same
    data = combine(results, guarantee, run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(
        json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    page = folder / f"{NAME}.md"
    page.write_text(markdown(data), "utf-8")
    return data["verdict"], data["exit_code"], page


def markdown(data: Mapping[str, Any]) -> str:
    """Return the combined page."""
    lines = [f"# Audits of run {data['run']}: {data['verdict']}", ""]
    guarantee = data["guarantee"]
    if guarantee:
        lines += [
            (
                f"What is claimed: differential privacy for {guarantee['unit']} "
                f"({guarantee['adjacency']}), "
            )
        ]
        lines += [f"{guarantee['sampling']} sampling, accounted by {guarantee['accountant']}.", ""]
    lines += [
        (
            "PASS: nothing contradicts the claim, and the audit would have seen what the column "
            "power says."
        ),
        "FAIL: something contradicts it.",
        "INCONCLUSIVE: evidence is missing, or the audit could not have seen enough.",
        "",
        "| Audit | Verdict | Claim | Power |",
        "|---|---|---|---|",
    ]
    lines += [_row(found) for found in data["audits"]]
    trouble = [
        (found, text) for found in data["audits"] for text in (*found["failed"], *found["missing"])
    ]
    if trouble:
        lines += ["", "## What failed or is missing", ""]
        lines += [f"- {found['audit']}: {text}" for found, text in trouble]
    lines += [
        "",
        "## Classes of attacks",
        "",
        (
            "The list is that of EDPB opinion 28/2024 on AI models, on testing and resistance to "
            "attacks."
        ),
        "",
        "| Attack | Status | Audits | What is tried |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {item['attack']} | {item['status']} | {', '.join(item['audits']) or '-'} | "
        f"{item['note']} |"
        for item in data["attack_classes"]
    ]
    if data["hashes"]:
        lines += ["", "SHA-256 of what was read:", ""]
        lines += [f"- `{name}` `{digest}`" for name, digest in data["hashes"].items()]
    return "\n".join(lines) + "\n"


def _severity(verdict: Verdict) -> int:
    return (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL).index(verdict)


def _line(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    failed = [
        f"{check['name']}: {check['detail']}" for check in found["checks"] if not check["holds"]
    ]
    kept = {key: found[key] for key in ("verdict", "question", "claim", "power", "missing")}
    return {"audit": name, **kept, "failed": failed, "report": f"{name}.md"}


def _attack(item: AttackClass, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ran = [name for name in item.audits if name in results and results[name]["verdict"] in RAN]
    status = "out of scope" if item.out_of_scope else "executed" if ran else "not run"
    return {
        "attack": item.attack,
        "status": status,
        "audits": ran or list(item.audits),
        "note": item.note,
    }


def _row(found: Mapping[str, Any]) -> str:
    power = found["power"]
    told = "exact comparisons" if power is None else _power(power)
    title = f"[{found['audit']}]({found['report']})"
    return _cells(
        (
            title,
            found["verdict"],
            found["claim"],
            "-" if found["missing"] and power is None else told,
        )
    )


def _power(power: Mapping[str, Any]) -> str:
    if power["detected"] is None or power["claim"] is None:
        return "nothing would have been noticed"
    fields = ("claim", "detected", "how", "quantity", "limit")
    return power_in_words(Power(**{key: power[key] for key in fields}))


def _cells(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/").replace("\n", " ") for text in texts) + " |"
