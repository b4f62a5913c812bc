"""The shape of what audits write, as types that are checked and as published JSON Schema files.

`python -m fedtree_audits.report.schema` writes ``schemas/result-1.json`` and
``schemas/combined-1.json`` (JSON Schema 2020-12) from the types below; a test compares the files
with them. A change that breaks a reader gets a new number and new files, and the old ones stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

FOLDER = Path(__file__).parent / "schemas"
Answer = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Status = Literal["executed", "not run", "out of scope"]


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """One thing that was looked at; `p_value` is null for an exact comparison."""

    name: str
    holds: bool
    detail: str
    p_value: float | None


class Power(msgspec.Struct, forbid_unknown_fields=True):
    """How much could have been seen; null where a value is not finite. `limit` null: twice the
    claim.
    """

    claim: float | None
    detected: float | None
    how: str
    quantity: str
    limit: float | None
    enough: bool


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """Everything one audit says, see `fedtree_audits.statistics.verdict.Result`."""

    schema: Literal[1]
    audit: str
    verdict: Answer
    exit_code: Literal[0, 1, 2]
    question: str
    claim: str
    adversary: str
    assumptions: list[str]
    checks: list[Check]
    missing: list[str]
    power: Power | None
    controls: dict[str, bool]
    hashes: dict[str, str]
    figures: dict[str, Any]


class Line(msgspec.Struct, forbid_unknown_fields=True):
    """One audit on the combined page; `report` is the file with everything it says."""

    audit: str
    verdict: Answer
    question: str
    claim: str
    power: Power | None
    failed: list[str]
    missing: list[str]
    report: str


class AttackClass(msgspec.Struct, forbid_unknown_fields=True):
    """One class of attacks of EDPB opinion 28/2024 and the audits that stand for it."""

    attack: str
    status: Status
    audits: list[str]
    note: str


class Combined(msgspec.Struct, forbid_unknown_fields=True):
    """All audits of a run together, see `fedtree_audits.report.combined`."""

    schema: Literal[1]
    verdict: Answer
    exit_code: Literal[0, 1, 2]
    run: str
    guarantee: dict[str, Any]
    audits: list[Line]
    attack_classes: list[AttackClass]
    hashes: dict[str, str]


PUBLISHED: dict[str, type[msgspec.Struct]] = {"result-1": Result, "combined-1": Combined}


def check(data: Any, kind: type[msgspec.Struct] = Result) -> None:
    """Check plain values against a type.

    Raises:
        msgspec.ValidationError: something is missing, unknown or of another type; the text says
            where.
    """
    msgspec.convert(data, kind, strict=True)


def document(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a published type."""
    made = msgspec.json.schema(PUBLISHED[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fedtree-audits {name}",
        **made,
    }


def write(folder: Path = FOLDER) -> list[Path]:
    """Write all schema files and return their paths."""
    folder.mkdir(exist_ok=True)
    made = []
    for name in PUBLISHED:
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(document(name), indent=2) + "\n", "utf-8")
    return made


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in write()))
