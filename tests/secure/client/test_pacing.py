"""Attack `telling-time` (docs/threats.md): replies leave at public moments."""

import dataclasses

import numpy as np
import pytest
from small_jobs import federation, make_clients

from fedtree_secure import Pacing, Topology, Training
from fedtree_secure.client.pacing import Pace


class Clock:
    """Time that passes only where the test lets it."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def read(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(
    ("taken", "leaves"),
    [(0.0, 2.0), (1.9, 2.0), (2.0, 2.0), (2.1, 2.5), (2.5, 2.5), (2.6, 3.0), (9.3, 9.5)],
)
def test_a_reply_leaves_at_the_next_multiple_after_the_minimum(taken, leaves):
    clock = Clock()
    pace = Pace(2.0, 0.5, clock.read, clock.sleep)
    clock.now = taken
    pace.wait(0.0)
    assert clock.now == pytest.approx(leaves)


def test_hostile_telling_time_training_replies_leave_at_public_moments(tiny_bert, tmp_path):
    """Steps that take longer for larger batches: nothing of that is left in the replies' times."""
    clock, times = Clock(), []
    rng = np.random.default_rng(0)

    class Watch:
        def __init__(self, inner):
            self.inner = inner
            for handle in inner._inner._participants.values():
                participant = handle.__self__
                participant._pace = Pace(10.0, 5.0, clock.read, clock.sleep)
                party = participant.party
                party.workings = dataclasses.replace(party.workings, tick=self.works)

        def works(self, *_):
            clock.now += float(rng.uniform(0.1, 9.9))  # as if by the size of the batch

        def exchange(self, stage, requests):
            replies = {}
            for name, request in requests.items():
                began = clock.now
                replies |= self.inner.exchange(stage, {name: request})
                if stage.endswith("/mask"):
                    times.append(clock.now - began)
            return replies

    job = federation(
        tiny_bert,
        topology=Topology(source="one_group"),
        training=Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
        pacing=Pacing(minimum=10.0, interval=5.0),
    )
    job.run(make_clients(), tmp_path / "run", wrap_transport=Watch)
    assert len(times) == 12
    assert times == pytest.approx([10.0] * 12)
