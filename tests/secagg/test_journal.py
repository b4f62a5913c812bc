"""A client that crashed, restarted or was asked twice never answers twice."""

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


def test_rollback_counters_only_grow_over_restarts(tmp_path):
    with Journal.open(tmp_path / "j") as journal:
        assert journal.last is None
        assert [journal.begin(3), journal.begin(3), journal.begin(4)] == [0, 1, 0]
    with Journal.open(tmp_path / "j") as journal:
        assert journal.last == (4, 0)
        assert journal.begin(4) == 1
        with pytest.raises(ProtocolError, match="older than 4"):
            journal.begin(3)
        assert journal.begin(9) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_rollback_after_a_crash_at_any_stage_the_attempt_is_over(tmp_path, stage):
    done = STAGES[1 : STAGES.index(stage) + 1]
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, done)
    with Journal.open(tmp_path / "j") as journal:
        for following in STAGES[1:]:
            with pytest.raises(ProtocolError, match="no attempt is under way"):
                journal.record(following, update=UPDATE if following == "masked" else b"")
        assert journal.begin(0) == 1
        assert journal.burnt == ({UPDATE.hex()} if "masked" in done else set())


def test_rollback_no_stage_is_recorded_twice_or_skipped(tmp_path):
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        journal.record("advertised")
        for wrong in ("advertised", "masked", "revealed", "nonsense"):
            with pytest.raises(ProtocolError, match="does not follow"):
                journal.record(wrong, update=UPDATE if wrong == "masked" else b"")
        through(journal, STAGES[2:])
        with pytest.raises(ProtocolError, match="does not follow"):
            journal.record("revealed")


@pytest.mark.parametrize("last", STAGES[3:])
def test_reused_update_an_uploaded_update_is_refused_for_ever(tmp_path, last):
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, STAGES[1 : STAGES.index(last) + 1])
        journal.begin(0)
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        through(journal, STAGES[1:3])
        with pytest.raises(ProtocolError, match="fresh noise"):
            journal.record("masked", update=UPDATE)
        journal.record("masked", update=OTHER)


def test_the_update_hash_belongs_to_masked_only(tmp_path):
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        with pytest.raises(ConfigurationError, match="with it only"):
            journal.record("advertised", update=UPDATE)
        through(journal, STAGES[1:3])
        for bad in (b"", b"short"):
            with pytest.raises(ConfigurationError, match="32-byte hash"):
                journal.record("masked", update=bad)


