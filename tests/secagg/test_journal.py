"""Row 12: a client that crashed, restarted or was asked twice never answers twice."""

import os
import signal
import subprocess
import sys

import pytest

from fedtree_secagg import ConfigurationError, ProtocolError
from fedtree_secagg.journal import FORMAT, STAGES, Journal

UPDATE, OTHER = bytes(range(32)), bytes(range(1, 33))


def through(journal, stages=STAGES[1:], update=UPDATE):
    for stage in stages:
        journal.record(stage, update=update if stage == "masked" else b"")


def test_row_12_counters_only_grow_over_restarts(tmp_path):
    with Journal(tmp_path / "j") as journal:
        assert journal.last is None
        assert [journal.begin(3), journal.begin(3), journal.begin(4)] == [0, 1, 0]
    with Journal(tmp_path / "j") as journal:
        assert journal.last == (4, 0)
        assert journal.begin(4) == 1
        with pytest.raises(ProtocolError, match="older than 4"):
            journal.begin(3)
        assert journal.begin(9) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_row_12_after_a_crash_at_any_stage_the_attempt_is_over(tmp_path, stage):
    done = STAGES[1 : STAGES.index(stage) + 1]
    with Journal(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, done)
    with Journal(tmp_path / "j") as journal:
        for following in STAGES[1:]:
            with pytest.raises(ProtocolError, match="no attempt is under way"):
                journal.record(following, update=UPDATE if following == "masked" else b"")
        assert journal.begin(0) == 1
        assert journal.burnt == ({UPDATE.hex()} if "masked" in done else set())


def test_row_12_no_stage_is_recorded_twice_or_skipped(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin(0)
        journal.record("advertised")
        for wrong in ("advertised", "masked", "revealed", "nonsense"):
            with pytest.raises(ProtocolError, match="does not follow"):
                journal.record(wrong, update=UPDATE if wrong == "masked" else b"")
        through(journal, STAGES[2:])
        with pytest.raises(ProtocolError, match="does not follow"):
            journal.record("revealed")


@pytest.mark.parametrize("last", STAGES[3:])
def test_row_05_an_uploaded_update_is_refused_for_ever(tmp_path, last):
    with Journal(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, STAGES[1 : STAGES.index(last) + 1])
        journal.begin(0)
    with Journal(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, STAGES[1:3])
        with pytest.raises(ProtocolError, match="fresh noise"):
            journal.record("masked", update=UPDATE)
        journal.record("masked", update=OTHER)


def test_the_update_hash_belongs_to_masked_only(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.begin(0)
        with pytest.raises(ConfigurationError, match="with it only"):
            journal.record("advertised", update=UPDATE)
        through(journal, STAGES[1:3])
        for bad in (b"", b"short"):
            with pytest.raises(ConfigurationError, match="32-byte hash"):
                journal.record("masked", update=bad)


def test_a_torn_last_line_is_dropped_and_other_damage_refused(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.begin(5)
        journal.record("advertised")
    whole = path.read_bytes()
    for cut in range(len(FORMAT) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert journal.last in (None, (5, 0))
            journal.begin(6)
    for text in (
        b"something else\n",
        whole[:40] + b"{}\n" + whole[40:],
        whole + b"{}\n",
        whole + whole[len(FORMAT) + 1 :],
    ):
        path.write_bytes(text)
        with pytest.raises(ConfigurationError):
            Journal(path)
    path.write_bytes(whole + b'{"round":5,"attempt":0,"stage":"other","update":""}\n')
    with pytest.raises(ConfigurationError, match="out of order"):
        Journal(path)


def test_one_process_at_a_time(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(ConfigurationError, match="another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_a_disk_that_writes_half_a_line_stops_the_client(tmp_path, monkeypatch):
    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(os, "write", lambda _file, _data: 1)
        with pytest.raises(OSError, match="nothing may be sent"):
            journal.begin(0)


def test_row_12_kill_9_never_lets_a_stage_be_answered_twice(tmp_path):
    """A child answers stages as fast as it can, telling each only after it is recorded; kill it,
    look, repeat.
    """
    script = (
        "import sys; from fedtree_secagg.journal import *\n"
        "j = Journal(sys.argv[1])\n"
        "for r in range((j.last or (0,))[0], 10**9):\n"
        "    a = j.begin(r)\n"
        "    for s in STAGES[1:]:\n"
        "        j.record(s, update=(r * 2**20 + a).to_bytes(32, 'big') if s == 'masked' else "
        "b'')\n"
        "        sys.stdout.write(f'{r} {a} {s}\\n'); sys.stdout.flush()\n"
    )
    told = []
    for kill_after in (3, 14, 40):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
        )
        told += [child.stdout.readline() for _ in range(kill_after)]
        child.send_signal(signal.SIGKILL)
        told += [
            line for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")
        ]
        child.wait()
        child.stdout.close()
    assert len(told) == len(set(told)) >= 57


def test_ceremonies_of_a_tree_are_counted_over_restarts_and_come_to_an_end(tmp_path):
    tree, other = bytes(range(32)), bytes(range(1, 33))
    with Journal(tmp_path / "j") as journal:
        assert [
            journal.ceremony(tree),
            journal.ceremony(other),
            journal.begin(0),
            journal.ceremony(tree),
        ] == [
            0,
            0,
            0,
            1,
        ]
    with Journal(tmp_path / "j") as journal:
        assert journal.last == (0, 0)
        assert [journal.ceremony(tree) for _ in range(14)] == list(range(2, 16))
        with pytest.raises(ProtocolError, match="had 16 ceremonies"):
            journal.ceremony(tree)
        assert journal.ceremony(other) == 1
        with pytest.raises(ConfigurationError, match=r"32 bytes of Plan\.tree"):
            journal.ceremony(b"")
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(ProtocolError, match="had 16 ceremonies"),
    ):
        journal.ceremony(tree)
