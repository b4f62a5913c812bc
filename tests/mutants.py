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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), *(str(HERE / tests) for tests in ("secagg", "dp", "secure"))]

from mutant import Mutant  # noqa: E402
from mutants_of_agreed import AGREED  # noqa: E402
from mutants_of_client import CLIENT  # noqa: E402
from mutants_of_contents import CONTENTS  # noqa: E402
from mutants_of_cuts import OF_CUTS  # noqa: E402
from mutants_of_engine import ENGINE  # noqa: E402
from mutants_of_evidence import BUDGETS, EVIDENCE  # noqa: E402
from mutants_of_gradients import GRADIENTS  # noqa: E402
from mutants_of_journal import JOURNAL  # noqa: E402
from mutants_of_ledger import LEDGER  # noqa: E402
from mutants_of_model import MODEL  # noqa: E402
from mutants_of_product import PRODUCT  # noqa: E402
from mutants_of_server import SERVER  # noqa: E402
from mutants_of_sessions import SESSIONS  # noqa: E402
from mutants_of_shared_noise import SHARED_IN_DP, SHARED_IN_THE_PRODUCT  # noqa: E402
from mutants_of_site import SITES  # noqa: E402
from mutants_of_sketches import SKETCHES  # noqa: E402
from mutants_of_sparse_graphs import SPARSE  # noqa: E402
from mutants_of_survivors import SURVIVORS  # noqa: E402
from mutants_of_units import OF_UNITS, OF_UNITS_IN_THE_PRODUCT  # noqa: E402

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
        (*SURVIVORS, *SESSIONS, *CONTENTS, *JOURNAL, *SKETCHES, *SPARSE),
    ),
    "dp": Group(
        ROOT / "dp" / "fedtree_dp",
        HERE / "dp",
        (*ENGINE, *LEDGER, *BUDGETS, *OF_UNITS, *SHARED_IN_DP),
    ),
    "secure": Group(
        ROOT / "fedtree_secure",
        HERE / "secure",
        (
            *(*MODEL, *CLIENT, *AGREED, *OF_CUTS, *GRADIENTS, *SERVER, *EVIDENCE, *SITES),
            *(*PRODUCT, *OF_UNITS_IN_THE_PRODUCT, *SHARED_IN_THE_PRODUCT),
        ),
    ),
}


@contextmanager
def copy_of(package: Path) -> Iterator[Path]:
    """A copy of one package in a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch).resolve() / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        yield copy


def run_tests(group: Group, copy: Path, within: str, expression: str) -> tuple[int, str]:
    """Run some tests on a copy; return pytest's exit status and why the first one failed."""
    path = os.pathsep.join([str(copy.parent), *SOURCES, str(HERE)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "500",  # or pytest leaves out why a test failed
        "FEDTREE_COPY": str(copy),
    }
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "the_copy", "--no-header"]
    files = map(str, sorted(group.tests.rglob(within)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={ROOT}", *files, "-k", expression],
        cwd=copy.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    why = FAILURE.search(done.stdout)
    return done.returncode, (why[1] or "") if why else done.stdout[-300:] + done.stderr[-300:]


def try_mutant(group: Group, mutant: Mutant) -> tuple[str, str]:
    """Return what went wrong, empty when the mutant was noticed; and how it was noticed."""
    with copy_of(group.package) as copy:
        path = copy / mutant.file
        source = path.read_text()
        if source.count(mutant.old) != 1:
            times = source.count(mutant.old)
            return f"its text occurs {times} times in {mutant.file}: update the mutant", ""
        path.write_text(source.replace(mutant.old, mutant.new))
        code, why = run_tests(group, copy, mutant.within, mutant.tests)
    problems = {1: "", 0: "SURVIVED", NOTHING_FOUND: "no test matches its expression"}
    return problems.get(code, f"pytest ended with {code}: {why}"), why


def baseline(group: Group, within: str, mutants: Sequence[Mutant]) -> str:
    """Run what these mutants name in one file on the unchanged copy; return what went wrong."""
    expression = " or ".join(sorted({f"({m.tests})" for m in mutants if m.within == within}))
    with copy_of(group.package) as copy:
        code, why = run_tests(group, copy, within, expression)
    return f"{within}: {why}" if code else ""


def try_group(group: Group, parts: Sequence[str], jobs: int) -> tuple[int, int]:
    """Try the mutants whose name holds one of some parts; return how many, and how many failed."""
    chosen = [m for m in group.mutants if not parts or any(part in m.name for part in parts)]
    files = sorted({m.within for m in chosen})
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda within: baseline(group, within, chosen), files)
        broken = {within: problem for within, problem in zip(files, found, strict=True) if problem}
        for problem in broken.values():
            print(f"fails without any mutation: {problem}")
        usable = [m for m in chosen if m.within not in broken]
        failures = len(chosen) - len(usable)
        for mutant, (problem, why) in zip(
            usable, pool.map(lambda mutant: try_mutant(group, mutant), usable), strict=True
        ):
            failures += bool(problem)
            line = f"FAIL {mutant.name}: {problem}" if problem else f"ok   {mutant.name} ({why})"
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
