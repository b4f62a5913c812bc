"""One store and the world around it: other processes, kills, full disks, other users."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from fedtree_dp import Gaussian, Ledger, LedgerError, PrivacyBudget
from fedtree_dp.ledger import locks

BUDGET = PrivacyBudget(epsilon=8, delta=1e-5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clinic-a.ledger"


def opened(path, **changes):
    return Ledger.open(path, **({"dataset": "clinic-a", "budget": BUDGET} | changes))


# Forked from one warm process, because importing the accountants takes longer than all lives.
LIVES = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from fedtree_dp import Gaussian, Ledger, PrivacyBudget, epsilon_of

    path, head, seed, lives = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    event = Gaussian(1000.0)
    epsilon_of([event], 1e-5)

    def live(name, report):
        budget = PrivacyBudget(epsilon=8, delta=1e-5)
        with Ledger.open(path, dataset="clinic-a", budget=budget, head=head) as ledger:
            while True:
                with ledger.transaction() as current:
                    count = int(current.get("run", "counter") or b"0") + 1
                    current.put("run", "counter", b"%d" % count)
                    current.charge(event, job=name, purpose=f"{count}")
                    current.put("run", "values", b"%d" % count * 100_000)
                os.write(report, f"{count}\\n".encode())  # only after the transaction has ended

    draw = random.Random(seed)
    for number in range(lives):
        heard, report = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(heard)
            live(f"life{number}", report)
        os.close(report)
        said = b""
        while said.count(b"\\n") < draw.randint(0, 4):
            said += os.read(heard, 100)
        time.sleep(draw.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(heard, 100):
            said += more
        os.write(1, said)
        os.write(1, b"dead\\n")
        sys.stdin.readline()
    """
)


def test_after_any_kill_charges_and_state_agree_and_the_head_opens(path, tmp_path):
    seed, lives = random.SystemRandom().randrange(10**6), 15
    command = [sys.executable, "-c", LIVES, path, tmp_path / "head", f"{seed}", f"{lives}"]
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        reported = 0
        for _ in range(lives):
            while (line := child.stdout.readline().strip()) != "dead":
                reported = int(line)
            with opened(path, head=tmp_path / "head") as ledger:
                charged = len(ledger.events())
                assert int(ledger.get("run", "counter") or b"0") == charged, f"seed {seed}"
                assert (ledger.get("run", "values") or b"") == (b"%d" % charged * 100_000) * bool(
                    charged
                )
                # a life may have died after its commit and before its report
                assert reported <= charged <= reported + 1, f"seed {seed}"
                assert json.loads((tmp_path / "head").read_bytes())["size"] == charged + 1
                reported = charged
            child.stdin.write("\n")
            child.stdin.flush()
    assert child.returncode == 0
    assert charged >= 10, "too few transactions got far enough"


HOLD = textwrap.dedent(
    """
    import sys
    from fedtree_dp import Ledger
    with Ledger.open(sys.argv[1], dataset="clinic-a", exclusive=True) as ledger:
        print("held", flush=True)
        sys.stdin.readline()
    """
)


