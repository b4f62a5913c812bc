"""Attack `invented-distances` (docs/threats.md): a server that picks the groups itself.

What holds: a client signs one tree in a run, only one that follows from distances of a sketch that
it took part in, of a quorum of the roster; it adopts a tree only when a quorum signed the same.
What does not: the distances themselves are the server's word (SECURITY.md).
"""

import numpy as np
import pytest
from small_jobs import federation, lying, make_clients
from takeover import changed, hostile

from fedtree_secagg import sketch
from fedtree_secure import RunStopped, Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.messages import Done, Protocol, Refused, Voted, decode_reply
from fedtree_secure.agreed.round_plan import compute_tree, sketch_context
from fedtree_secure.agreed.stages import MOST_ATTEMPTS

VICTIM = "t0-c0"
QUIET = {"training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16)}
SOURCE = {"topology": Topology(sketch_size=64, cut="silhouette")}


def proposal(party, members, squared, attempt=1):
    """What a server proposes that follows the public computation on distances of its own."""
    noise = tuple(1.0 for _ in members)
    draft = wire.ProposeTree(attempt, tuple(members), noise, squared.tobytes(), ())
    labels = compute_tree(party.terms, party.facts, draft).labels
    return changed(draft, labels=labels)


def invented(party, members, together):
    """Distances that put some clients into one corner and all others into another."""
    near = np.array([name in together for name in members])
    apart = (near[:, None] != near[None, :]).astype(np.float64) * 1e6
    depth = party.facts.depth
    return np.repeat(apart[None], depth, axis=0) + (1.0 - np.eye(len(members)))


def test_hostile_invented_distances_without_a_sketch_are_refused(tiny_bert, tmp_path):
    def script(server, requests):
        party = server.party(VICTIM)
        names = party.terms.names
        lie = proposal(party, names, invented(party, names, {VICTIM, "t0-c1", "t0-c2"}))
        for attempt in (1, 2):
            assert server.send(VICTIM, changed(lie, attempt=attempt)) == Refused("tree")
        assert party.store.record.tree is None

    hostile(tiny_bert, tmp_path / "run", "sketch-hello", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_where_the_job_needs_none(tiny_bert, tmp_path):
    def script(server, requests):
        party = server.party(VICTIM)
        names = party.terms.names
        lie = proposal(party, names, invented(party, names, {VICTIM, "t0-c1", "t0-c2"}))
        assert server.send(VICTIM, lie) == Refused("tree")
        assert server.send(VICTIM, wire.SketchHello(names, 1)) == Refused("sketch")

    topology = {"topology": Topology(source="one_group")}
    hostile(tiny_bert, tmp_path / "run", "prepare", script, **QUIET, **topology)


def test_hostile_invented_distances_a_victim_with_two_accomplices_is_no_sketch(tiny_bert, tmp_path):
    def script(server, requests):
        three = (VICTIM, "t0-c1", "t0-c2")
        for members in (three, (*three, "stranger"), tuple(reversed(requests[VICTIM].members))):
            assert server.send(VICTIM, wire.SketchHello(members, 1)) is None
        everyone = requests[VICTIM].members
        for attempt in (MOST_ATTEMPTS + 1, 2**31 - 1):
            assert server.send(VICTIM, wire.SketchHello(everyone, attempt)) is None
        assert server.charges(VICTIM) == []
        assert isinstance(server.send(VICTIM, wire.SketchHello(everyone, 1)), Protocol)
        assert server.send(VICTIM, wire.SketchHello(everyone, 1)) is None  # one projection each

    hostile(tiny_bert, tmp_path / "run", "sketch-hello", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_a_group_without_the_client_is_none_of_its(tiny_bert, tmp_path):
    def script(server, requests):
        without = tuple(name for name in requests[VICTIM].members if name != VICTIM)
        failures = server.inner._inner.failures
        assert server.send(VICTIM, wire.SketchHello(without, 1)) is None
        assert isinstance(failures[-1].error, wire.WireError)
        assert server.party(VICTIM).store.record.sketch_attempt == 0
        assert isinstance(server.send(VICTIM, requests[VICTIM]), Protocol)

    hostile(tiny_bert, tmp_path / "run", "sketch-hello", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_a_victim_with_two_accomplices_is_no_broadcast(
    tiny_bert, tmp_path
):
    """All were asked for an advert; the victim is shown those of two."""

    def script(server, _requests):
        party, three = server.party(VICTIM), (VICTIM, "t0-c1", "t0-c2")
        names = party.terms.names
        replies = next(seen for stage, _, seen in server.seen if stage == "sketch-hello")
        few = sketch.collect(
            party.terms.roster,
            names,
            sketch_context(party.terms, party.facts.digest, 1),
            {name: decode_reply(replies[name]).payload for name in three},
        )
        assert server.send(VICTIM, wire.SketchSeal(few[VICTIM])) == Refused("sketch")
        assert server.charges(VICTIM) == []

    hostile(tiny_bert, tmp_path / "run", "sketch-seal", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_after_a_sketch_are_of_a_quorum_and_its_own(tiny_bert, tmp_path):
    """The sketch was honest; the proposal is about fewer, or about all others."""

    def script(server, requests):
        party, honest = server.party(VICTIM), requests[VICTIM]
        names = honest.members
        three = (VICTIM, "t0-c1", "t0-c2")
        few = proposal(party, three, invented(party, three, set(three)), honest.attempt)
        assert server.send(VICTIM, few) is None
        others = tuple(name for name in names if name != VICTIM)
        rest = proposal(party, others, invented(party, others, set(others)), honest.attempt)
        assert server.send(VICTIM, rest) == Refused("tree")
        assert party.store.record.voted == ""

    hostile(tiny_bert, tmp_path / "run", "tree", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_two_trees_for_two_halves(tiny_bert, tmp_path):
    """Every client signs one; neither half is a quorum, and no mixture passes."""

    def script(server, requests):
        honest = requests[VICTIM]
        names, party = honest.members, server.party(VICTIM)
        half, rest = names[:3], names[3:]
        trees = [
            proposal(party, names, invented(party, names, set(group))) for group in (half, rest)
        ]
        trees = [changed(trees[0]), proposal(party, names, invented(party, names, set(names)))]
        signed = {}
        for name in names:
            reply = server.send(name, trees[0] if name in half else trees[1])
            assert isinstance(reply, Voted)
            signed[name] = reply.signature
        assert server.send(VICTIM, trees[1]) == Refused("tree")  # it signed the other one
        for group in (half, names):
            votes = tuple((name, signed[name]) for name in group)
            assert server.send(VICTIM, wire.AdoptTree(votes)) in (None, Refused("tree"))
            reply = server.send(VICTIM, trees[0])  # its own again
            assert isinstance(reply, Voted)
            assert server.send(VICTIM, wire.AdoptTree(votes)) == Refused("tree")
            reply = server.send(VICTIM, trees[0])
        twice = tuple((VICTIM, signed[VICTIM]) for _ in range(4))
        assert server.send(VICTIM, wire.AdoptTree(twice)) == Refused("tree")
        assert party.store.record.tree is None

    hostile(tiny_bert, tmp_path / "run", "tree", script, **QUIET, **SOURCE)


def test_hostile_invented_distances_labels_must_follow_from_them(tiny_bert, tmp_path):
    """Attack "partition" of secagg/SPEC.md: another tree than the announced distances give."""

    def script(server, requests):
        honest = requests[VICTIM]
        rows = tuple(tuple(range(len(row))) for row in honest.labels)
        nan = np.full(len(honest.squared) // 8, np.nan).tobytes()
        for lie in (
            changed(honest, labels=rows),
            changed(honest, labels=()),
            changed(honest, attempt=honest.attempt + 1),
        ):
            assert server.send(VICTIM, lie) == Refused("tree")
        for broken in (
            changed(honest, squared=nan),
            changed(honest, squared=b""),
            changed(honest, noise=(float("inf"),) * len(honest.noise)),
            changed(honest, members=honest.members[:3]),
        ):
            assert server.send(VICTIM, broken) in (None, Refused("tree"))
        assert server.party(VICTIM).store.record.voted == ""
        assert isinstance(server.send(VICTIM, honest), Voted)

    hostile(tiny_bert, tmp_path / "run", "tree", script, **QUIET, **SOURCE)


def test_a_client_that_signed_a_tree_makes_no_more_sketches(tiny_bert, tmp_path):
    def script(server, requests):
        names = server.party(VICTIM).terms.names
        assert server.send(VICTIM, wire.SketchHello(names, 2)) == Refused("sketch")

    hostile(tiny_bert, tmp_path / "run", "prepare", script, **QUIET, **SOURCE)


def test_one_client_that_refuses_the_tree_does_not_end_the_job(tiny_bert, tmp_path):
    """H7: one `Refused("tree")` ended it for all."""
    out = tmp_path / "run"

    def lie(stage, name, message):
        if stage == "tree" and name == "t1-c2":
            return changed(message, labels=())
        return message

    job = federation(tiny_bert, **QUIET, **SOURCE)
    result = job.run(make_clients(), out, wrap_transport=lying(out, lie)[0])
    assert all(not record["error"] for record in result.data["rounds"])
    assert result["t1-c2"].metric is not None


def test_a_tree_that_too_few_sign_stops_the_run_by_name(tiny_bert, tmp_path):
    out = tmp_path / "run"

    def lie(stage, name, message):
        return changed(message, labels=()) if stage == "tree" and name < "t1-c1" else message

    job = federation(tiny_bert, **QUIET, **SOURCE)
    with pytest.raises(RunStopped, match="t0-c0, t0-c1, t0-c2, t1-c0"):
        job.run(make_clients(), out, wrap_transport=lying(out, lie)[0])


def test_adopting_needs_the_signatures_of_this_very_tree(tiny_bert, tmp_path):
    def script(server, requests):
        votes = list(requests[VICTIM].votes)
        name, signature = votes[1]
        forged = [*votes[:1], (name, signature[:-1] + bytes([signature[-1] ^ 1])), *votes[2:]]
        stranger = [*votes[:-1], ("stranger", signature)]
        for lie in (forged, stranger, votes[:3], [*votes[:3], votes[0]]):
            assert server.send(VICTIM, wire.AdoptTree(tuple(lie))) == Refused("tree")
        assert server.send(VICTIM, requests[VICTIM]) == Done()
        assert server.party(VICTIM).store.record.tree is not None

    hostile(tiny_bert, tmp_path / "run", "adopt", script, **QUIET, **SOURCE)
