"""Attack `unsigned-requests` (docs/threats.md): a client acts on nothing that its server's key did
not sign, nothing twice, nothing out of order, and on nothing before it was checked.
"""

import math

from small_jobs import make_clients
from takeover import changed, hostile

from fedtree_dp import PoissonGaussian
from fedtree_secagg import Identity
from fedtree_secure import Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.envelope import seal
from fedtree_secure.agreed.messages import Protocol, Refused, encode
from fedtree_secure.agreed.stages import COUNTER_WINDOW, MOST_ATTEMPTS
from fedtree_secure.client.step import OutOfOrder

ONE = {
    "topology": Topology(source="one_group"),
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
}
VICTIM = "t0-c0"


def state(server, name=VICTIM):
    """Everything that a request could have changed."""
    party = server.party(name)
    return (
        party.store.record.public(),
        party.store.journal.last,
        party.store.state.to_bytes(),
        len(party.store.ledger.entries()),
    )


def unheard(server, name, data):
    """Deliver raw bytes; no reply may come, and nothing may change."""
    before = state(server, name)
    assert server.inner.exchange("join", {name: data}) == {}
    assert state(server, name) == before


def test_hostile_unsigned_requests_are_not_looked_at(tiny_bert, tmp_path):
    out = tmp_path / "run"

    def script(server, requests):
        stranger, number = Identity.generate(bytes(range(32))), server.asked + 1
        body = encode(requests[VICTIM])
        honest = seal(server.key, server.run, VICTIM, number, 0, body)
        for data in (
            body,
            b"",
            b"\xc1",
            seal(stranger, server.run, VICTIM, number, 0, body),
            seal(server.key, "another run", VICTIM, number, 0, body),
            seal(server.key, server.run, "t0-c1", number, 0, body),
            honest[:-1] + bytes([honest[-1] ^ 1]),
            honest[:-70] + bytes([honest[-70] ^ 1]) + honest[-69:],
            honest + b"\0",
        ):
            unheard(server, VICTIM, data)
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)  # signed: it is

    hostile(tiny_bert, out, "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_and_repeated_or_absurd_counters(tiny_bert, tmp_path):
    def script(server, requests):
        begin, last = requests[VICTIM], server.party(VICTIM).store.record.counter
        for counter in (0, 1, last, last + COUNTER_WINDOW + 1, 2**53, 2**63 - 1):
            before = state(server)
            assert server.ask(VICTIM, begin, counter=counter, answered=0) is None
            assert state(server) == before
        repeated = seal(server.key, server.run, VICTIM, last + 1, 0, encode(begin))
        assert server.inner.exchange("join", {VICTIM: repeated})
        unheard(server, VICTIM, repeated)

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_rounds_and_attempts_beyond_the_job(tiny_bert, tmp_path):
    lies = (
        {"round": 3},
        {"round": 0},
        {"round": 0, "merge": True},
        {"merge": True},
        {"attempt": MOST_ATTEMPTS + 1},
        {"round": 2**31 - 1},
    )

    def script(server, requests):
        before = state(server)
        for lie in lies:
            assert server.send(VICTIM, changed(requests[VICTIM], **lie)) is None
            error = server.inner._inner.failures[-1].error
            assert isinstance(error, OutOfOrder), lie
            said = "round 0 merges" if lie.get("merge") else ""
            assert said in str(error), lie
            assert state(server) == before

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_no_round_follows_the_last_experts(tiny_bert, tmp_path):
    """A run that is over for a client stays over, though everything in the request fits."""

    def script(server, requests):
        begin = requests[VICTIM]
        assert isinstance(server.send(VICTIM, wire.Finish(begin.experts)), wire.Voted)
        before = state(server)
        assert server.send(VICTIM, begin) is None
        assert isinstance(server.inner._inner.failures[-1].error, OutOfOrder)
        assert state(server) == before

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_a_bad_clip_leaves_the_running_round_alone(tiny_bert, tmp_path):
    """H6: `clip = inf` replaced the running round."""

    def script(server, requests):
        begin = server.read(VICTIM, server.begun[VICTIM]).message
        before = state(server)
        for clip in (math.inf, math.nan, 0.0, -1.0, 1e300, 0.5 * begin.clip, 2.0 * begin.clip):
            again = changed(begin, attempt=begin.attempt + 1, clip=clip)
            assert server.send(VICTIM, again) == Refused("clip")
            assert state(server) == before
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)  # it continues

    _with_begun(tiny_bert, tmp_path / "run", "round-1/share", script)


