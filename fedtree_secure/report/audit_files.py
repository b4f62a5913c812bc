"""What audits left in a run folder, read as plain JSON: nothing here imports the audits' package.

An audit says which files it read, by SHA-256. A verdict is taken for this run only while those
files are what they were: a PASS that was copied from another run, or that is older than the run's
files, is stale.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtree_secure.errors import RunFolderError

FOLDER = "audits"
COMBINED = "all"
SCHEMA = 1
PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
VERDICTS = (PASS, FAIL, INCONCLUSIVE)


@dataclass(frozen=True)
class AuditFinding:
    """What one audit says.

    Attributes:
        name: Of the audit.
        verdict: PASS, FAIL or INCONCLUSIVE.
        question, claim, adversary: What it answers, about what, in whose view.
        power: How much it could have seen, in words; empty for exact comparisons.
        detected: Smallest value that it would have noticed with 90% probability; None for exact
            comparisons, and where nothing would have been noticed.
        exact: Whether it compares exactly, without sampling error.
        troubles: Checks that failed, and evidence that it missed.
        stale: Names of files that it read and that have changed since, or why it cannot be said.
    """

    name: str
    verdict: str
    question: str
    claim: str
    adversary: str
    power: str
    detected: float | None
    exact: bool
    troubles: tuple[str, ...]
    stale: tuple[str, ...]


def read_audits(folder: Path) -> tuple[AuditFinding, ...]:
    """Return what the audits of a run folder found, by name; none where none ran.

    Raises:
        RunFolderError: A report is damaged or of another schema.
    """
    names = sorted(path for path in (folder / FOLDER).glob("*.json") if path.stem != COMBINED)
    return tuple(_read(folder, path) for path in names)


def _read(folder: Path, path: Path) -> AuditFinding:
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema"] != SCHEMA or found["verdict"] not in VERDICTS:
            raise ValueError(f"schema {found['schema']!r}, verdict {found['verdict']!r}")
        failed = [f"{c['name']}: {c['detail']}" for c in found["checks"] if not c["holds"]]
        power = found["power"]
        return AuditFinding(
            name=path.stem,
            verdict=found["verdict"],
            question=found["question"],
            claim=found["claim"],
            adversary=found["adversary"],
            power="" if power is None else _power(power),
            detected=None if power is None else power["detected"],
            exact=power is None,
            troubles=(*failed, *found["missing"]),
            stale=_stale(folder, found["hashes"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is no report of an audit that this version reads ({error}); run the audit "
            f"again: fedtree-secure audit {path.stem} --run {folder}"
        ) from None


def _power(power: Mapping[str, Any]) -> str:
    if power["detected"] is None:
        return "nothing would have been noticed"
    claim = "" if power["claim"] is None else f", against a claim of {power['claim']:.3g}"
    return (
        f"{power['quantity']} of {power['detected']:.3g} would have been noticed in 9 of 10 "
        f"runs{claim}"
    )


def _stale(folder: Path, hashes: Mapping[str, str]) -> tuple[str, ...]:
    """Compare with the files now; entries such as commitments name no file and are passed over."""
    files = {name: told for name, told in hashes.items() if "commitment" not in name}
    if not files:
        return ("it does not say which files it read",)
    return tuple(name for name, told in sorted(files.items()) if _sha256(folder / name) != told)


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
