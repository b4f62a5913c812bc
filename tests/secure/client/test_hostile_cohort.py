"""A server that moves clients in and out of sums as it likes: `forged-cohort` (docs/threats.md).

It holds the right key, and the participants are real. What holds: a client signs one change of a
tree, only one that follows from the tree in force and keeps the disclosure rule; it follows changes
and trees that a quorum signed, and no others.
"""

import msgspec
import pytest
from attendance import Attendance
from small_jobs import federation, make_clients
from takeover import by_itself, changed, hostile

from fedtree_dp import Ledger
from fedtree_secagg import Identity
from fedtree_secure import Cohort, Topology, Training
from fedtree_secure.agreed import messages as wire
from fedtree_secure.agreed.cohort import change_digest, change_vote_bytes, leave_bytes, next_tree
from fedtree_secure.agreed.messages import Done, Learnt, Protocol, Refused, Voted, decode_reply
from fedtree_secure.agreed.stages import MOST_SKETCHES
from fedtree_secure.client.store import Store

LATE = ("t0-c5", "t0-c6", "t0-c7")
VICTIM, NEWCOMER = "t0-c0", "t0-c7"
JOB = {
    "cohort": Cohort(late=True),
    "rounds": 2,
    "training": Training(records=60, sample_rate=0.5, head_steps=0, max_length=16),
    "topology": Topology(sketch_size=64, cut="silhouette", significance=0.9999),
}


def taken_over(model, out, stage, script):
    """Eight clients, three of which come before round 2."""
    return hostile(
        *(model, out, stage, script),
        clients=make_clients(tasks=1, each=8),
        around=lambda inner: Attendance(inner, dict.fromkeys(LATE, range(2))),
        **JOB,
    )


def relabelled(party, change, **fields):
    """A change of the server's own that follows the public computation."""
    draft = msgspec.structs.replace(change, **fields)
    tree, _ = next_tree(party.terms, party.facts, party.roll(), draft)
    return msgspec.structs.replace(draft, labels=tree.labels)


def seated(change, names, into):
    """Labels in which some late clients are of a group, others are not."""
    at = [sorted((*change.distances.members,)).index(name) for name in (*names, into)]
    return tuple(
        tuple(row[at[-1]] if i in at[:-1] else 99 + i if i > 4 else v for i, v in enumerate(row))
        for row in change.labels
    )


def test_hostile_late_client_moves_that_a_member_does_not_sign(tiny_bert, tmp_path):
    def script(server, requests):
        honest, party = requests[VICTIM].change, server.party(VICTIM)
        assert honest.late == LATE
        members = party.terms.names[:5]
        forbidden = {
            "two of three come in": {"labels": seated(honest, LATE[:2], VICTIM)},
            "one comes in": {"labels": seated(honest, LATE[:1], VICTIM)},
            "a batch of two": {"late": LATE[:2]},
            "a member comes late": {"late": (VICTIM, *LATE)},
            "nobody's distances": {"distances": None},
            "distances of no sketch of its own": {
                "distances": changed(honest.distances, attempt=honest.distances.attempt + 1)
            },
            "a member is dropped from the labels": {
                "labels": tuple((50, *row[1:]) for row in honest.labels)
            },
            "another number": {"number": 2},
            "another beginning": {"before": "00" * 32},
            "a farewell that nobody signed": {"gone": ((members[1], bytes(64)),)},
        }
        for what, lie in forbidden.items():
            reply = server.send(VICTIM, wire.ProposeChange(changed(honest, **lie)))
            assert reply == Refused("tree"), what
        gone = relabelled(party, honest, gone=((VICTIM, b""),))
        assert server.send(VICTIM, wire.ProposeChange(gone)) == Refused("gone")
        assert party.store.record.voted_change == ""

        other = relabelled(party, honest, late=(), distances=None, gone=gone_of(members[1:4]))
        assert isinstance(server.send(VICTIM, wire.ProposeChange(other)), Voted)
        assert server.send(VICTIM, wire.ProposeChange(honest)) == Refused("tree")  # it signed one
        assert isinstance(server.send(VICTIM, wire.ProposeChange(other)), Voted)
        assert server.charges(VICTIM) == ["fingerprint", "round 1"]

    taken_over(tiny_bert, tmp_path / "run", "round-2/change", script)


def gone_of(names):
    return tuple((name, b"") for name in sorted(names))


def test_hostile_late_client_changes_are_followed_with_a_quorum_alone(tiny_bert, tmp_path):
    """And nobody follows two: who was told of one refuses another of the same tree."""

    def script(server, requests):
        honest, party = requests[VICTIM].change, server.party(VICTIM)
        gone = ("t0-c1", "t0-c2", "t0-c3")
        other = relabelled(party, honest, late=(), distances=None, gone=gone_of(gone))
        voters = [name for name in requests if name not in gone]
        signed = {name: server.send(name, wire.ProposeChange(other)) for name in voters}
        votes = [(name, reply.signature) for name, reply in signed.items()]
        (first, signature), *rest = votes
        bad = bytes([signature[0] ^ 1]) + signature[1:]
        tree = party.store.record.tree
        for false in (votes[:4], [*votes[:4], votes[0]], [(first, bad), *rest], []):
            lesson = wire.Learn(None, (), ((other, tuple(false)),))
            assert server.send(VICTIM, lesson) == Refused("tree")
        labels = changed(other, labels=honest.labels)
        key = {n: Identity(server.party(n).member.identity.to_private_bytes()) for n in voters}
        forged = [(n, key[n].sign(change_vote_bytes(party.terms, labels))) for n in voters]
        lesson = wire.Learn(None, (), ((labels, tuple(forged)),))
        assert server.send(VICTIM, lesson) == Refused("tree")  # signed by all, and still false
        assert party.store.record.tree == tree

        lesson = wire.Learn(None, (), ((other, tuple(votes)),))
        for _ in range(2):  # told again it is the same
            assert server.send(VICTIM, lesson) == Learnt(party.store.record.known_round, 2)
        assert party.store.record.evidence == change_digest(other)
        assert party.store.record.gone == list(gone)
        signed = [(n, key[n].sign(change_vote_bytes(party.terms, honest))) for n in voters]
        lesson = wire.Learn(None, (), ((honest, tuple(signed)),))
        assert server.send(VICTIM, lesson) == Refused("tree")
        assert isinstance(
            server.send("t0-c1", wire.Learn(None, (), ((other, tuple(votes)),))), Learnt
        )
        clip = party.store.record.clips["round"]
        experts = wire.Experts((), (), bytes(4 * party.facts.layout.length))
        begin = wire.Begin(2, 2, False, clip, experts)
        assert server.send("t0-c1", begin) == Refused("gone")
        assert server.send(VICTIM, begin) is None  # it is not gone: its group of five closed

    taken_over(tiny_bert, tmp_path / "run", "round-2/change", script)


