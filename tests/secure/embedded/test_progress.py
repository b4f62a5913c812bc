"""What is shown while a run works: bars on a terminal, lines elsewhere, nothing on request."""

import io
import sys

import pytest
from rich.console import Console
from small_jobs import federation, make_clients

from fedtree_secure import ConfigurationError, Topology
from fedtree_secure.embedded.options import RunOptions
from fedtree_secure.embedded.progress import Bars, Lines, Notes, Silent, usual

ONE = Topology(source="one_group")


def play(observer):
    """A run's story, told to an observer."""
    observer.job("first", 3)
    observer.stage("heads", 16)
    observer.client("heart")
    observer.left(None)
    observer.step()
    observer.budget(1.5, 8.0)
    observer.round(1, 3, 2.25, 8.0, "")
    observer.stage("local steps (round 2)", 2)
    observer.client("bones")
    observer.left(250.0)
    observer.step()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_name_stage_client_round_epsilon_and_time_left():
    shown = Terminal()
    console = Console(file=shown, force_terminal=True, width=140, color_system=None)
    with Bars(console) as bars:
        play(bars)
        bars._progress.refresh()
        text = shown.getvalue()
    for wanted in (
        "first: rounds",
        "1/3",
        "ε 2.25 of 8, 5.75 left",
        "about 4 min left",
        "local steps (round 2)",
        "bones",
        "1/2",
    ):
        assert wanted in text
    assert "time left" not in shown.getvalue().rpartition("first: rounds")[2]  # of a run that ended


def test_a_name_that_looks_like_markup_is_shown_as_it_is():
    shown = Terminal()
    console = Console(file=shown, force_terminal=True, width=140, color_system=None)
    with Bars(console) as bars:
        bars.job("[red]x[/red]\x1b[2J", 1)
        bars.stage("join", 3)
        bars.round(0, 1, 1.0, 2.0, "nothing was opened: [bold]")
        bars.note("[link=x]\x07")
        bars._progress.refresh()
    assert "[red]x[/red]?[2J" in shown.getvalue()
    assert "nothing was opened: [bold]" in shown.getvalue()
    assert "[link=x]?" in shown.getvalue()
    assert "\x1b[2J" not in shown.getvalue()


def test_lines_say_the_same_without_control_characters():
    found = []
    play(Lines(found.append))
    assert found == [
        "first: 3 rounds; heads; time left unknown",
        "first: round 1 of 3 is over; ε 2.25 of 8, 5.75 left; time left unknown",
        "first: local steps (round 2); ε 2.25 of 8, 5.75 left; time left unknown",
    ]


def test_a_long_stage_gives_a_sign_of_life_and_a_short_one_none():
    found, now = [], [0.0]
    lines = Lines(found.append, lambda: now[0])
    lines.job("first", 3)
    lines.stage("local steps (round 1)", 200)
    lines.client("heart")
    lines.left(70.0)
    for _ in range(61):
        now[0] += 1.0
        lines.step()
    assert found[1:] == [
        "first: local steps (round 1), 30 of 200 steps, client heart; about 70 s left",
        "first: local steps (round 1), 60 of 200 steps, client heart; about 70 s left",
    ]


def test_a_folder_name_puts_no_control_character_into_a_log():
    found = []
    lines = Lines(found.append)
    lines.job("a\x1b[31m\nb", 1)
    lines.stage("join", 3)
    lines.note("c\rd")
    lines.advice("e\rf")
    began = "a?[31m?b: 1 round; join; time left unknown"
    assert found == [began, "c?d", "advice: e?f"]


def test_a_job_that_is_refused_leaves_nothing_but_the_refusal():
    found, shown = [], Terminal()
    console = Console(file=shown, force_terminal=True, width=140, color_system=None)
    with Bars(console) as bars:
        for observer in (bars, Lines(found.append)):
            observer.job("first", 3)
            observer.stage("loading the model", 0)
            observer.budget(0.0, 8.0)
    assert found == []
    assert "rounds" not in shown.getvalue()


def test_bars_are_for_terminals_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(usual(), Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(usual(), Bars)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(usual(), Lines)
    monkeypatch.setattr(sys, "stderr", None)
    assert isinstance(usual(), Lines)
    usual().note("shown nowhere, and no error")


def test_notes_are_all_that_quiet_leaves(capsys):
    play(Notes())
    Notes().note("stopping\x1b")
    Notes().advice("can wait")
    assert capsys.readouterr().err == "stopping?\n"


@pytest.mark.parametrize("bad", [{"progress": "no"}, {"progress": None}, {"observer": print}])
def test_what_cannot_show_progress_is_refused(bad):
    with pytest.raises(ConfigurationError, match=f"{next(iter(bad))} is .*allowed"):
        RunOptions(**bad)


class Story(Silent):
    """Keeps all that it is told."""

    def __init__(self):
        self.stages, self.clients, self.times, self.budgets, self.rounds = [], set(), [], [], []

    def stage(self, name, total):
        self.stages.append(name)

    def client(self, name):
        self.clients.add(name)

    def left(self, seconds):
        self.times.append(seconds)

    def budget(self, spent, allowed):
        self.budgets.append((spent, allowed))

    def round(self, number, rounds, spent, allowed, note):
        self.rounds.append((number, rounds))
        self.budgets.append((spent, allowed))


def test_an_observer_of_ones_own_is_told_everything_and_nothing_else_is_shown(
    tiny_bert, tmp_path, capsys
):
    story = Story()
    job = federation(tiny_bert, rounds=2, topology=ONE)
    job.run(make_clients(tasks=1), tmp_path / "run", observer=story)
    assert capsys.readouterr().err == ""
    assert list(dict.fromkeys(story.stages)) == [
        "loading the model",
        "reading rows, planning noise",
        "join",
        "heads",
        "masking (round 1)",
        "local steps (round 1)",
        "opening (round 1)",
        "local steps (round 2)",
        "opening (round 2)",
        "last experts",
        "evaluation",
        "report",
    ]
    assert story.clients == {"", "t0-c0", "t0-c1", "t0-c2"}
    assert story.rounds == [(1, 2), (2, 2)]
    spent = [found for found, _ in story.budgets]
    assert spent == sorted(spent)
    assert spent[0] == 0
    assert 0 < spent[1] < spent[-1] <= 8  # after the heads, and at the end
    known = story.times.index(next(t for t in story.times if t is not None))
    assert known > 0
    assert all(t is not None and t >= 0 for t in story.times[known:])
    assert story.times[-1] == 0