def test_hostile_unsigned_requests_a_bad_clip_in_the_first_round_is_not_fixed(tiny_bert, tmp_path):
    """Before a clip is fixed a client knows its own bound alone."""

    def script(server, requests):
        begin, before = requests[VICTIM], state(server)
        own = server.party(VICTIM).own_clip(merge=False)
        for clip in (math.inf, math.nan, -1.0, 0.0, 0.99 * own, 1025 * own, 1e300):
            assert server.send(VICTIM, changed(begin, clip=clip)) == Refused("clip")
            assert state(server) == before
        assert isinstance(server.send(VICTIM, begin), Protocol)

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_no_round_begins_without_its_budget(tiny_bert, tmp_path):
    """Whoever began it and could not pay would be missed by the others, after their uploads."""

    def script(server, requests):
        party, ledger = server.party(VICTIM), server.ledger(VICTIM)
        while ledger.affords(party.round_event()):
            ledger.charge(PoissonGaussian(1.0, 0.5, 1), job="another", purpose="in between")
        before = state(server)
        assert server.send(VICTIM, requests[VICTIM]) == Refused("budget")
        assert state(server) == before

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_a_round_at_home_is_trained_once(tiny_bert, tmp_path):
    def script(server, requests):
        alone = requests[VICTIM]
        for number in (3, 2**31 - 1):
            assert server.send(VICTIM, changed(alone, round=number)) is None
        assert server.send(VICTIM, alone) == wire.Done()
        before = state(server)
        assert server.send(VICTIM, alone) == wire.Done()  # a server that crashed asks again
        assert state(server)[1:] == before[1:]  # the request's counter alone has moved
        assert server.charges(VICTIM) == ["round 1"]

    none = {**ONE, "topology": Topology(source="none")}
    hostile(tiny_bert, tmp_path / "run", "round-1/alone", script, **none)


def test_hostile_second_budget_of_a_head_that_is_trained(tiny_bert, tmp_path):
    """Trained again from where it is, it would be another release under the same charge."""

    def script(server, requests):
        before = server.party(VICTIM).store.state.to_bytes()
        assert server.send(VICTIM, wire.Prepare()) == wire.Done()
        assert server.party(VICTIM).store.state.to_bytes() == before
        assert server.charges(VICTIM) == ["head"]

    training = Training(
        records=60, sample_rate=0.5, head_steps=4, head_sample_rate=0.5, max_length=16
    )
    head = {**ONE, "training": training}
    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **head)


def test_hostile_unsigned_requests_a_bad_inbox_is_refused_before_the_charge(tiny_bert, tmp_path):
    """H6: garbage in the inbox was looked at after charging and training."""

    def script(server, requests):
        honest, before = requests[VICTIM], state(server)
        torn = bytearray(honest.inbox)
        torn[-1] ^= 1  # of the last peer's box
        for inbox in (b"", b"garbage", bytes(torn), honest.inbox + b"\0"):
            assert server.send(VICTIM, wire.Mask(inbox)) is None
            assert state(server) == before
        assert isinstance(server.send(VICTIM, honest), Protocol)
        assert server.charges(VICTIM) == ["round 1"]

    hostile(tiny_bert, tmp_path / "run", "round-1/mask", script, **ONE)


def test_hostile_unsigned_requests_out_of_order_change_nothing(tiny_bert, tmp_path):
    def script(server, requests):
        before = state(server)
        for message in (
            wire.Mask(b""),
            wire.Confirm(b""),
            wire.Reveal(b""),
            wire.SketchSeal(b""),
            wire.SketchSend(b""),
            wire.AdoptTree(()),
            wire.Alone(1, requests[VICTIM].experts),
        ):
            assert server.send(VICTIM, message) is None
            assert state(server) == before

    hostile(tiny_bert, tmp_path / "run", "round-1/advertise", script, **ONE)


def test_hostile_unsigned_requests_a_round_that_was_answered_never_comes_again(tiny_bert, tmp_path):
    """Round 1 over and over would be rounds for nothing, or at least under one charge."""

    def script(server, _):
        begin = next(asked for at, asked, _ in server.seen if at == "round-1/advertise")[VICTIM]
        begin = server.read(VICTIM, begin).message
        for number, attempts in ((1, (1, 2, 3, 900)), (2, (1,))):
            for attempt in attempts:
                before = state(server)
                told = changed(begin, round=number, attempt=attempt)
                assert server.send(VICTIM, told) is None
                assert state(server) == before

    hostile(tiny_bert, tmp_path / "run", "round-2/confirm", script, **ONE)


def test_hostile_unsigned_requests_another_roster_or_job_is_a_mismatch(tiny_bert, tmp_path):
    def script(server, requests):
        join = requests[VICTIM]
        assert server.send(VICTIM, changed(join, terms=bytes(32))) == Refused("mismatch")
        assert server.send(VICTIM, changed(join, model=bytes(32))) == Refused("mismatch")

    hostile(tiny_bert, tmp_path / "run", "join", script, **ONE)


def _with_begun(model, out, stage, script):
    """As `hostile`; the server also remembers the requests that began the round."""

    def remembering(server, requests):
        server.begun = next(asked for at, asked, _ in server.seen if at.endswith("/advertise"))
        script(server, requests)

    hostile(model, out, stage, remembering, clients=make_clients(), **ONE)