def test_hostile_late_client_learns_no_tree_that_a_quorum_did_not_sign(tiny_bert, tmp_path):
    def script(server, requests):
        honest = requests[NEWCOMER]
        assert honest.changes == ()
        (name, signature), *rest = honest.votes
        bad = bytes([signature[0] ^ 1]) + signature[1:]
        rows = tuple(tuple(range(len(row))) for row in honest.tree.labels)
        for lie in (
            changed(honest, votes=honest.votes[:4]),
            changed(honest, votes=((name, bad), *rest)),
            changed(honest, votes=((name, signature),) * 5),
            changed(honest, tree=None, votes=()),
            changed(honest, tree=changed(honest.tree, labels=rows)),
        ):
            assert server.send(NEWCOMER, lie) == Refused("tree")
        few = changed(honest.tree, members=honest.tree.members[:3])
        assert server.send(NEWCOMER, changed(honest, tree=few)) is None
        party = server.party(NEWCOMER)
        assert party.store.record.tree is None
        assert server.send(NEWCOMER, honest) == Learnt(-1, 1)
        assert server.send(VICTIM, honest) == Learnt(0, 1)  # it knows it
        attempt = changed(honest.tree, attempt=9)
        assert server.send(VICTIM, changed(honest, tree=attempt)) == Refused("tree")

        party.store.record.sketches = MOST_SKETCHES
        hello = wire.SketchHello(party.terms.names, 2)
        assert server.send(NEWCOMER, hello) == Refused("sketch")
        party.store.record.sketches = 0
        assert isinstance(server.send(NEWCOMER, hello), Protocol)
        assert server.charges(NEWCOMER) == []

        # It comes back with the store of another data set, in which this run never was.
        other = Ledger.open(tmp_path / "b.sqlite", dataset="b", budget=party.job.privacy)
        member, mine = server.party(VICTIM), server.party(VICTIM).store
        with other as ledger:
            member.store = Store(ledger, mine.run, mine.secrets, mine.state)
            server.asked += 1
            asked = {"counter": server.asked, "answered": mine.record.counter}
            assert decode_reply(server.ask(VICTIM, honest, **asked)) == Refused("set-back")
            assert [entry.purpose for entry in ledger.entries() if entry.purpose] == []
        member.store = mine

        participant = server.inner.participant(VICTIM)
        participant.leave()
        left = server.send(VICTIM, wire.Prepare())
        signed = leave_bytes(party.terms, VICTIM)
        assert party.terms.roster.verifies(VICTIM, left.signature, signed)
        assert server.send(VICTIM, hello) == left  # whatever is asked

    taken_over(tiny_bert, tmp_path / "run", "round-2/learn", script)


@pytest.mark.parametrize("message", [wire.Learn(None, (), ()), wire.ProposeChange])
def test_hostile_late_client_of_another_job_is_not_a_member(tiny_bert, tmp_path, message):
    """Before there is a tree nothing can be changed."""

    def script(server, requests):
        change = wire.Change(1, "", (), (), None, ())
        asked = message if isinstance(message, wire.Learn) else message(change)
        assert server.send(VICTIM, asked) == Refused("tree")
        assert server.send(VICTIM, wire.Prepare()) == Done()

    taken_over(tiny_bert, tmp_path / "run", "sketch-hello", script)


def test_hostile_late_client_takes_no_round_out_of_turn(tiny_bert, tmp_path):
    """Three of four are asked in a round; the fourth refuses, and nothing is charged."""

    def script(server, requests):
        (rests,) = {client.id for client in clients} - set(requests)
        experts = requests[max(requests)].experts
        assert server.send(rests, by_itself(server, rests, 2, experts)) == Refused("turn")
        assert server.charges(rests) == ["round 1"]

    clients = make_clients(tasks=1, each=4)
    job = {**JOB, "topology": Topology(source="one_group"), "cohort": Cohort(share=0.75)}
    hostile(tiny_bert, tmp_path / "run", "round-2/mask", script, clients=clients, **job)


def test_late_client_is_charged_for_its_turns_alone(tiny_bert, tmp_path):
    job = {**JOB, "topology": Topology(source="one_group"), "cohort": Cohort(share=0.75)}
    result = federation(tiny_bert, **job).run(make_clients(tasks=1, each=4), tmp_path / "run")
    opened = [set().union(*record["opened"].values()) for record in result.data["rounds"]]
    assert [len(found) for found in opened] == [4, 3]
    for client, report in result.data["clients"].items():
        taken = sum(client in found for found in opened)
        assert sum(event["steps"] for event in report["events"]) == taken
    assert "no amplification" in result.data["guarantee"]["participation"]
