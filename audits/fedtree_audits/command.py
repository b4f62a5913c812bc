"""What every audit's command line shares: `python -m fedtree_audits.NAME --run DIR` or
`--self-test`.

Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE; of a self-test 0 if every variant was caught and the
right one passed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedtree_audits.errors import MissingEvidence, UnknownAudit
from fedtree_audits.report.page import write
from fedtree_audits.run_folder import RunFolder, open_run
from fedtree_audits.statistics.verdict import Result, Verdict
from fedtree_secure.testing import RunFolderError

CORRECT = "correct build"
NAMES = (
    "accounted",
    "adapter_release",
    "artefacts",
    "canary_client",
    "canary_whitebox",
    "components",
    "disclosure",
    "hostile_server",
    "lattice",
    "ledger",
    "reconstruct",
    "replay",
    "secagg_transcript",
)
Variant = Callable[[int], Result]
"""Audits one build, broken or not, with randomness from a seed."""


@dataclass(frozen=True)
class Audit:
    """One audit.

    Attributes:
        name, question: what the report calls it and what it answers.
        on_run: audits a run folder.
        correct: audits a correct build made for the self-test.
        mutants: audits of builds that are broken on purpose, by name. They exist nowhere else.
        parties: Whose own folder holds what the audit needs, beside that of a whole run: "site",
            "server".
    """

    name: str
    question: str
    on_run: Callable[[RunFolder], Result]
    correct: Variant
    mutants: Mapping[str, Variant]
    parties: frozenset[str] = frozenset({"site"})

    def audit(self, path: Path) -> Result:
        """Audit a run; what it does not hold, or holds in another form, makes the result
        inconclusive, by name.
        """
        try:
            return self.on_run(open_run(path))
        except MissingEvidence as missing:
            said = str(missing)
        except (LookupError, TypeError, ValueError, OSError) as error:
            # Files of another shape: never a PASS.
            said = f"{path} cannot be read as this audit expects: {type(error).__name__}: {error}"
        return Result(
            audit=self.name,
            question=self.question,
            claim="unknown",
            adversary="none",
            assumptions=(),
            checks=(),
            missing=(said,),
        )

    def report(self, path: Path) -> tuple[str, int, Path]:
        """Audit a run and write its pages; return verdict, exit code and the Markdown page
        (`fedtree-secure audit`).

        Raises:
            RunFolderError: There is no such folder; none is made.
        """
        result = self.audit(_existing(path))
        return result.verdict.value, result.verdict.exit_code, write(result, path / "audits")[1]

    def self_test(self, seed: int = 0) -> dict[str, Verdict]:
        """Return the verdict on the correct build and on every mutant."""
        return {CORRECT: self.correct(seed).verdict} | {
            name: variant(seed).verdict for name, variant in self.mutants.items()
        }


def audit_named(name: str) -> Audit:
    """Return an audit by its name.

    Raises:
        UnknownAudit: There is none of this name.
    """
    if name not in NAMES:
        raise UnknownAudit(f"there is no audit {name!r}; there are {', '.join(NAMES)}")
    found: Audit = importlib.import_module(f"fedtree_audits.checks.{name}").AUDIT
    return found


def audit(run: str | Path, name: str) -> Result:
    """Audit a run, and write the report as the command does.

    Args:
        run: Its folder; the report goes to ``RUN/audits``.
        name: Of the audit, one of `NAMES`.

    Returns:
        What was found; ``.verdict`` is equal to ``"PASS"``, ``"FAIL"`` or ``"INCONCLUSIVE"``.

    Raises:
        UnknownAudit: There is no audit of this name.
        RunFolderError: There is no such folder; none is made.
    """
    result = audit_named(name).audit(_existing(Path(run)))
    write(result, Path(run) / "audits")
    return result


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise RunFolderError(f"there is no run folder {path}")
    return path


def counts(verdicts: Mapping[str, Mapping[str, Verdict]]) -> dict[str, int]:
    """Return required, caught and false alarms of self-tests, by audit."""
    broken = [v for found in verdicts.values() for name, v in found.items() if name != CORRECT]
    right = [found[CORRECT] for found in verdicts.values()]
    return {
        "required": len(broken),
        "caught": sum(v is Verdict.FAIL for v in broken),
        "false_alarms": sum(v is not Verdict.PASS for v in right),
    }


def main(audit: Audit, arguments: Sequence[str] | None = None) -> int:
    """Run one audit's command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"fedtree_audits.checks.{audit.name}", description=audit.question
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="folder of a run")
    what.add_argument(
        "--self-test", action="store_true", help="audit broken builds; all must be caught"
    )
    parser.add_argument("--out", type=Path, help="folder for the report; RUN/audits if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the self-test")
    given = parser.parse_args(arguments)
    if given.self_test:
        found = audit.self_test(given.seed)
        total = counts({audit.name: found})
        say(*(f"{name}: {verdict.value}" for name, verdict in found.items()), json.dumps(total))
        return 0 if total["caught"] == total["required"] and not total["false_alarms"] else 1
    result = audit.audit(given.run)
    made = write(result, given.out or given.run / "audits")
    say(
        f"{audit.name}: {result.verdict.value}",
        *result.missing,
        *(f"fails: {c.name}: {c.detail}" for c in result.checks if not c.holds),
        f"report: {made[1]}",
    )
    return result.verdict.exit_code


def say(*lines: str) -> None:
    """Write lines to standard output."""
    sys.stdout.write("\n".join(lines) + "\n")
