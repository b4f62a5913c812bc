"""`fedtree-secure demo`: the main job on a real model and real text, with references, on one
machine.
"""

import shutil
from pathlib import Path

from fedtree_dp import PrivacyBudget
from fedtree_secure.config import Lora, Topology, Training
from fedtree_secure.demo.data import TASKS, demo_clients, minilm_folder
from fedtree_secure.demo.packages import require
from fedtree_secure.embedded.progress import Observer
from fedtree_secure.errors import RunFolderError
from fedtree_secure.federation import Federation
from fedtree_secure.report.summary import Result
from fedtree_secure.storage import read_json


def demo_job() -> Federation:
    """Nine clients on three tasks, epsilon 8 and delta 1e-5 for each."""
    return Federation(
        minilm_folder(),
        PrivacyBudget(epsilon=8.0, delta=1e-5),
        rounds=2,
        lora=Lora(r=2, alpha=32.0),
        training=Training(max_length=32, sample_rate=0.25),
        topology=Topology(),
    )


def run_demo(out: Path, observer: Observer | None = None, *, resume: bool = False) -> Result:
    """Run the demo into ``out``; an earlier demo there is replaced (its text is public, so its
    ledgers guard nothing).

    Raises:
        RunFolderError: ``out`` holds something else than an earlier demo.
        DataError: A package that carries text or weights is not installed; nothing was touched.
    """
    require()
    if out.exists() and any(out.iterdir()) and not resume:
        if not _is_demo(out):
            raise RunFolderError(
                f"{out} holds something that is no earlier demo; choose another folder with --out"
            )
        shutil.rmtree(out)
    job = demo_job()
    return job.simulate(demo_clients(), out, resume=resume, observer=observer)


def _is_demo(folder: Path) -> bool:
    """Whether a folder was made by the demo, also by one that was interrupted."""
    path = folder / "job.json"
    if not path.exists():
        return False
    stored = read_json(path)
    return bool(stored.get("simulate")) and all(
        name.rsplit("-", 1)[0] in TASKS for name in stored.get("clients", [""])
    )
