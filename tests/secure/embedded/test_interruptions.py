"""Ctrl-C, kill -9 and a second process: what a run folder survives, and what it refuses."""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_jobs import Adversary, LyingServer, federation, make_clients, scripted

from fedtree_dp import Ledger
from fedtree_secure import RunFolderError, RunStopped, Topology, Training
from fedtree_secure.embedded.progress import Silent

ONE = Topology(source="one_group")
WEIGHS_NOISE = {
    "topology": Topology(sketch_size=64, gradient_sketch_size=256),
    "training": Training(records=60, head_steps=8, max_length=16),
}


def test_ctrl_c_finishes_the_round_and_resume_goes_on(tiny_bert, tmp_path):
    class Interrupter(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-1/mask":
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return super().exchange(stage, requests)

    job = federation(tiny_bert)
    with pytest.raises(RunStopped, match="resume"):
        job.run(make_clients(), tmp_path / "run", wrap_transport=Interrupter)
    wrap, made = scripted()
    result = job.run(make_clients(), tmp_path / "run", resume=True, wrap_transport=wrap)
    assert not any(
        stage.startswith("round-1/") or stage == "sketch" for stage, _, _ in made[0].seen
    )
    assert [record["round"] for record in result.data["rounds"]] == [1, 2]
    for report in result.data["clients"].values():
        assert sum(e["steps"] for e in report["events"] if "steps" in e) == 8 + 2


class Watcher(Silent):
    """Presses Ctrl-C at the first step of a stage, and keeps what it is told."""

    def __init__(self, stage):
        self.wanted, self.at, self.notes, self.steps = stage, "", [], 0

    def stage(self, name, total):
        self.at = name

    def step(self):
        if self.at.startswith(self.wanted):
            self.steps += 1
            if self.steps == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

    def note(self, text):
        self.notes.append(text)


def test_ctrl_c_acts_between_clients_and_says_so_at_once(tiny_bert, tmp_path, stores):
    """While heads are trained: the first client's is kept, the second does not begin."""
    job, watcher = federation(tiny_bert, rounds=1, topology=ONE), Watcher("heads")
    with pytest.raises(RunStopped, match="before client t0-c1"):
        job.run(make_clients(tasks=1), tmp_path / "run", observer=watcher)
    assert watcher.steps == 8
    assert watcher.notes == [
        "stopping after client t0-c0 (prepare): nothing is lost. Press Ctrl-C again to stop at once"
    ]
    assert charges(stores, "t0-c0") == {"head": 1}
    assert charges(stores, "t0-c1") == {}
    again = Watcher("local")
    result = job.run(make_clients(tasks=1), tmp_path / "run", resume=True, observer=again)
    (told,) = again.notes
    assert told == (
        "stopping after this round (t0-c0, round-1/mask): its clients are charged for it, and "
        "stopping now would waste that. Press Ctrl-C again to stop at once"
    )
    assert [bool(record["opened"]) for record in result.data["rounds"]] == [True]
    for client in result.data["clients"]:
        assert charges(stores, client) == {"head": 1, "round 1": 1}


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_after_it(tiny_bert, tmp_path, stores):
    """A real refusal of the system: no file may grow beyond what the store has now."""

    class Full(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-1/confirm":
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
                try:
                    (tmp_path / "run" / "server" / "more").write_text("more")
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return super().exchange(stage, requests)

    job = federation(tiny_bert, rounds=1, topology=ONE)
    with pytest.raises(RunStopped, match=r"File too large.*resume=True"):
        job.run(make_clients(tasks=1), tmp_path / "run", wrap_transport=Full)
    result = job.run(make_clients(tasks=1), tmp_path / "run", resume=True)
    assert all(report["epsilon_spent"] <= 8 for report in result.data["clients"].values())


class Crash(Adversary):
    """A server that goes down once ``answered`` clients have answered in a stage."""

    def __init__(self, inner, stage, answered=3):
        super().__init__(inner)
        self.stage, self.answered, self.asked = stage, answered, {}

    def exchange(self, stage, requests):
        if stage != self.stage:
            return super().exchange(stage, requests)
        self.asked = requests
        super().exchange(stage, dict(list(requests.items())[: self.answered]))
        raise OSError("the server went down")


def crashed(job, out, *script, resume=False):
    """Run a job until its server goes down; return the transport."""
    made = []
    with pytest.raises(OSError, match="went down"):
        job.run(
            make_clients(),
            out,
            resume=resume,
            wrap_transport=lambda t: made.append(Crash(t, *script)) or made[0],
        )
    return made[0]


def charges(stores, client):
    """How often each purpose was charged to a client's data set."""
    with Ledger.inspect(stores / client / "store.sqlite") as ledger:
        return Counter(entry.purpose for entry in ledger.entries() if entry.purpose)


WARM_UP = Topology(source="lora_b", warmup_steps=2, sketch_size=64, linkage="average")


@pytest.mark.parametrize(
    ("topology", "rounds", "stage", "answered"),
    [
        (None, 1, "sketch", 3),
        (None, 1, "prepare", 3),
        (None, 1, "round-1/mask", 0),
        (None, 2, "round-2/mask", 0),
        (None, 1, "finish", 3),
        (WARM_UP, 1, "sketch", 6),
        (WARM_UP, 1, "tree", 3),
        (WARM_UP, 1, "round-0/share", 3),
    ],
)
def test_a_server_that_goes_down_before_an_upload_costs_nothing(
    tiny_bert, tmp_path, stores, topology, rounds, stage, answered
):
    """Sketches are made again from what was charged; if they were charged again, the last round had
    no budget.
    """
    job = federation(tiny_bert, rounds=rounds, **({"topology": topology} if topology else {}))
    crashed(job, tmp_path / "run", stage, answered)
    result = job.run(make_clients(), tmp_path / "run", resume=True)
    first = 0 if topology else 1  # a warm-up is merged in a round of its own
    made = list(range(first, rounds + 1))
    assert [record["round"] for record in result.data["rounds"]] == made
    assert all(record["opened"] and not record["error"] for record in result.data["rounds"])
    vectors = "warm-up" if topology else "fingerprint"
    for client in result.data["clients"]:
        assert charges(stores, client) == {
            vectors: 1,
            "head": 1,
            **{f"round {number}": 1 for number in range(1, rounds + 1)},
        }


@pytest.mark.parametrize(
    ("topology", "stage", "outcome"),
    [
        (Topology(source="one_group"), "round-1/mask", {1: True, 2: False}),
        (WARM_UP, "round-0/mask", {0: False, 1: True, 2: True}),
    ],
)
def test_an_update_that_may_have_been_uploaded_is_never_sent_again(
    tiny_bert, tmp_path, stores, topology, stage, outcome
):
    """secagg/SPEC.md, section 7. A round is trained and charged anew; a warm-up is not, and its
    merge opens nothing.
    """
    job = federation(tiny_bert, topology=topology)
    crashed(job, tmp_path / "run", stage)
    result = job.run(make_clients(), tmp_path / "run", resume=True)
    assert {record["round"]: bool(record["opened"]) for record in result.data["rounds"]} == outcome
    for client, report in result.data["clients"].items():
        again = topology is not WARM_UP and client.startswith(
            "t0"
        )  # the three that were asked to upload
        assert charges(stores, client)["round 1"] == 1 + again
        assert report["epsilon_spent"] <= report["epsilon_allowed"]


def test_a_client_outside_of_every_group_keeps_its_warm_up(tiny_bert, tmp_path):
    """A late answer: the client sketched, but the server did not hear of it; it trains alone."""
    seen = []

    class Watch(Adversary):
        def exchange(self, stage, requests):
            state = self.inner._inner._participants["t1-c2"].__self__.party.store.state
            if stage == "round-1/alone":
                seen.append((state.pending.copy(), state.own.copy()))
            replies = super().exchange(stage, requests)
            if stage == "round-1/alone":
                seen.append((state.pending, state.own.copy()))
            return replies

    def wrap(inner):
        return Watch(inner, lose={("sketch", "t1-c2", "after")})

    federation(tiny_bert, topology=WARM_UP).run(
        make_clients(), tmp_path / "run", wrap_transport=wrap
    )
    (pending, before), (left, after) = seen
    assert pending.any()
    assert left is None
    step = np.abs(after - before - pending).max()  # one round of Adam on top of it
    assert 0 < step < 2 * federation(tiny_bert).job.training.learning_rate


@pytest.mark.parametrize("changes", [{}, WEIGHS_NOISE], ids=["silhouette", "noise aware"])
def test_a_tree_that_some_have_accepted_is_announced_again(changes, tiny_bert, tmp_path):
    """New sketches, of gradients too, may give another tree, which those clients must refuse."""
    job = federation(tiny_bert, **changes)
    before = crashed(job, tmp_path / "run", "tree")
    wrap, made = scripted()
    job.run(make_clients(), tmp_path / "run", resume=True, wrap_transport=wrap)
    assert not any("sketch" in stage for stage, _, _ in made[0].seen)
    server = LyingServer(None, tmp_path / "run")
    (asked,) = [requests for stage, requests, _ in made[0].seen if stage == "tree"]
    told = {server.read(name, request).message for name, request in asked.items()}
    assert told == {server.read(name, request).message for name, request in before.asked.items()}


def test_a_charge_gives_a_bounded_number_of_sketches(tiny_bert, tmp_path, stores):
    """A server that pretends to go down, with a member on its side, would see all of the vectors in
    the end.
    """
    job = federation(tiny_bert)
    for number in range(3):
        crashed(job, tmp_path / "run", "sketch", 6, resume=number > 0)
    with pytest.raises(RunStopped, match="no distances"):
        job.run(make_clients(), tmp_path / "run", resume=True)
    assert {charges(stores, client.id)["fingerprint"] for client in make_clients()} == {1}


# Attempts are forks of one process, so that everything is imported once: it takes a line for each,
# "fresh" or "resume", and prints the fork's number, then its exit status.
ATTEMPTS = """
import os, sys; sys.path[:0] = {tests!r}
from small_jobs import federation, make_clients
import torch; torch.set_num_threads(1)
job, clients = federation({model!r}, rounds=3), make_clients()
for line in sys.stdin:
    child = os.fork()
    if not child:
        job.run(clients, {out!r}, resume=line.strip() == "resume")
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_and_undercounts_nothing(tiny_bert, tmp_path):
    """kill -9 at several moments: every round that a server may have seen is in every ledger, no
    finished one twice.
    """
    out = tmp_path / "run"
    transcript = out / "transcript.txt"
    folders = [str(folder) for folder in Path(__file__).parents[1:3]]
    code = ATTEMPTS.format(tests=folders, model=str(tiny_bert), out=str(out))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    attempts = subprocess.Popen([sys.executable, "-c", code], **pipes)

    def attempt():
        attempts.stdin.write(b"resume\n" if (out / "job.json").exists() else b"fresh\n")
        return int(attempts.stdout.readline())

    def outcome():
        return os.waitstatus_to_exitcode(int(attempts.stdout.readline()))

    def is_over():
        return bool(select.select([attempts.stdout], [], [], 0.005)[0])

    rng, kills = np.random.default_rng(5), 0
    for wanted in sorted(rng.choice(np.arange(4, 110), size=3, replace=False)):
        child = attempt()
        while not is_over():
            if transcript.exists() and transcript.read_text().count("\n") >= wanted:
                os.kill(child, signal.SIGKILL)
                break
        kills += outcome() == -signal.SIGKILL
    attempt()
    assert outcome() == 0
    attempts.stdin.close()
    assert attempts.wait() == 0
    attempts.stdout.close()
    assert kills >= 2
    summary = json.loads((out / "summary.json").read_text())
    lines = [line.split() for line in (out / "transcript.txt").read_text().splitlines()[1:]]
    assert [record["round"] for record in summary["rounds"]] == [1, 2, 3]
    for client, report in summary["clients"].items():
        uploads = {
            stage
            for _, sender, _, stage, _, _ in lines
            if sender == client and stage.endswith("/mask")
        }
        charged = sum(e["steps"] for e in report["events"] if "steps" in e) - 8
        assert charged >= len(uploads)
        assert report["epsilon_spent"] <= report["epsilon_allowed"]


def test_two_processes_cannot_hold_one_folder(tiny_bert, tmp_path):
    from fedtree_secure.storage import held

    with held(tmp_path / "run"), pytest.raises(RunFolderError, match="in use"):
        federation(tiny_bert).run(make_clients(), tmp_path / "run")
