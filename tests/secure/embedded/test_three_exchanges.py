"""A round takes three exchanges where its keys were dealt with the round before; whatever happens,
it falls back to five by itself.
"""

from collections import Counter

import pytest
from small_jobs import Adversary, LyingServer, federation, make_clients, scripted

from fedtree_dp import Ledger
from fedtree_secure import Topology, Training

FIVE = ("t0-c0", "t0-c1", "t0-c2", "t1-c0", "t1-c1")
LOST = "t0-c1"
JOB = {
    "topology": Topology(source="one_group"),
    "training": Training(records=20, sample_rate=0.5, head_steps=0, max_length=16),
    "rounds": 3,
}
LONG = ["advertise", "share", "mask", "confirm", "reveal"]
SHORT = LONG[2:]


def five():
    return make_clients(count=20)[:5]


def exchanges(made, number):
    """Names of a round's exchanges, in order."""
    before = f"round-{number}/"
    return [stage.removeprefix(before) for stage, _, _ in made.seen if stage.startswith(before)]


def survivors(result):
    """Whose updates are in the sums, by round."""
    return [
        sorted({name for members in record["opened"].values() for name in members})
        for record in result.data["rounds"]
    ]


@pytest.fixture(scope="module")
def steady(tiny_bert, tmp_path_factory):
    """A run of five clients in which nothing happens."""
    wrap, made = scripted()
    out = tmp_path_factory.mktemp("steady") / "run"
    return federation(tiny_bert, **JOB).run(five(), out, wrap_transport=wrap), made[0]


def test_a_steady_round_of_five_sites_takes_three_exchanges(steady):
    result, made = steady
    assert [exchanges(made, number) for number in (1, 2, 3)] == [LONG, SHORT, SHORT]
    assert survivors(result) == [list(FIVE)] * 3
    assert not any(record["error"] for record in result.data["rounds"])


def test_a_round_costs_a_charge_and_an_upload_whoever_dealt_its_keys(steady):
    """Messages in the report are those that were sent: a request and a reply, three times."""
    result, _ = steady
    for report in result.data["clients"].values():
        assert sum(event["steps"] for event in report["events"] if "steps" in event) == 3
    sent = [line.split() for line in (result.folder / "transcript.txt").read_text().splitlines()]
    of_two = Counter(line[3] for line in sent[1:] if line[3].startswith("round-2/"))
    assert of_two == {f"round-2/{stage}": 2 * len(FIVE) for stage in SHORT}


def test_experts_of_a_group_are_the_same_bytes_beside_each_inbox(steady):
    """They can cross a network once, though inboxes differ; the first round's came earlier."""
    from fedtree_secure.agreed.envelope import split

    asked = {stage: requests for stage, requests, _ in steady[1].seen}
    beside = {split(request)[1] for request in asked["round-2/mask"].values()}
    assert len(beside) == 1
    assert len({split(request)[1] for request in asked["round-1/mask"].values()}) == len(FIVE)


@pytest.mark.parametrize(
    ("stage", "when", "third"),
    [("mask", "after", LONG), ("confirm", "before", LONG), ("reveal", "before", SHORT)],
)
def test_a_client_that_missed_an_exchange_is_back_in_the_next_round(
    tiny_bert, tmp_path, stage, when, third
):
    """Whose keys or shares are missing is asked for new ones, with all others. Who was not asked to
    reveal gives the round up and goes on with the one that was dealt.
    """
    wrap, made = scripted(lose=[(f"round-2/{stage}", LOST, when)])
    result = federation(tiny_bert, **JOB).run(five(), tmp_path / "run", wrap_transport=wrap)
    assert [exchanges(made[0], number) for number in (2, 3)] == [SHORT, third]
    missed = [] if stage != "mask" else [LOST]
    assert survivors(result)[1:] == [[n for n in FIVE if n not in missed], list(FIVE)]


def test_a_server_that_goes_down_with_two_rounds_open_begins_again_with_the_first(
    tiny_bert, tmp_path, stores
):
    """Its clients have begun the third round; they give it up, and pay for the second again. Then
    none can pay for the third: they deal no keys for it, and begin it for nothing.
    """

    class Down(Adversary):
        def exchange(self, stage, requests):
            if stage == "round-2/reveal":
                raise OSError("the server went down")
            return super().exchange(stage, requests)

    job, out = federation(tiny_bert, **JOB), tmp_path / "run"
    with pytest.raises(OSError, match="went down"):
        job.run(five(), out, wrap_transport=Down)
    wrap, made = scripted()
    result = job.run(five(), out, resume=True, wrap_transport=wrap)
    assert [exchanges(made[0], number) for number in (2, 3)] == [LONG, ["advertise"]]
    assert survivors(result) == [list(FIVE), list(FIVE), []]
    server = LyingServer(None, out)
    (begins,) = [asked for stage, asked, _ in made[0].seen if stage == "round-2/advertise"]
    assert {server.read(name, data).message.attempt for name, data in begins.items()} == {4}
    with Ledger.inspect(stores / "t0-c0" / "store.sqlite") as ledger:
        charged = Counter(entry.purpose for entry in ledger.entries() if entry.purpose)
    assert charged == {"round 1": 1, "round 2": 2}
