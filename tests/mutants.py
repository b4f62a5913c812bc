"""Remove each guard in turn and see its test fail: `python tests/mutants.py [--package secagg]
[part of a mutant's name ...]`.

A mutant is one replacement in the source of a package, applied to a copy in a temporary folder,
and the tests that must notice. A mutant that survives means that a guard is not tested; the script
then ends with status 1. First all named tests must pass on the unchanged copy, so that a failure
means what it says; where they do not, their mutants are not tried and count as unnoticed.
`the_copy.py` sees to it that the copy is what the tests import.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), *(str(HERE / tests) for tests in ("secagg", "dp", "secure"))]

from mutant import Mutant  # noqa: E402
from mutants_of_advice import ADVICE  # noqa: E402
from mutants_of_agreed import AGREED  # noqa: E402
from mutants_of_ahead import AHEAD_OF_TIME  # noqa: E402
from mutants_of_budgets import CLIENTS_BUDGETS  # noqa: E402
from mutants_of_class_sums import CLASS_SUMS, CLASS_SUMS_IN_DP  # noqa: E402
from mutants_of_client import CLIENT  # noqa: E402
from mutants_of_cohort import COHORT  # noqa: E402
from mutants_of_contents import CONTENTS  # noqa: E402
from mutants_of_cuts import OF_CUTS  # noqa: E402
from mutants_of_engine import ENGINE  # noqa: E402
from mutants_of_evidence import BUDGETS, EVIDENCE  # noqa: E402
from mutants_of_gradients import GRADIENTS  # noqa: E402
from mutants_of_journal import JOURNAL  # noqa: E402
from mutants_of_kept import KEPT  # noqa: E402
from mutants_of_late_context import LATE_CONTEXT  # noqa: E402
from mutants_of_ledger import LEDGER  # noqa: E402
from mutants_of_model import MODEL  # noqa: E402
from mutants_of_product import PRODUCT  # noqa: E402
from mutants_of_server import SERVER  # noqa: E402
from mutants_of_sessions import SESSIONS  # noqa: E402
from mutants_of_shared_noise import SHARED_IN_DP, SHARED_IN_THE_PRODUCT  # noqa: E402
from mutants_of_site import SITES  # noqa: E402
from mutants_of_sketches import SKETCHES  # noqa: E402
from mutants_of_sparse_graphs import SPARSE  # noqa: E402
from mutants_of_sparse_runs import SPARSE_RUNS  # noqa: E402
from mutants_of_survivors import SURVIVORS  # noqa: E402
from mutants_of_units import OF_UNITS, OF_UNITS_IN_THE_PRODUCT  # noqa: E402
from mutants_of_watching import WATCHING  # noqa: E402
from warm_pytest import Task, run_each  # noqa: E402

SOURCES = [str(ROOT / folder) for folder in (".", "secagg", "dp", "audits")]
LONGEST_S = 900
NOTHING_FOUND = 5  # pytest's own exit status
FAILURE = re.compile(r"^(?:FAILED|ERROR) .*?(?:- (.*))?$", re.MULTILINE)


@dataclass(frozen=True)
class Group:
    """The mutants of one package.

    Attributes:
        package: Its folder.
        tests: The folder of its tests.
        mutants: All of them.
    """

    package: Path
    tests: Path
    mutants: tuple[Mutant, ...]


GROUPS = {
    "secagg": Group(
        ROOT / "secagg" / "fedtree_secagg",
        HERE / "secagg",
        (*SURVIVORS, *SESSIONS, *CONTENTS, *JOURNAL, *SKETCHES, *SPARSE, *LATE_CONTEXT),
    ),
    "dp": Group(
        ROOT / "dp" / "fedtree_dp",
        HERE / "dp",
        (*ENGINE, *LEDGER, *BUDGETS, *OF_UNITS, *SHARED_IN_DP, *CLASS_SUMS_IN_DP),
    ),
    "secure": Group(
        ROOT / "fedtree_secure",
        HERE / "secure",
        (
            *(*MODEL, *CLIENT, *AGREED, *OF_CUTS, *GRADIENTS, *SERVER, *EVIDENCE, *SITES),
            *(*PRODUCT, *OF_UNITS_IN_THE_PRODUCT, *WATCHING, *SHARED_IN_THE_PRODUCT, *COHORT),
            *(*SPARSE_RUNS, *ADVICE, *AHEAD_OF_TIME, *CLIENTS_BUDGETS, *CLASS_SUMS, *KEPT),
        ),
    ),
}


def task_of(group: Group, copy: Path, name: str, within: str, expression: str) -> Task:
    """Return the run of pytest that tries some tests of one file on a copy."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "the_copy", "--no-header"]
    files = map(str, sorted(group.tests.rglob(within)))
    return Task(
        name,
        [*options, f"--rootdir={ROOT}", f"--confcutdir={ROOT}", *files, "-k", expression],
        [str(copy.parent), *SOURCES, str(HERE)],
        copy.parent,
        {
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "500",  # or pytest leaves out why a test failed
            "FEDTREE_COPY": str(copy),
        },
        LONGEST_S,
    )


