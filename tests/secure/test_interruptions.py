"""Ctrl-C, kill -9 and a second process: what a run folder survives, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_jobs import Adversary, make_clients, make_job, scripted

from fedtree_secure import RunFolderError, RunStopped


def test_ctrl_c_finishes_the_round_and_resume_goes_on(tiny_bert, tmp_path):
    class Interrupter(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-1/mask":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return super().exchange(stage, requests)

    job = make_job(tiny_bert)
    with pytest.raises(RunStopped, match="resume"):
        job.run(make_clients(), tmp_path / "run", wrap_transport=Interrupter)
    wrap, made = scripted()
    result = job.run(make_clients(), tmp_path / "run", resume=True, wrap_transport=wrap)
    assert not any(stage.startswith("round-1/") or stage == "sketch" for stage, _, _ in made[0].seen)
    assert [record["round"] for record in result.data["rounds"]] == [1, 2]
    for report in result.data["clients"].values():
        assert sum(e["steps"] for e in report["events"] if "steps" in e) == 8 + 2


def test_a_tree_that_some_have_accepted_is_announced_again(tiny_bert, tmp_path):
    """New sketches would cost budget a second time and may give another tree, which those clients must refuse."""
    heard = []

    class Crash(Adversary):
        def exchange(self, stage, requests):
            if stage != "tree":
                return super().exchange(stage, requests)
            heard.extend(requests.values())
            super().exchange(stage, dict(list(requests.items())[:3]))
            raise OSError("the server went down")

    job = make_job(tiny_bert)
    with pytest.raises(OSError, match="went down"):
        job.run(make_clients(), tmp_path / "run", wrap_transport=Crash)
    wrap, made = scripted()
    result = job.run(make_clients(), tmp_path / "run", resume=True, wrap_transport=wrap)
    assert not any(stage.startswith("sketch") for stage, _, _ in made[0].seen)
    assert [set(requests.values()) for stage, requests, _ in made[0].seen if stage == "tree"] == [set(heard)]
    assert all(len([e for e in r["events"] if "steps" not in e]) == 1 for r in result.data["clients"].values())


CHILD = """
import sys; sys.path[:0] = {tests!r}
from small_jobs import make_clients, make_job
make_job({model!r}, rounds=3).run(make_clients(), {out!r}, resume={resume})
print("finished", flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_and_undercounts_nothing(tiny_bert, tmp_path):
    """kill -9 at several moments: every round that a server may have seen is in every ledger, no finished one twice."""
    out = tmp_path / "run"

    def start():
        folders = [str(folder) for folder in Path(__file__).parents[:2]]
        code = CHILD.format(tests=folders, model=str(tiny_bert), out=str(out), resume=out.exists())
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    rng, kills = np.random.default_rng(5), 0
    for wanted in sorted(rng.choice(np.arange(4, 110), size=3, replace=False)):
        child = start()
        transcript = out / "transcript.txt"
        while child.poll() is None and (not transcript.exists() or transcript.read_text().count("\n") < wanted):
            time.sleep(0.005)
        if child.poll() is None:
            child.kill()
            kills += 1
        child.communicate()
    child = start()
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    assert kills >= 2
    summary = json.loads((out / "summary.json").read_text())
    lines = [line.split() for line in (out / "transcript.txt").read_text().splitlines()[1:]]
    assert [record["round"] for record in summary["rounds"]] == [1, 2, 3]
    for client, report in summary["clients"].items():
        uploads = {stage for _, sender, _, stage, _, _ in lines if sender == client and stage.endswith("/mask")}
        charged = sum(e["steps"] for e in report["events"] if "steps" in e) - 8
        assert charged >= len(uploads)
        assert report["epsilon_spent"] <= report["epsilon_allowed"]


def test_two_processes_cannot_hold_one_folder(tiny_bert, tmp_path):
    from fedtree_secure.storage import held

    with held(tmp_path / "run"), pytest.raises(RunFolderError, match="in use"):
        make_job(tiny_bert).run(make_clients(), tmp_path / "run")
