"""`python -m fedtree_audits.self_test`: every audit against every broken build, as a matrix.

The last line is one JSON object: how many broken variants there are, how many were caught (FAIL,
not INCONCLUSIVE), and how often a correct build did not pass. Exit code 0 only if all were caught
and none was raised falsely.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from fedtree_audits.command import CORRECT, NAMES, audit_named, counts, say
from fedtree_audits.statistics.verdict import Verdict

SHOWN = {Verdict.FAIL: "caught", Verdict.PASS: "NOT caught", Verdict.INCONCLUSIVE: "inconclusive"}


def run(names: Sequence[str], seeds: Sequence[int], workers: int = 1) -> dict[str, int]:
    """Print a line for each audit and variant, with one verdict for each seed, and return the
    totals.

    Args:
        names: audits.
        seeds: each audit runs once with each.
        workers: processes; more than one share the seeds among themselves.
    """
    total = {"required": 0, "caught": 0, "false_alarms": 0}
    with _pool(workers) as each:
        for name in names:
            verdicts = list(each(functools.partial(_verdicts, name), seeds))
            for variant in verdicts[0]:
                given = [found[variant] for found in verdicts]
                words = [v.value if variant == CORRECT else SHOWN[v] for v in given]
                shown = ", ".join(f"{words.count(word)}x {word}" for word in dict.fromkeys(words))
                say(f"{name:18} {variant:38} {shown}")
            for found in verdicts:
                for key, value in counts({name: found}).items():
                    total[key] += value
    return total


def _verdicts(name: str, seed: int) -> dict[str, Verdict]:
    return audit_named(name).self_test(seed)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a `map` that runs here, or in fresh processes with one thread each."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        yield pool.map


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="fedtree_audits.self_test", description=__doc__)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="audits to run")
    parser.add_argument(
        "--seeds", type=int, default=1, help="how many seeds each variant is run with"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the seeds")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or given.workers < 1:
        parser.error(f"--seeds {given.seeds} and --workers {given.workers} must be at least 1")
    total = run(given.only, range(given.first, given.first + given.seeds), given.workers)
    say(json.dumps(total))
    return 0 if total["caught"] == total["required"] and not total["false_alarms"] else 1


if __name__ == "__main__":
    sys.exit(main())
