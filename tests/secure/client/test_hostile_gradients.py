"""A server that asks for sketches of gradients as it likes (attack `invented-distances`).

What holds: one gradient is made, of the first round, charged once and before anything of it leaves;
it is made at experts that follow from opened sums; no more than three sketches are made of it; a
tree follows from distances of a sketch that the client took part in.
"""

import numpy as np
from small_jobs import make_clients
from takeover import changed, hostile

from fedtree_secure import Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import Protocol, Refused
from fedtree_secure.agreed.round_plan import compute_tree
from fedtree_secure.agreed.stages import MOST_ATTEMPTS, MOST_SKETCHES

VICTIM = "t0-c0"
QUIET = {
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "topology": Topology(sketch_size=64, gradient_sketch_size=64),
}
HELLO, SEAL, SKETCH = (f"round-1/{name}" for name in ("sketch-hello", "sketch-seal", "sketch"))


def test_hostile_gradients_of_few_or_beyond_the_counters_are_refused(tiny_bert, tmp_path):
    def script(server, requests):
        honest = requests[VICTIM]
        three = (VICTIM, "t0-c1", "t0-c2")
        assert server.send(VICTIM, changed(honest, members=three)) is None
        without = tuple(name for name in honest.members if name != VICTIM)
        assert server.send(VICTIM, changed(honest, members=without)) is None
        for attempt in (MOST_ATTEMPTS + 1, 2**31 - 1):
            assert server.send(VICTIM, changed(honest, attempt=attempt)) is None
        assert server.party(VICTIM).store.record.gradient_attempt == 0
        assert server.charges(VICTIM) == ["fingerprint"]
        assert isinstance(server.send(VICTIM, honest), Protocol)
        assert server.send(VICTIM, honest) is None  # one projection each

    hostile(tiny_bert, tmp_path / "run", HELLO, script, **QUIET)


def test_hostile_gradients_at_invented_experts_are_refused(tiny_bert, tmp_path):
    """A door that every member would be led to, or the victim alone: before any charge."""

    def script(server, requests):
        honest, party = requests[VICTIM], server.party(VICTIM)
        far = party.facts.initial + np.float32(1e-2)
        moved = changed(honest.experts, external=wire.pack(far))
        assert server.send(VICTIM, changed(honest, experts=moved)) == Refused("experts")
        total = np.zeros(4, dtype="<i4").tobytes()
        invented = wire.OpenedSum(0, "node-0", 3, 1.0, total)
        lie = changed(honest.experts, opened=(invented,))
        assert server.send(VICTIM, changed(honest, experts=lie)) is None
        assert server.charges(VICTIM) == ["fingerprint"]

    hostile(tiny_bert, tmp_path / "run", HELLO, script, **QUIET)


def test_hostile_gradients_are_made_and_charged_once_however_often_they_are_asked(
    tiny_bert, tmp_path
):
    def script(server, requests):
        party = server.party(VICTIM)
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)
        made = party.store.state.first.copy()
        layers = slice(0, len(party.store.state.own))
        assert np.array_equal(party.store.state.own, party.facts.initial[layers])
        assert server.charges(VICTIM) == ["fingerprint", "round 1"]
        assert server.send(VICTIM, requests[VICTIM]) is None  # the session is over
        assert np.array_equal(party.store.state.first, made)
        assert server.charges(VICTIM) == ["fingerprint", "round 1"]

    hostile(tiny_bert, tmp_path / "run", SKETCH, script, **QUIET)


def test_hostile_gradients_no_fourth_sketch(tiny_bert, tmp_path):
    """Each sketch shows a server with a colluding member more of the same gradient."""

    def script(server, requests):
        with server.party(VICTIM).store.writing() as noted:
            noted.record.gradient_sketches = MOST_SKETCHES
        assert server.send(VICTIM, requests[VICTIM]) == Refused("sketch")

    hostile(tiny_bert, tmp_path / "run", HELLO, script, **QUIET)


def test_hostile_gradients_upload_is_the_one_that_was_sketched(tiny_bert, tmp_path):
    """The first round makes no second gradient: its upload is charged already, and leaves once."""

    def script(server, requests):
        party = server.party(VICTIM)
        made = party.store.state.first
        assert made is not None
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)
        assert party.store.state.first is None
        assert server.charges(VICTIM).count("round 1") == 1
        assert server.send(VICTIM, requests[VICTIM]) is None

    hostile(tiny_bert, tmp_path / "run", "round-1/mask", script, **QUIET)


def test_hostile_gradients_tree_without_an_own_sketch_is_refused(tiny_bert, tmp_path):
    def script(server, requests):
        party, honest = server.party(VICTIM), requests[VICTIM]
        other = changed(honest.gradients, attempt=honest.gradients.attempt + 1)
        assert server.send(VICTIM, changed(honest, gradients=other)) == Refused("tree")
        assert server.send(VICTIM, changed(honest, gradients=None)) is None
        labels = tuple(tuple(range(len(honest.members))) for _ in honest.labels)
        assert server.send(VICTIM, changed(honest, labels=labels)) == Refused("tree")
        for squared in (b"", np.full(4 * 36, -1.0).tobytes(), np.full(4 * 36, 1e31).tobytes()):
            broken = changed(honest.gradients, squared=squared)
            assert server.send(VICTIM, changed(honest, gradients=broken)) is None
        for noise in ((float("nan"),) * 6, (-1.0,) * 6, (1.0,) * 5):
            broken = changed(honest.gradients, noise=noise)
            assert server.send(VICTIM, changed(honest, gradients=broken)) is None
        assert compute_tree(party.terms, party.facts, honest).labels == honest.labels
        assert party.store.record.voted == ""

    hostile(tiny_bert, tmp_path / "run", "tree", script, **QUIET)


def test_hostile_gradients_where_the_job_needs_none(tiny_bert, tmp_path):
    def script(server, requests):
        party = server.party(VICTIM)
        experts = requests[VICTIM].experts
        ask = wire.GradientHello(party.terms.names, 1, experts)
        assert server.send(VICTIM, ask) == Refused("sketch")

    topology = Topology(source="one_group")  # so no vote refuses it first
    hostile(
        tiny_bert, tmp_path / "run", "round-1/advertise", script, **{**QUIET, "topology": topology}
    )


def test_hostile_gradients_after_a_vote_are_refused(tiny_bert, tmp_path):
    def script(server, requests):
        ask = wire.GradientHello(server.party(VICTIM).terms.names, 2, requests[VICTIM].experts)
        assert server.send(VICTIM, ask) == Refused("sketch")

    hostile(
        tiny_bert, tmp_path / "run", "round-1/advertise", script, clients=make_clients(), **QUIET
    )
