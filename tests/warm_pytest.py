"""Runs pytest many times, each in a fork of a process that has imported the libraries.

Importing torch, peft and what they pull in takes longer than most of the tests that `mutants.py`
runs. Nothing of ours is imported before the fork, and no thread is started (one is what a fork
cannot carry over), so a fork sees what a new process would see.
"""

import importlib
import itertools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = (
    *("numpy", "scipy.stats", "torch", "transformers", "peft", "opacus", "datasets", "safetensors"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "dp_accounting", "matplotlib.pyplot"),
    *("typer", "rich.progress", "pydantic", "pytest"),
)
# Some libraries bring plugins of pytest along, which it would like to import itself.
ALLOWED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
OURS = "fedtree_"


@dataclass(frozen=True)
class Task:
    """One run of pytest.

    Attributes:
        name: How its outcome is found again.
        arguments: Of pytest.
        path: Folders to import from, before all others.
        folder: To work in.
        environment: Variables to add.
        longest_s: Seconds after which it is killed.
    """

    name: str
    arguments: Sequence[str]
    path: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    longest_s: int = 900


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest came to: its exit status, negative for a signal, and what it printed."""

    status: int
    output: str


def run_each(tasks: Iterator[Task], jobs: int) -> Iterator[tuple[Task, Outcome]]:
    """Run tasks, ``jobs`` at a time, and yield each when it has ended; the next is taken then."""
    _import_libraries()
    at_work: dict[int, tuple[Task, Path]] = {}
    numbers = itertools.count()
    waiting = True
    with tempfile.TemporaryDirectory() as folder:
        while waiting or at_work:
            while waiting and len(at_work) < jobs:
                task = next(tasks, None)
                if task is None:
                    waiting = False
                    break
                printed = Path(folder) / f"{next(numbers)}.txt"
                at_work[_fork(task, printed)] = task, printed
            if at_work:
                pid, status = os.waitpid(-1, 0)
                task, printed = at_work.pop(pid)
                text = printed.read_text(errors="replace")
                yield task, Outcome(os.waitstatus_to_exitcode(status), text)


def _import_libraries() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, at import; see conftest.py
    for name in LIBRARIES:
        importlib.import_module(name)
    loaded = sorted(name for name in sys.modules if name.startswith(OURS))
    if loaded:
        raise RuntimeError(f"{loaded} are imported before the fork: the tests would not see theirs")
    importlib.import_module("torch").set_num_threads(1)


def _fork(task: Task, printed: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        signal.alarm(task.longest_s)
        screen = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(screen, 1)
        os.dup2(screen, 2)
        os.chdir(task.folder)
        os.environ.update(task.environment, PYTHONPATH=os.pathsep.join(task.path))
        # What a new interpreter with this PYTHONPATH would have first, and nothing of the parent's.
        sys.path[:0] = [str(task.folder), *task.path]
        sys.dont_write_bytecode = True
        importlib.invalidate_caches()
        status = int(importlib.import_module("pytest").main([*ALLOWED, *task.arguments]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
