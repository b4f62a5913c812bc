"""Remove each guard in turn and see its test fail: `python tests/secagg/mutants.py [part of a
mutant's name ...]`.

A mutant is one replacement in the source of the package, applied to a copy in a temporary folder,
and the tests that must notice. A mutant that survives means that a guard is not tested; the script
then ends with status 1. First all named tests must pass on the unchanged copy, so that a failure
means what it says.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutant import Mutant
from mutants_of_guards import GUARDS
from mutants_of_sketches import SKETCHES
from mutants_of_sparse_graphs import SPARSE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "secagg" / "fedtree_secagg"
MUTANTS = (*GUARDS, *SKETCHES, *SPARSE)


def run_tests(folder: Path, within: str, expression: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--rootdir",
        str(ROOT),
    ]
    command += [*map(str, sorted(HERE.rglob(within))), "-k", expression]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode


def copy_of_package(folder: Path) -> Path:
    shutil.copytree(
        PACKAGE, folder / "fedtree_secagg", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def try_mutant(mutant: Mutant) -> str:
    """Return an empty string when the mutant was noticed, otherwise what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_of_package(Path(scratch))
        path = folder / "fedtree_secagg" / mutant.file
        source = path.read_text()
        if source.count(mutant.old) != 1:
            times = source.count(mutant.old)
            return f"its text occurs {times} times in {mutant.file}: update the mutant"
        path.write_text(source.replace(mutant.old, mutant.new))
        code = run_tests(folder, mutant.within, mutant.tests)
    return {1: "", 0: "SURVIVED", 5: "no test matches its expression"}.get(
        code, f"pytest ended with {code}"
    )


def baseline(mutants: list[Mutant]) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_of_package(Path(scratch))
        found = True
        for within in sorted({m.within for m in mutants}):
            expression = " or ".join(
                sorted({f"({m.tests})" for m in mutants if m.within == within})
            )
            found &= run_tests(folder, within, expression) == 0
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    chosen = [
        m for m in MUTANTS if not arguments.names or any(part in m.name for part in arguments.names)
    ]
    if not baseline(chosen):
        print("the tests fail without any mutation: repair them first")
        return 1
    failures = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, problem in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            failures += bool(problem)
            print(
                f"{'FAIL' if problem else 'ok  '} {mutant.name}{': ' + problem if problem else ''}",
                flush=True,
            )
    print(f"{len(chosen) - failures} of {len(chosen)} mutants noticed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
