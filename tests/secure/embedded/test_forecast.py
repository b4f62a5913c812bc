"""The time left: from what was measured, stage by stage, on a clock that the test turns."""

import dataclasses

import pytest
from small_jobs import make_job

from fedtree_secure import Topology, Training
from fedtree_secure.embedded.forecast import (
    HEADS,
    MASKING,
    STEPS,
    Forecast,
    Part,
    parts_of,
    said,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


PLAN = [
    Part("a", "heads", HEADS, 2, 10.0),
    Part("a", "round 1", STEPS, 2, 30.0),
    Part("a", "round 1, opened", MASKING, 1),
    Part("a", "round 2", STEPS, 2, 30.0),
    Part("a", "round 2, opened", MASKING, 1),
]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def forecast(clock):
    return Forecast(PLAN, clock)


def answers(forecast, clock, label, *seconds, job="a"):
    for each in seconds:
        forecast.reach(job, label)
        forecast.ask()
        clock.now += each
        forecast.answer()


def test_nothing_is_known_before_the_first_client_has_answered(forecast, clock):
    assert forecast.left() is None
    forecast.reach("a", "heads")
    forecast.ask()
    clock.now += 50
    assert forecast.left() is None
    forecast.answer()
    assert forecast.left() is not None


def test_a_join_says_nothing_of_the_work(forecast, clock):
    answers(forecast, clock, "join", 3.0)
    assert forecast.left() is None


def test_what_was_not_measured_counts_with_what_a_pass_took_elsewhere(forecast, clock):
    answers(forecast, clock, "heads", 1.0)  # .1 s a pass
    assert forecast.left() == pytest.approx(1.0 + 4 * 3.0)


def test_a_stage_that_was_measured_counts_with_its_own_seconds(forecast, clock):
    answers(forecast, clock, "heads", 1.0, 1.0)
    answers(forecast, clock, "round 1", 8.0)
    assert forecast.left() == pytest.approx(3 * 8.0)
    answers(forecast, clock, "round 1", 12.0)
    assert forecast.left() == pytest.approx(2 * 10.0)


def test_what_masking_takes_between_the_answers_counts_for_each_round(forecast, clock):
    answers(forecast, clock, "heads", 1.0, 1.0)
    clock.now += 500  # the tree: no part of a round
    forecast.mark()
    clock.now += 2
    answers(forecast, clock, "round 1", 10.0, 10.0)
    clock.now += 3
    forecast.rest("a", "round 1, opened")
    assert forecast.left() == pytest.approx(2 * 10.0 + 5.0)


def test_it_falls_while_a_client_is_at_work_and_is_never_negative(forecast, clock):
    answers(forecast, clock, "heads", 1.0, 1.0)
    answers(forecast, clock, "round 1", 10.0, 10.0)
    forecast.rest("a", "round 1, opened")
    answers(forecast, clock, "round 2", 10.0)
    forecast.reach("a", "round 2")
    forecast.ask()
    seen = [forecast.left()]
    for _ in range(40):
        clock.now += 1.0
        seen.append(forecast.left())
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == pytest.approx(10.0)
    assert min(seen) == 0
    forecast.answer()
    forecast.rest("a", "round 2, opened")
    assert forecast.left() == 0


def test_more_answers_than_planned_leave_nothing_below_zero(forecast, clock):
    answers(forecast, clock, "heads", 1.0, 1.0)
    answers(forecast, clock, "round 2", *[5.0] * 6)
    assert forecast.left() == 0


def test_a_run_that_continues_counts_no_stage_of_an_earlier_start(forecast, clock):
    answers(forecast, clock, "round 2", 7.0)
    assert forecast.left() == pytest.approx(7.0)


def test_a_client_that_fails_is_waited_for_no_longer_and_not_measured(forecast, clock):
    answers(forecast, clock, "heads", 1.0)
    forecast.ask()
    clock.now += 100
    forecast.skip()
    assert forecast.left() == pytest.approx(4 * 3.0)


def test_jobs_of_one_run_learn_from_each_other(clock):
    second = [dataclasses.replace(part, job="b") for part in PLAN]
    forecast = Forecast([*PLAN, *second], clock)
    answers(forecast, clock, "heads", 1.0, 1.0)
    answers(forecast, clock, "round 2", 9.0, 9.0)
    assert forecast.left() == pytest.approx(2 * 1.0 + 4 * 9.0)
    answers(forecast, clock, "heads", 1.0, job="b")
    assert forecast.left() == pytest.approx(1.0 + 4 * 9.0)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ["sketch", "heads", "round 1", "round 2"]),
        (
            {"topology": Topology(sketch_size=64)},
            ["sketch", "heads", "round 1, gradients", "round 1", "round 2"],
        ),
        ({"topology": Topology(source="one_group")}, ["heads", "round 1", "round 2"]),
        (
            {
                "topology": Topology(source="lora_b"),
                "training": Training(head_steps=0, local_steps=3),
            },
            ["sketch", "round 1", "round 2"],
        ),
        ({"rounds": 0}, ["heads"]),
    ],
)
def test_the_plan_has_the_stages_of_the_job(changes, labels):
    found = parts_of("a", make_job("none", **changes), [60, 80])
    shown = [part.label for part in found if part.kind != MASKING]
    assert shown == [*labels, "evaluation"]
    assert len({part.label for part in found}) == len(found)
    assert all(part.answers in (1, 2) for part in found)


def test_time_is_said_in_words():
    assert [said(x) for x in (None, 0, 89.4, 95, 3000, 6000)] == [
        "time left unknown",
        "about 0 s left",
        "about 89 s left",
        "about 2 min left",
        "about 50 min left",
        "about 1 h 40 min left",
    ]
