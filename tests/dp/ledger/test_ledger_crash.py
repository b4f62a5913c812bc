"""Power loss and races: a killed process has never reported a charge that the ledger lacks; two
never overspend.
"""

import random
import shutil
import subprocess
import sys
import textwrap

import pytest

from fedtree_dp import Gaussian, Ledger, LedgerError, PrivacyBudget, epsilon_of

BUDGET = PrivacyBudget(epsilon=2, delta=1e-5)

# Forked from one warm process, because importing the accountants takes longer than all 20 lives
# together.
CHILDREN = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from fedtree_dp import BudgetExceeded, Gaussian, Ledger, PrivacyBudget, epsilon_of

    path, mode, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    budget = PrivacyBudget(epsilon=2, delta=1e-5)
    event = Gaussian({"kill": 1000.0, "race": 15.0}[mode])
    epsilon_of([event], 1e-5)

    gate, opener = os.pipe()

    def live(name, report):
        os.close(opener)
        os.read(gate, 1)  # until every life is born
        count = 0
        with Ledger.open(path, dataset="d", budget=budget) as ledger:
            while True:
                try:
                    ledger.charge(event, job=name, purpose=f"{count}")
                except BudgetExceeded:
                    break
                count += 1
                os.write(report, f"{name}\\n".encode())  # reported only after charge has returned
                if mode == "race":
                    time.sleep(0.003)  # so that both get their turns
        os._exit(0)

    def start(name, report):
        child = os.fork()
        if child == 0:
            live(name, report)
        return child

    draw = random.Random(seed)
    if mode == "kill":
        for number in range(20):
            gate, opener = os.pipe()
            heard, report = os.pipe()
            child = start(f"life{number}", report)
            os.close(opener)
            os.close(report)
            said = b""
            if number % 2:  # a moment after some charges, or any moment from birth on
                while said.count(b"\\n") < draw.randint(1, 6):
                    said += os.read(heard, 100)
            time.sleep(draw.uniform(0.0, 0.03 if number % 2 else 0.12))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            while more := os.read(heard, 100):
                said += more
            os.write(1, said)
    else:
        children = [start("left", 1), start("right", 1)]
        os.close(opener)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
    """
)


def run(path, mode, seed):
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, str(path), mode, str(seed)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.split()


def test_twenty_kills_never_undercount(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    reported = run(tmp_path / "ledger", "kill", seed)
    with Ledger.open(tmp_path / "ledger", dataset="d", budget=BUDGET) as ledger:
        ledger.verify()
        held = [entry.job for entry in ledger.entries() if entry.kind == "charge"]
    assert len(set(reported)) >= 10, "too few lives got far enough to charge anything"
    for life in {*held, *reported}:
        # a life may have died after its commit and before its report, or in a commit that the next
        # open rolled back
        assert reported.count(life) <= held.count(life) <= reported.count(life) + 1, (
            f"seed {seed}, {life}"
        )


def test_two_processes_never_exceed_the_budget_together(tmp_path):
    reported = run(tmp_path / "ledger", "race", 0)
    with Ledger.open(tmp_path / "ledger", dataset="d", budget=BUDGET) as ledger:
        ledger.verify()
        held = [entry.job for entry in ledger.entries() if entry.kind == "charge"]
        assert sorted(held) == sorted(reported)
        assert ledger.spent() <= 2
        most = len(held)
    assert (
        epsilon_of([Gaussian(15)] * most, 1e-5) <= 2 < epsilon_of([Gaussian(15)] * (most + 1), 1e-5)
    )
    assert set(held) == {"left", "right"}


def test_an_interrupted_write_is_rolled_back_by_the_next_writer(tmp_path):
    """What a power cut in the middle of a commit leaves: changed pages in the file, the old ones in
    the journal.
    """
    path, cut = tmp_path / "ledger", tmp_path / "cut"
    with Ledger.open(path, dataset="d", budget=BUDGET) as ledger:
        for index in range(3):
            ledger.charge(Gaussian(100), job="j", purpose=f"{index}")
        before = ledger.entries()
        connection = ledger._connection
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("BEGIN IMMEDIATE")
        for sequence in range(
            4, 200
        ):  # more pages than the cache holds, so that some reach the file uncommitted
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?)", (sequence, b"x" * 3000, b"h" * 32)
            )
        shutil.copy(path, cut)
        shutil.copy(f"{path}-journal", f"{cut}-journal")
        connection.execute("ROLLBACK")
    assert cut.stat().st_size > 10 * 4096
    with pytest.raises(LedgerError, match="cannot be used now"):
        Ledger.inspect(cut)
    with Ledger.open(cut, dataset="d", budget=BUDGET) as ledger:
        assert ledger.entries() == before
        ledger.charge(Gaussian(100), job="j", purpose="after the cut")
    with Ledger.inspect(cut) as ledger:
        assert len(ledger.events()) == 4