def test_a_torn_last_line_is_dropped_and_other_damage_refused(tmp_path):
    path = tmp_path / "j"
    with Journal.open(path) as journal:
        journal.begin(5)
        journal.record("advertised")
    whole = path.read_bytes()
    for cut in range(len(FORMAT) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal.open(path) as journal:
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
            Journal.open(path)
    path.write_bytes(whole + b'{"round":5,"attempt":0,"stage":"other","update":""}\n')
    with pytest.raises(ConfigurationError, match="out of order"):
        Journal.open(path)


def test_one_process_at_a_time(tmp_path):
    with Journal.open(tmp_path / "j"), pytest.raises(ConfigurationError, match="another process"):
        Journal.open(tmp_path / "j")
    Journal.open(tmp_path / "j").close()


def test_a_disk_that_writes_half_a_line_stops_the_client(tmp_path, monkeypatch):
    write = os.write
    with Journal.open(tmp_path / "j") as journal:
        journal.begin(0)
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(OSError, match="nothing may be sent"):
            journal.begin(1)
        monkeypatch.undo()
        with pytest.raises(OSError, match="open it again"):  # else glued to the torn line
            journal.begin(1)
    with Journal.open(tmp_path / "j") as journal:
        assert journal.last == (0, 0)
        assert journal.begin(1) == 0


def test_a_journal_that_was_torn_in_its_first_line_is_new(tmp_path):
    for text in (b"", FORMAT.encode()[:9], FORMAT.encode()):
        (tmp_path / "j").write_bytes(text)
        Journal.open(tmp_path / "j").close()
        assert (tmp_path / "j").read_bytes() == FORMAT.encode() + b"\n"


@pytest.mark.parametrize("text", [b"a diary without a line's end", b"a diary\nof two lines", b"\n"])
def test_a_foreign_file_is_refused_and_left_as_it_was(tmp_path, text):
    (tmp_path / "j").write_bytes(text)
    with pytest.raises(ConfigurationError, match="not a journal"):
        Journal.open(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == text


def test_rollback_kill_9_never_lets_a_stage_be_answered_twice(tmp_path):
    """A child answers stages as fast as it can, telling each only after it is recorded; kill it,
    look, repeat.
    """
    script = (
        "import sys; from fedtree_secagg.journal import *\n"
        "j = Journal.open(sys.argv[1])\n"
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


def test_sparse_ceremonies_may_skip_numbers_and_never_go_back(tmp_path):
    """A client that was away takes the server's number, and never one that it used or passed."""
    tree = bytes(range(32))
    with Journal.open(tmp_path / "j") as journal:
        assert journal.ceremony(tree, 2) == 2
        for number in (2, 1, 16, -1, True, "3"):
            with pytest.raises(ProtocolError, match="does not follow 2; give 3 to 15"):
                journal.ceremony(tree, number)
        assert journal.ceremony(tree, 5) == 5
    with Journal.open(tmp_path / "j") as journal:
        assert journal.ceremony(tree) == 6
        assert journal.ceremony(tree, 15) == 15
        with pytest.raises(ProtocolError, match="had 16 ceremonies"):
            journal.ceremony(tree)


def test_ceremonies_of_a_tree_are_counted_over_restarts_and_come_to_an_end(tmp_path):
    tree, other = bytes(range(32)), bytes(range(1, 33))
    with Journal.open(tmp_path / "j") as journal:
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
    with Journal.open(tmp_path / "j") as journal:
        assert journal.last == (0, 0)
        assert [journal.ceremony(tree) for _ in range(14)] == list(range(2, 16))
        with pytest.raises(ProtocolError, match="had 16 ceremonies"):
            journal.ceremony(tree)
        assert journal.ceremony(other) == 1
        with pytest.raises(ConfigurationError, match=r"32 bytes of Plan\.tree"):
            journal.ceremony(b"")
    with (
        Journal.open(tmp_path / "j") as journal,
        pytest.raises(ProtocolError, match="had 16 ceremonies"),
    ):
        journal.ceremony(tree)


class Memory:
    """Records in an application's own store; `refuses` makes it fail as a full disk would."""

    def __init__(self):
        self.lines, self.refuses, self.closed, self.seen = [], False, False, []

    def read(self):
        return list(self.lines)

    def append(self, line):
        self.seen.append((self.journal.last, self.journal.burnt))
        if self.refuses:
            raise OSError("the disk is full")
        self.lines.append(line)

    def close(self):
        self.closed = True


def in_memory(lines=()):
    records = Memory()
    records.lines += lines
    records.journal = journal = Journal(records)
    return records, journal


def test_each_decision_is_one_line_and_comes_before_memory():
    records, journal = in_memory()
    journal.begin(2)
    through(journal, STAGES[1:4])
    journal.ceremony(UPDATE)
    assert [line.count(b"\n") for line in records.lines] == [0] * 5
    assert records.seen[0] == (None, frozenset())
    assert records.seen[3] == ((2, 0), frozenset())  # not burnt before the line stands
    again = Journal(Memory())
    assert again.last is None
    _, again = in_memory(records.lines)
    assert (again.last, again.burnt, again.ceremony(UPDATE)) == ((2, 0), journal.burnt, 1)
    with journal:
        pass
    assert records.closed


def test_a_line_that_is_not_written_changes_nothing():
    records, journal = in_memory()
    journal.begin(2)
    through(journal, STAGES[1:3])
    records.refuses = True
    for decide in (
        lambda: journal.begin(3),
        lambda: journal.record("masked", update=UPDATE),
        lambda: journal.ceremony(UPDATE),
    ):
        with pytest.raises(OSError, match="disk is full"):
            decide()
    assert (journal.last, journal.burnt, len(records.lines)) == ((2, 0), frozenset(), 3)
    records.refuses = False
    journal.record("masked", update=UPDATE)
    assert journal.ceremony(UPDATE) == 0


def test_rollback_a_number_that_the_server_chose_is_above_all_that_were_used():
    _, journal = in_memory()
    assert journal.begin(3, 5) == 5
    assert journal.begin(3) == 6
    for used in (5, 6, 0):
        with pytest.raises(ProtocolError, match="does not follow 6; give 7 to 1006"):
            journal.begin(3, used)
    assert [journal.begin(3, 1006), journal.begin(4, 0), journal.begin(9, 999)] == [1006, 0, 999]


ABSURD = [
    *((number, None) for number in (2**31, 10**5000, -1, True, 3.0, "4", float("nan"))),
    *((3, number) for number in (2**31, 10**5000, -1, True, 1.0, float("inf"), 1001)),
    (2**63, 0),
    (4, 1000),
]


@pytest.mark.parametrize("counters", ABSURD)
def test_rollback_an_absurd_counter_leaves_no_trace(counters):
    records, journal = in_memory()
    journal.begin(3)
    journal.record("advertised")
    before = list(records.lines)
    with pytest.raises(ProtocolError, match="journal: "):
        journal.begin(*counters)
    assert records.lines == before
    journal.record("shared")  # the attempt under way goes on


def test_the_largest_counters_are_accepted_and_the_next_one_is_not():
    top = 2**31 - 1
    line = b'{"round":%d,"attempt":%d,"stage":"begun","update":""}' % (top, top - 1)
    _, journal = in_memory([line])
    assert journal.begin(top) == top
    with pytest.raises(ProtocolError, match="attempt is 2147483648"):
        journal.begin(top)


OLD = (
    b"fedtree-secagg/v1/journal\n"
    b'{"round":5,"attempt":0,"stage":"begun","update":""}\n'
    b'{"round":5,"attempt":0,"stage":"advertised","update":""}\n'
    b'{"round":5,"attempt":0,"stage":"shared","update":""}\n'
    b'{"round":5,"attempt":0,"stage":"masked","update":"' + UPDATE.hex().encode() + b'"}\n'
    b'{"tree":"' + OTHER.hex().encode() + b'","ceremony":0}\n'
    b'{"round":5,"attempt":1,"stage":"begun","update":""}\n'
)


def test_files_of_earlier_versions_are_read_and_new_ones_look_the_same(tmp_path):
    (tmp_path / "old").write_bytes(OLD)
    with Journal.open(tmp_path / "old") as journal:
        assert (journal.last, journal.burnt) == ((5, 1), {UPDATE.hex()})
        assert journal.ceremony(OTHER) == 1
    with Journal.open(tmp_path / "new") as journal:
        journal.begin(5)
        through(journal, STAGES[1:4])
        journal.ceremony(OTHER)
        journal.begin(5)
    assert (tmp_path / "new").read_bytes() == OLD


DAMAGED = {
    "empty": b"",
    "deep": b"[" * 100_000,
    "no text": b'{"round":\xff}',
    "stage of no text": b'{"round":5,"attempt":0,"stage":"\xff","update":""}',
    "tree of no text": b'{"tree":"\xff","ceremony":0}',
    "infinite": b'{"round":1e400,"attempt":0,"stage":"begun"}',
    "no number": b'{"round":NaN,"attempt":0,"stage":"begun"}',
    "huge": b'{"round":' + b"9" * 5000 + b',"attempt":0,"stage":"begun"}',
    "masked nothing": b'{"round":9,"attempt":0,"stage":"masked","update":""}',
    "a hash too many": b'{"round":9,"attempt":0,"stage":"begun","update":"00"}',
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_lines_are_refused(tmp_path, what):
    (tmp_path / "j").write_bytes(OLD + DAMAGED[what] + b"\n")
    with pytest.raises(ConfigurationError, match=r"damaged|out of order"):
        Journal.open(tmp_path / "j")


def ahead_of(journal, number):
    """Bring a round to its upload, and begin the next one ahead."""
    attempt = journal.begin(number)
    through(journal, STAGES[1:4], update=number.to_bytes(32, "big"))
    return (number, attempt), (number + 1, journal.begin(number + 1, ahead=True))


def test_two_sessions_go_on_beside_each_other_until_the_later_uploads(tmp_path):
    with Journal.open(tmp_path / "j") as journal:
        now, ahead = ahead_of(journal, 4)
        journal.record("advertised", of=ahead)
        journal.record("confirmed", of=now)
        journal.record("shared", of=ahead)
        with pytest.raises(ProtocolError, match="does not follow"):
            journal.record("confirmed", of=now)
        assert journal.last == ahead
        journal.record("masked", update=UPDATE, of=ahead)
        with pytest.raises(ProtocolError, match="no attempt is under way"):
            journal.record("revealed", of=now)  # it would open two uploads at once
        with pytest.raises(ProtocolError, match="no attempt is under way"):
            journal.record("revealed", of=(4, 7))
        journal.record("confirmed", of=ahead)
    with Journal.open(tmp_path / "j") as journal:  # the lines, read again
        assert journal.last == ahead
        for of in (now, ahead, None):
            with pytest.raises(ProtocolError, match="no attempt is under way"):
                journal.record("revealed", of=of)


@pytest.mark.parametrize("stage", [*STAGES[:3], *STAGES[4:]])
def test_two_sessions_nothing_is_begun_ahead_but_beside_an_upload(tmp_path, stage):
    with Journal.open(tmp_path / "j") as journal:
        with pytest.raises(ProtocolError, match="begun ahead"):
            journal.begin(0, ahead=True)
        journal.begin(0)
        through(journal, STAGES[1 : STAGES.index(stage) + 1])
        with pytest.raises(ProtocolError, match="begun ahead"):
            journal.begin(1, ahead=True)
    with Journal.open(tmp_path / "k") as journal:
        ahead_of(journal, 0)
        for third in (1, 2):
            with pytest.raises(ProtocolError, match="begun ahead"):
                journal.begin(third, ahead=True)
    with Journal.open(tmp_path / "l") as journal:
        journal.begin(0)
        through(journal, STAGES[1:4])
        for far in (0, 2):
            with pytest.raises(ProtocolError, match="begun ahead"):
                journal.begin(far, ahead=True)


def test_two_sessions_one_that_uploaded_nothing_is_given_up_for_the_round_before(tmp_path):
    """A server that went down with two rounds open begins again with the earlier one."""
    for restarted in (False, True):
        path = tmp_path / f"j{restarted}"
        journal = Journal.open(path)
        now, ahead = ahead_of(journal, 4)
        if restarted:
            journal.close()
            journal = Journal.open(path)
        with pytest.raises(ProtocolError, match="older than 5"):
            journal.begin(3)
        with pytest.raises(ProtocolError, match="does not follow 0"):
            journal.begin(*now)
        assert journal.begin(4) == now[1] + 1
        with pytest.raises(ProtocolError, match="no attempt is under way"):
            journal.record("advertised", of=ahead)
        through(journal, update=OTHER)
        with pytest.raises(ProtocolError, match="does not follow 0"):
            journal.begin(*ahead)  # it was used
        assert journal.begin(5) == ahead[1] + 1
        with pytest.raises(ProtocolError, match="older than 5"):
            journal.begin(4)
        journal.close()


def test_two_sessions_no_way_back_from_an_upload_that_was_dealt_ahead(tmp_path):
    with Journal.open(tmp_path / "j") as journal:
        _, ahead = ahead_of(journal, 4)
        through(journal, STAGES[1:4])
        assert journal.last == ahead
        with pytest.raises(ProtocolError, match="older than 5"):
            journal.begin(4)
        journal.check(5, 1)
        for used in ((5, 0), (4, 1)):
            with pytest.raises(ProtocolError):
                journal.check(*used)