@contextlib.contextmanager
def held_elsewhere(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        with contextlib.suppress(BrokenPipeError):
            child.communicate("\n")


def test_hostile_a_second_process_is_refused_while_one_holds_the_store(path, monkeypatch):
    monkeypatch.setattr(locks, "_BRIEFLY_S", 0.02)
    with opened(path) as before, held_elsewhere(path) as holder:
        for use in (
            lambda: opened(path, exclusive=True),
            lambda: before.charge(Gaussian(50), job="j", purpose="p"),
            lambda: before.transaction().__enter__(),
        ):
            with pytest.raises(LedgerError, match="in use by another process; nothing was"):
                use()
        assert before.events() == ()
        with Ledger.inspect(path) as reader:
            assert reader.events() == ()
        holder.send_signal(signal.SIGKILL)  # a lock ends with its process, however it ends
        holder.wait()
        before.charge(Gaussian(50), job="j", purpose="p")
    with opened(path, exclusive=True) as ledger:
        ledger.charge(Gaussian(50), job="j", purpose="p")
        assert locks.lock_file(path).stat().st_mode & 0o777 == 0o600
        with pytest.raises(LedgerError, match="in use"), opened(path) as second:
            second.charge(Gaussian(50), job="j", purpose="p")
    with opened(path, exclusive=True) as ledger:
        assert len(ledger.events()) == 2


def test_a_refused_opening_lets_the_store_go(path):
    opened(path).close()
    with pytest.raises(LedgerError, match="not of 'clinic-b'"):
        opened(path, dataset="clinic-b", exclusive=True)
    copy = path.with_name("copy")
    copy.write_bytes(b"x" * 5000)
    with pytest.raises(LedgerError):
        opened(copy, exclusive=True)
    opened(path, exclusive=True).close()
    with pytest.raises(LedgerError, match="no ledger"):
        opened(copy, exclusive=True)


RACE = textwrap.dedent(
    """
    import sys
    from fedtree_dp import Gaussian, Ledger
    with Ledger.open(sys.argv[1], dataset="clinic-a", head=sys.argv[2]) as ledger:
        for _ in range(15):
            with ledger.transaction() as current:
                count = int(current.get("run", "counter") or b"0") + 1
                current.put("run", "counter", b"%d" % count)
                current.charge(Gaussian(1000.0), job=sys.argv[3], purpose=f"{count}")
    """
)


def test_two_processes_take_turns_with_the_head(path, tmp_path):
    opened(path, head=tmp_path / "head").close()
    command = [sys.executable, "-c", RACE, str(path), str(tmp_path / "head")]
    racers = [subprocess.Popen([*command, name]) for name in ("left", "right")]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
    with opened(path, head=tmp_path / "head") as ledger:
        assert ledger.get("run", "counter") == b"30"
        assert [e.purpose for e in ledger.entries()[1:]] == [f"{n}" for n in range(1, 31)]
        assert ledger.generation == 31


@contextlib.contextmanager
def no_file_above(size):
    """What a full disk does, to every file that would grow above this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def charge_and_put(ledger):
    with ledger.transaction() as current:
        current.charge(Gaussian(50), job="j", purpose="p")
        current.put("run", "values", b"x" * 2**20)


@pytest.mark.parametrize("head", [None, "head"])
def test_a_full_disk_charges_nothing_and_says_so(path, tmp_path, head):
    head = head and tmp_path / head
    with opened(path, head=head) as ledger:
        before = path.read_bytes(), head and head.read_bytes()
        with (
            no_file_above(path.stat().st_size),
            pytest.raises(LedgerError, match=r"cannot be used now .*; nothing was charged"),
        ):
            charge_and_put(ledger)
        assert (path.read_bytes(), head and head.read_bytes()) == before
        assert ledger.events() == ()
        with no_file_above(100), pytest.raises(LedgerError, match="nothing was charged"):
            ledger.charge(Gaussian(50), job="j", purpose="p")
        ledger.charge(Gaussian(50), job="j", purpose="p")
    with opened(path, head=head) as ledger:
        assert len(ledger.events()) == 1


def test_a_full_disk_while_a_ledger_is_made(path):
    with no_file_above(1000), pytest.raises(LedgerError):
        opened(path)
    assert list(path.parent.iterdir()) == []


def test_a_database_that_cannot_be_written(path):
    with opened(path) as ledger:
        ledger._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(LedgerError, match=r"readonly database.*nothing was charged"):
            ledger.charge(Gaussian(50), job="j", purpose="p")
        ledger._connection.execute("PRAGMA query_only = OFF")
        assert ledger.events() == ()


def test_hostile_a_store_that_others_may_read_is_made_private(path, monkeypatch):
    opened(path).close()
    path.chmod(0o644)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(LedgerError, match=r"not yours to change.*chmod 600"):
            opened(path)
    assert path.stat().st_mode & 0o777 == 0o644
    with Ledger.inspect(path):
        assert path.stat().st_mode & 0o777 == 0o644, "reading changes nothing"
    with opened(path) as ledger:
        assert path.stat().st_mode & 0o777 == 0o600
        ledger.charge(Gaussian(50), job="j", purpose="p")


def test_the_journal_of_a_write_is_private_too(path, tmp_path):
    with opened(path, head=tmp_path / "head") as ledger, ledger.transaction() as current:
        current.put("run", "values", b"x" * 2**20)
        seen = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
    assert f"{path.name}-journal" in seen
    assert set(seen.values()) == {0}


def test_a_folder_that_went_away(path, tmp_path):
    with opened(path) as ledger:
        shutil.move(path, tmp_path / "elsewhere")
        with pytest.raises(LedgerError, match="replaced by another file while it was open"):
            ledger.charge(Gaussian(50), job="j", purpose="p")