def reason(output: str) -> str:
    """Return why the first test failed, as pytest printed it."""
    why = FAILURE.search(output)
    return (why[1] or "") if why else output[-600:]


class Copies:
    """Copies of one package, each in a folder of its own until its tests have run."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._folders: dict[str, Path] = {}

    def new(self, name: str) -> Path:
        folder = Path(tempfile.mkdtemp()).resolve()
        self._folders[name] = folder
        copy = folder / self.group.package.name
        shutil.copytree(self.group.package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        return copy

    def done(self, name: str) -> None:
        shutil.rmtree(self._folders.pop(name))


def unchanged(group: Group, mutants: Sequence[Mutant], copies: Copies) -> Iterator[Task]:
    """Yield what the mutants name, a file at a time, on unchanged copies."""
    for within in sorted({m.within for m in mutants}):
        expression = " or ".join(sorted({f"({m.tests})" for m in mutants if m.within == within}))
        yield task_of(group, copies.new(within), within, within, expression)


def changed(group: Group, mutants: Sequence[Mutant], copies: Copies) -> Iterator[Task]:
    """Yield the tests of each mutant, on a copy that it has changed."""
    for mutant in mutants:
        copy = copies.new(mutant.name)
        path = copy / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
        yield task_of(group, copy, mutant.name, mutant.within, mutant.tests)


def try_group(group: Group, parts: Sequence[str], jobs: int) -> tuple[int, int]:
    """Try the mutants whose name holds one of some parts; return how many, and how many failed."""
    chosen = [m for m in group.mutants if not parts or any(part in m.name for part in parts)]
    copies, broken = Copies(group), set()
    for task, outcome in run_each(unchanged(group, chosen, copies), jobs):
        copies.done(task.name)
        if outcome.status:
            broken.add(task.name)
            print(f"fails without any mutation: {task.name}: {reason(outcome.output)}")
    usable = [m for m in chosen if m.within not in broken]
    failures = len(chosen) - len(usable)
    for mutant in usable[:]:
        times = (group.package / mutant.file).read_text().count(mutant.old)
        if times != 1:
            print(f"FAIL {mutant.name}: its text occurs {times} times in {mutant.file}: update it")
            usable.remove(mutant)
            failures += 1
    for task, outcome in run_each(changed(group, usable, copies), jobs):
        copies.done(task.name)
        why = reason(outcome.output)
        known = {1: "", 0: "SURVIVED", NOTHING_FOUND: "no test matches its expression"}
        problem = known.get(outcome.status, f"pytest ended with {outcome.status}: {why}")
        failures += bool(problem)
        line = f"FAIL {task.name}: {problem}" if problem else f"ok   {task.name} ({why})"
        print(line, flush=True)
    return len(chosen), failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name holds one of these")
    parser.add_argument("--package", choices=GROUPS, action="append", help="only those of it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    tried = failed = 0
    for name in given.package or GROUPS:
        began = time.monotonic()
        count, failures = try_group(GROUPS[name], given.names, given.jobs)
        seconds = time.monotonic() - began
        print(f"{name}: {count - failures} of {count} mutants noticed in {seconds:.0f} s")
        tried, failed = tried + count, failed + failures
    if not tried:
        print("no mutant has such a name")
    return 1 if failed or not tried else 0


if __name__ == "__main__":
    raise SystemExit(main())
